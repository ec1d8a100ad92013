"""Keys of a Hugging Face config.json, read under any of their names, remembering which were read."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

# Keys that look as if they changed the shapes of a model ...
_STRUCTURAL = (
    *("*expert*", "*layer*", "*lora*", "*window*", "*sliding*", "*mamba*", "ssm_*", "linear_*", "*compress*"),
    *("*latent*", "*head_dim*", "*kv_heads*", "*key_value_heads*", "*moe_intermediate*", "*shared*"),
)
# ... and those among them that do not: norms, biases, routing rules, dropout, kernels, positions.
_HARMLESS = (
    *("*layer*norm*", "*norm*layer*", "*bias*", "*group*", "*dropout*", "*layerdrop*", "no_rope_layer*", "*_loss*"),
    *("*scal*factor*", "use_mamba_kernels", "*mamba*act*", "*chunk_size", "*_rank_check*", "*init*", "*noise*"),
    *("output_*", "*time_step*", "mamba_expand", "*limit*", "layer_scale*", "*score*", "rope_*", "mtp_*", "*_mtp_*"),
    *("max_window_layers", "use_sliding_window", "shared_moe_mode", "vocab_size_per_layer_input"),
)


class Keys:
    """The keys of one table of a config.json; `place` names it in errors."""

    def __init__(self, place: str, table: Mapping[str, Any], outer: Mapping[str, Any] | None = None) -> None:
        """Read from table, and from the table around it what is only said there."""
        self.place = place
        self._table = table
        self._outer = outer or {}
        self._seen: set[str] = set()

    def get(self, *names: str) -> Any:
        """Return the value of the first of these names that has one (null counts as absent), else None."""
        self._seen.update(names)
        for table in (self._table, self._outer):
            for name in names:
                if table.get(name) is not None:
                    return table[name]
        return None

    def count(self, *names: str, default: int | None = None) -> int:
        """Return a whole number; ValueError where it is absent without a default, or is something else."""
        value = self.get(*names)
        if value is None and default is not None:
            return default
        if value is None:
            raise ValueError(f"{self.place}: missing {' or '.join(names)}")
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{self.place}: {names[0]} must be a whole number, not {value!r}")
        return value

    def flag(self, *names: str, default: bool = False) -> bool:
        """Return a true or false value."""
        value = self.get(*names)
        return default if value is None else bool(value)

    def entries(self, *names: str) -> list[Any]:
        """Return a list, empty where it is absent; ValueError where it is something else."""
        value = self.get(*names)
        if value is None:
            return []
        if not isinstance(value, list):
            raise ValueError(f"{self.place}: {names[0]} must be a list, not {value!r}")
        return value

    def refuse_unread(self) -> None:
        """Raise ValueError with the keys nobody read that look structural and are not switched off."""
        unread = [
            key
            for key, value in self._table.items()
            if key not in self._seen and value and _matches(key, _STRUCTURAL) and not _matches(key, _HARMLESS)
        ]
        if unread:
            raise ValueError(
                f"{self.place}: keys that seem to change the architecture and are not understood: {', '.join(unread)}; "
                "write the shapes as a TOML file like those in models/catalogue/llms instead"
            )


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
