"""YAML for Kubernetes: keys in the order given, and every string that YAML 1.1 would take for a boolean quoted."""

from collections.abc import Sequence
from typing import Any

import yaml

LOOKS_BOOLEAN = {"y", "n", "yes", "no", "on", "off", "true", "false"}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what looks like a boolean and never writes aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if text.lower() in LOOKS_BOOLEAN else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _string)


def text_of(documents: Sequence[dict[str, Any]], about: Sequence[str] = ()) -> str:
    """Return documents as one YAML text, with comments at its head.

    >>> print(text_of([{"on": "y"}], ["demo"]), end="")
    # demo
    "on": "y"
    """
    head = "".join(f"# {line}\n" for line in about)
    parts = [yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=120) for each in documents]
    return head + "---\n".join(parts)
