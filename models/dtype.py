"""How many bytes one stored value takes in each number format, its scales included."""

BITS_PER_BYTE = 8

# Definitions of the formats: bits of the value, plus the bits of the scale shared by a block of values.
_BITS = {
    "fp32": 32.0,
    "tf32": 32.0,
    "bf16": 16.0,
    "fp16": 16.0,
    "fp8": 8.0,
    "fp8_block": 8.0 + 32 / (128 * 128),
    "int8": 8.0,
    "nvfp4": 4.0 + 8 / 16,
    "mxfp4": 4.0 + 8 / 32,
    "fp4": 4.0 + 8 / 16,
    "int4": 4.0 + 16 / 128,
    "q8_0": 8.0 + 16 / 32,
    "q4_0": 4.0 + 16 / 32,
    "ternary": 2.0,
}
NATIVE = "native"  # as the weights were published
OFFERED = (NATIVE, "bf16", "fp8")  # what a plan tries where nothing else is asked for
# The format in which kernels multiply a stored one: weights of four bits are widened as they are read.
MULTIPLIED_IN = {
    "fp8_block": "fp8",
    "nvfp4": "fp4",
    "mxfp4": "bf16",
    "int4": "bf16",
    "ternary": "int8",
    "q8_0": "int8",
    "q4_0": "int8",
}
_ALIASES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "float8_e4m3fn": "fp8",
    "int8_wo": "int8",
    "sq": "int8",
    "int4_wo": "int4",
    "w4a16_mxfp4": "mxfp4",
    "w4a8_mxfp4_mxfp8": "mxfp4",
}


def names() -> tuple[str, ...]:
    """Return the number formats this project knows."""
    return tuple(_BITS)


def multiplied_in(dtype: str) -> str:
    """Return the format in which kernels multiply weights stored in a number format."""
    return MULTIPLIED_IN.get(dtype, dtype)


def canonical(dtype: str) -> str:
    """Return our name of a number format, or raise ValueError naming the known ones."""
    name = _ALIASES.get(dtype.lower(), dtype.lower())
    if name not in _BITS:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(_BITS)}")
    return name


def bytes_per_value(dtype: str) -> float:
    """Return the bytes of one stored value, block scales included: bf16 2, fp8 1, nvfp4 0.5625.

    >>> bytes_per_value("nvfp4")
    0.5625
    """
    return _BITS[canonical(dtype)] / BITS_PER_BYTE
