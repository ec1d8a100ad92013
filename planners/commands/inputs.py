"""What a command is to plan: the flags, over a plan.yaml where there is one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from planners.study import Study


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags that say what is to be planned, as they were written; None and () where they were not."""

    trace: str | None
    model: str | None
    slo: tuple[str, ...]
    devices: str | None
    kinds: str | None
    limits: tuple[str, ...]
    classes: tuple[str, ...]
    variants: tuple[str, ...]
    keep: str | None
    seed: int | None
    file: str | None
    settings: tuple[str, ...]


def study_of(flags: Flags) -> "Study":
    """Return the study of -f FILE, or of plan.yaml in the working folder where no --model is given; flags win."""
    from planners import study as studies

    path = flags.file or (studies.FILE if flags.model is None and Path(studies.FILE).exists() else None)
    given: dict[str, Any] = {"trace": flags.trace, "model": flags.model, "seed": flags.seed, "slo": flags.slo or None}
    given["devices"] = None if flags.devices is None else split_names(flags.devices)
    given["kinds"] = None if flags.kinds is None else split_names(flags.kinds)
    limits = (f"limits.{limit}" for limit in flags.limits)
    classes = (f"classes.{rule}" for rule in flags.classes)
    keep = () if flags.keep is None else (f"keep.plan={json.dumps(flags.keep)}",)
    settings = (*limits, *classes, *map(_variants, flags.variants), *keep, *flags.settings)
    given = {name: value for name, value in given.items() if value is not None}
    if path is not None:
        return studies.with_settings(studies.changed(studies.read(path), given), settings)
    if flags.model is None:
        raise click.UsageError("no --model given, and no plan.yaml here (plan init writes one)")
    if not flags.slo:
        raise ValueError('no promise given; expected at least one, as in --slo "ttft:p99<=2s"')
    return studies.with_settings(studies.Study(**given), settings)


def _variants(text: str) -> str:
    """Return a text like "dp=1,8" as a setting of plan.yaml: engines.dp=[1, 8]."""
    key, is_given, values = text.partition("=")
    if not is_given:
        raise ValueError(f"--variants {text}: expected KEY=VALUE,VALUE,... as in kv_dtypes=bf16,fp8")
    listed = [int(value) if value.isdecimal() else value for value in split_names(values)]
    return f"engines.{key}={json.dumps(listed)}"


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a list joined by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
