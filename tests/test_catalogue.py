"""The catalogue of devices, models and prices is complete, sourced, and agrees with itself and with its sources."""

import csv
import math
import pickle
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import device, dtype, llm, parameters, price, toml_file

DEVICES = device.names()
MODELS = llm.names()

# Table rows that ours differ from on purpose, each with the reason.
OTHER_FP16 = {"rtx3090", "rtx4090"}  # ours is with fp32 accumulation, as the other devices
OTHER_FIXED_BYTES = {
    "mimo-v2-flash": "the table counts values of 192 where the model has 128: an upper bound",
    "whisper-large-v3": "the table leaves out the keys and values of the encoder's 1500 frames",
}


def rows(file: Path) -> Iterator[dict[str, str]]:
    """Read a table of facts."""
    with file.open(newline="", encoding="utf-8") as lines:
        yield from csv.DictReader(lines)


# --- devices ---


def test_the_catalogue_holds_every_device_of_the_table(shared: Path) -> None:
    for row in rows(shared / "data" / "devices.csv"):
        ours = device.find(row["id"])
        assert ours.title == row["name"]
        assert ours.kind == row["class"]
        for kind in device.DTYPES:
            if row[kind] and not (kind == "fp16" and row["id"] in OTHER_FP16):
                assert ours.flops_per_s[kind] == pytest.approx(float(row[kind]) * 1e12), (row["id"], kind)
        if row["mem_gbps"]:
            assert ours.bandwidth_bytes_per_s == pytest.approx(float(row["mem_gbps"]) * 1e9)
        if row["scaleup_gbps_dir"]:
            assert ours.link_bytes_per_s == pytest.approx(float(row["scaleup_gbps_dir"]) * 1e9)
        else:
            assert ours.link_bytes_per_s is None
        if row["tdp_w"]:
            assert ours.tdp_w == float(row["tdp_w"])


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_loads_with_a_source_and_sane_figures(name: str) -> None:
    ours = device.load(name)
    assert ours.name == name == name.lower()
    assert ours.source
    assert ours.flops_per_s
    assert 1e8 < ours.memory_bytes < 1e12
    assert 1e10 < ours.bandwidth_bytes_per_s < 1e14
    assert ours.host_link_bytes_per_s > 0
    assert ours.node_size >= 1
    assert ours.idle_w is None or ours.tdp_w is None or ours.idle_w < ours.tdp_w
    assert not ours.assumed or ours.note


@pytest.mark.parametrize("name", DEVICES)
def test_what_the_driver_reports_is_near_the_data_sheet(name: str) -> None:
    with (device.FOLDER / f"{name}.toml").open("rb") as file:
        gigabytes = tomllib.load(file)["memory_gb"]
    assert device.load(name).memory_bytes / 1e9 == pytest.approx(gigabytes, rel=0.08)


@pytest.mark.parametrize("name", DEVICES)
def test_halving_the_width_at_most_doubles_a_dense_peak(name: str) -> None:
    ours = device.load(name)
    for wide, narrow in (("bf16", "fp8"), ("bf16", "int8"), ("fp8", "fp4"), ("int8", "int4")):
        if wide in ours.flops_per_s and narrow in ours.flops_per_s:
            ratio = ours.flops_per_s[narrow] / ours.flops_per_s[wide]
            assert ratio <= 2.1 or f"times {wide}" in ours.note, (narrow, ratio)


def test_peaks_are_dense_not_sparse() -> None:
    assert device.load("h100-sxm").flops_per_s["bf16"] == 989.4e12
    assert device.load("l4").flops_per_s["bf16"] == 121e12
    assert device.load("l40s").flops_per_s["fp8"] == 733e12


@pytest.mark.parametrize("name", DEVICES)
def test_the_kin_of_an_unmeasured_device_is_itself_measured(name: str) -> None:
    ours = device.load(name)
    if ours.kin:
        assert ours.kin != name
        assert device.load(ours.kin).calibration


def test_each_label_names_one_device() -> None:
    labels = [label for name in DEVICES for label in (name, *device.load(name).labels)]
    labels += [ours.calibration for ours in map(device.load, DEVICES) if ours.calibration not in (None, ours.name)]
    assert sorted(set(labels)) == sorted(labels)


def test_measured_devices_are_found_by_their_label(shared: Path) -> None:
    import pyarrow.parquet as parquet

    measured = (
        parquet.read_table(shared / "data" / "operators.parquet", columns=["device"])["device"].unique().to_pylist()
    )
    keys = {ours.calibration for ours in map(device.load, DEVICES)}
    assert [label for label in measured if label not in keys and ":" not in label] == []
    assert device.find("h100_sxm").name == "h100-sxm"


def test_a_dtype_without_units_of_its_own_computes_in_the_next_wider_one() -> None:
    h100, v100 = device.load("h100-sxm"), device.load("v100-sxm-32gb")
    assert h100.peak_flops_per_s("fp4") == h100.flops_per_s["fp8"]
    assert v100.peak_flops_per_s("bf16") == v100.flops_per_s["fp16"]
    with pytest.raises(ValueError, match=r"snapdragon-x-elite-npu: no peak FLOP/s known for dtype 'bf16'.*int8"):
        device.load("snapdragon-x-elite-npu").peak_flops_per_s("bf16")


def test_an_unknown_device_gives_the_nearest_and_all_names() -> None:
    with pytest.raises(ValueError, match=r"unknown device 'h100'; did you mean h100-sxm .*known: a10, a100") as error:
        device.load("h100")
    assert "xeon-8480" in str(error.value)
    with pytest.raises(ValueError, match=r"unknown device '\.\./llms/phi-4'"):
        device.load("../llms/phi-4")
    with pytest.raises(ValueError, match="unknown device label 'h100_sxn'"):
        device.find("h100_sxn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("memory_gb = 0", "memory_gb must be positive"),
        ("bandwidth_gb_per_s = 'fast'", "bandwidth_gb_per_s must be a number"),
        ("kind = 'tpu'", "kind 'tpu' is none of gpu, npu, cpu, soc"),
        ("memory_gib = 80", "unknown key 'memory_gib'"),
        ("= 3", "not TOML"),
    ],
)
def test_a_device_file_of_ones_own_is_checked(change: str, message: str, tmp_path: Path) -> None:
    lines = (device.FOLDER / "l4.toml").read_text().splitlines()
    key = change.split(" ")[0]
    file = tmp_path / "mine.toml"
    file.write_text("\n".join([change, *(line for line in lines if line.split(" ")[0] != key)]))
    with pytest.raises(ValueError, match=message):
        device.load(str(file))
    file.write_text("\n".join(lines))
    assert device.load(str(file)).memory_bytes == device.load("l4").memory_bytes


def test_a_device_can_be_hashed_and_sent_to_another_process() -> None:
    ours = device.load("l4")
    assert pickle.loads(pickle.dumps(ours)) == ours
    assert len({ours, device.load("l4")}) == 1


def test_the_catalogue_imports_nothing_heavy() -> None:
    heavy = ("numpy", "pandas", "numba", "pyarrow", "scipy", "ortools", "matplotlib")
    program = (
        "import sys; from models import device, llm, price; device.load('l4'); llm.load('phi-4'); price.load('l4');"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    root = Path(device.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_one_device_reads_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    plain = toml_file.read

    def counted(path: Path, *keys: tuple[str, ...]) -> dict[str, object]:
        read.append(path)
        return plain(path, *keys)

    monkeypatch.setattr(toml_file, "read", counted)
    device.names()
    device.load("h100-sxm")
    assert [path.name for path in read] == ["h100-sxm.toml"]


# --- models ---


@pytest.mark.parametrize("name", MODELS)
def test_every_model_loads_with_a_source(name: str) -> None:
    ours = llm.load(name)
    assert ours.name == name
    assert ours.source
    assert ours.active_parameters <= ours.parameters
    assert hash(ours) == hash(llm.load(name))


@pytest.mark.parametrize("name", MODELS)
def test_counted_parameters_are_the_published_ones(name: str) -> None:
    ours = llm.load(name)
    if ours.published_parameters is None:
        assert name in ("deepseek-v4-flash", "step-3.7-flash")  # nobody has published a figure
        return
    encoder = parameters.encoder(ours.encoder) if ours.encoder and ours.published_covers == "text" else 0
    assert ours.parameters - encoder == pytest.approx(ours.published_parameters, rel=0.015)


def test_the_catalogue_holds_every_model_of_the_table(shared: Path) -> None:
    for row in rows(shared / "data" / "models.csv"):
        ours = llm.load(row["name"])
        assert ours.kv_bytes_per_token("bf16") == float(row["kv_bytes_per_tok_bf16"]), row["name"]
        convolutions = ours.linear_layers * ours.linear.convolution_bytes if ours.linear else 0  # not in the table
        if row["name"] not in OTHER_FIXED_BYTES:
            assert ours.kv_fixed_bytes("bf16") - convolutions == float(row["kv_fixed_bytes_bf16"]), row["name"]
        if row["params_total_b"]:
            assert ours.published_parameters == pytest.approx(float(row["params_total_b"]) * 1e9)
        if row["name"] not in ("whisper-large-v3", "mimo-v2-flash"):  # cross-attention; heads of the window layers
            assert ours.active_parameters == pytest.approx(float(row["calc_active_b"]) * 1e9, rel=0.005), row["name"]


def test_llama_8b_by_hand() -> None:
    ours = llm.load("llama-3.1-8b")
    assert ours.kv_bytes_per_token("bf16") == 32 * 2 * 8 * 128 * 2 == 131072
    assert ours.kv_bytes_per_token("fp8") == 65536
    assert ours.kv_fixed_bytes() == 0
    attention = 4096 * 4096 * 2 + 2 * 4096 * 1024
    layer = attention + 3 * 4096 * 14336 + 2 * 4096
    assert ours.parameters == 32 * layer + 2 * 128256 * 4096 + 4096
    assert ours.active_parameters == ours.parameters


def test_fp8_weights_keep_embedding_head_and_norms_in_sixteen_bit() -> None:
    ours = llm.load("llama-3.1-8b")
    kept = 2 * 128256 * 4096 + 65 * 4096
    assert ours.weight_bytes("bf16") == ours.weight_bytes() == 2 * ours.parameters
    assert ours.weight_bytes("fp8") == ours.parameters - kept + 2 * kept
    assert ours.weight_bytes("fp32") == 4 * ours.parameters


def test_latent_attention_caches_the_latent_and_the_rotary_part_only() -> None:
    assert llm.load("deepseek-v3").kv_bytes_per_token("bf16") == 61 * (512 + 64) * 2
    assert llm.load("deepseek-v3").index_bytes_per_token() == 0
    assert llm.load("deepseek-v3.2").index_bytes_per_token() == 61 * (128 + 4)


def test_windows_stop_growing_and_states_never_grow() -> None:
    gemma = llm.load("gemma-3-27b")
    assert gemma.kv_bytes_per_token() == 10 * 2 * 16 * 128 * 2
    assert gemma.kv_fixed_bytes() == 1024 * gemma.window_bytes_per_token() == 1024 * 52 * 2 * 16 * 128 * 2
    qwen = llm.load("qwen3.5-27b")
    assert qwen.linear_state_bytes == 48 * 128 * 128 * 4
    assert qwen.kv_fixed_bytes() == 48 * (48 * 128 * 128 * 4 + 3 * 2 * (2 * 16 * 128 + 48 * 128))


def test_only_the_experts_of_gpt_oss_are_published_in_four_bit() -> None:
    ours = llm.load("gpt-oss-120b")
    assert ours.weight_bytes() == ours.weight_bytes("mxfp4")
    assert ours.weight_bytes() == pytest.approx(65.2e9, rel=0.03)  # size of the published safetensors
    assert ours.weight_bytes("bf16") == 2 * ours.parameters


@pytest.mark.parametrize(
    ("model", "dtype", "meant"),
    [
        ("deepseek-v3", "native", "fp8_block"),
        ("deepseek-v3", "fp8", "fp8_block"),
        ("llama-3.1-8b", "native", "bf16"),
        ("llama-3.1-8b", "fp8_e4m3", "fp8"),
        ("gpt-oss-20b", "native", "mxfp4"),
        ("kimi-k2.5", "native", "int4"),
    ],
)
def test_a_format_means_what_the_model_is_published_in(model: str, dtype: str, meant: str) -> None:
    assert llm.load(model).format_of(dtype) == meant


def test_an_unknown_model_gives_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'llama-3\.1-8'; did you mean llama-3\.1-8b .*known: bitnet"):
        llm.load("llama-3.1-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers must be a positive whole number, not 0"),
        ({"kv_heads": 5}, "32 heads cannot share 5 KV heads evenly"),
        ({"window_layers": 8}, "8 window layers with a window of 0 tokens"),
        ({"window_layers": 40, "window_tokens": 9}, "32 layers, but -8 full, 40 window"),
        ({"experts": 4, "experts_per_token": 8, "expert_ffn": 9}, "8 of 4 experts a token"),
        ({"linear_layers": 8}, "8 linear layers, and linear shapes None"),
        ({"hiden": 4096}, "unknown key 'hiden'"),
    ],
)
def test_a_model_file_of_ones_own_is_checked(change: dict[str, int], message: str, tmp_path: Path) -> None:
    lines = (llm.FOLDER / "llama-3.1-8b.toml").read_text().splitlines()
    kept = [line for line in lines if line.split(" ")[0] not in change]
    file = tmp_path / "mine.toml"
    file.write_text("\n".join([*kept, *(f"{key} = {value}" for key, value in change.items())]))
    with pytest.raises(ValueError, match=message):
        llm.load(str(file))


def test_formats_have_the_bytes_of_their_definition() -> None:
    expected = {
        "fp32": 4,
        "bf16": 2,
        "fp8": 1,
        "int8": 1,
        "nvfp4": 0.5 + 1 / 16,
        "mxfp4": 0.5 + 1 / 32,
        "ternary": 0.25,
    }
    assert {name: dtype.bytes_per_value(name) for name in expected} == expected
    assert dtype.canonical("bfloat16") == "bf16"
    with pytest.raises(ValueError, match="unknown dtype 'fp7'; known: fp32"):
        dtype.bytes_per_value("fp7")


# --- prices ---

PRICED = (
    *("h100-sxm", "h200-sxm", "b200-sxm", "a100-sxm-80gb", "a100-sxm-40gb", "l40s", "a10g", "l4", "mi300x", "a6000"),
    *("a40", "v100-sxm-32gb", "h100-pcie", "a100-pcie-80gb"),
)


@pytest.mark.parametrize("name", PRICED)
def test_common_devices_have_a_dated_listed_price(name: str) -> None:
    offer = price.load(name)
    assert offer is not None
    assert offer.device == name
    assert offer.provenance == "listed"
    assert offer.date.startswith("202")
    assert offer.source
    spot = price.load(name, kind="spot")
    assert spot is None or spot.usd_per_hour < offer.usd_per_hour


def test_the_lowest_listed_price_wins(tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text("device,usd_per_hour,provenance,provider\nl4,0.9,listed,b\nl4,0.8,listed,a\nl4,0.1,assumed,c\n")
    offer = price.load("l4", path=file)
    assert offer is not None
    assert (offer.usd_per_hour, offer.provider) == (0.8, "a")
    assert price.load("h100-sxm", path=file) is None
    assert price.load("l4", kind="spot", path=file) is None


def test_listed_prices_are_those_of_the_source(shared: Path) -> None:
    listed = {}
    for row in rows(shared / "data" / "prices.csv"):
        if row["usd_hr_ondemand"] and row["provider"] != "melange-paper":
            per_device = float(row["usd_hr_ondemand"]) / int(row["gpu_count"])
            listed[row["gpu"]] = min(per_device, listed.get(row["gpu"], math.inf))
    names = {"H100": "h100-sxm", "A10G": "a10g", "L4": "l4", "A100-80GB": "a100-sxm-80gb", "MI300X": "mi300x"}
    for theirs, ours in names.items():
        offer = price.load(ours)
        assert offer is not None
        assert offer.usd_per_hour == pytest.approx(listed[theirs], rel=1e-5)


def test_assumed_prices_follow_from_the_stated_assumption() -> None:
    with price.OWNERSHIP.open("rb") as file:
        markup = tomllib.load(file)["markup"]
    owned = {name: price.owned_usd_per_hour(device.load(name)) for name in DEVICES}
    offers = {name: price.load(name) for name in DEVICES if owned[name]}
    ratios = [
        offer.usd_per_hour / cost
        for name, offer in offers.items()
        if (cost := owned[name]) and offer and offer.provenance == "listed"
    ]
    assert markup == pytest.approx(statistics.median(ratios), abs=0.005)
    for name, offer in offers.items():
        if offer and offer.provider == "assumed":
            assert offer.usd_per_hour == pytest.approx((owned[name] or 0) * markup, rel=1e-3)
            assert "mark-up" in offer.source


def test_owning_a_device_is_an_annuity_and_electricity() -> None:
    h100 = device.load("h100-sxm")
    annuity_factor = 0.08 / (1 - 1.08**-4)
    assert price.owned_usd_per_hour(h100) == pytest.approx(25_000 * annuity_factor / 8760 + 0.7 * 0.40)
    assert price.owned_usd_per_hour(device.load("tpu-v4")) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"prices\.csv:1:1: empty price list"),
        ("device,usd\nl4,1\n", r"prices\.csv:1:2: unknown column 'usd'"),
        ("device,kind\nl4,spot\n", r"prices\.csv:1:1: missing column usd_per_hour"),
        (
            "device,usd_per_hour\nl4,1\nl4,cheap\n",
            r"prices\.csv:3:2: usd_per_hour must be a positive number, not 'cheap'",
        ),
        ("device,usd_per_hour\nl4,-1\n", r"prices\.csv:2:2: usd_per_hour must be a positive number"),
        ("device,usd_per_hour\nl4,nan\n", r"prices\.csv:2:2: usd_per_hour must be a positive number"),
        ("usd_per_hour,device\n1,l44\n", r"prices\.csv:2:2: unknown device 'l44'; did you mean l4"),
        ("device,usd_per_hour,kind\nl4,1,gift\n", r"prices\.csv:2:3: kind 'gift' is none of on-demand, spot"),
        ("device,usd_per_hour\nl4,1,2\n", r"prices\.csv:2:3: 3 columns where the header has 2"),
        ("device,usd_per_hour,devices_per_instance\nl4,1,0.5\n", r"prices\.csv:2:3: devices_per_instance"),
    ],
)
def test_a_price_list_of_ones_own_is_checked_to_the_cell(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        price.load("h100-sxm", path=file)


def test_an_unknown_kind_of_price_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of price 'reserved'; known: on-demand, spot"):
        price.load("l4", kind="reserved")
