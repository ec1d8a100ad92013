"""Fit all operators of measurement tables and write calibration files.

python -m models.calibration.fit OPERATORS.parquet COLLECTIVES.parquet -o FOLDER [--device D ...] [--op O ...] [--again]
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from models.calibration import held_out, measured, pool, store
from models.calibration.measured import Group
from models.calibration.pool import Fitted
from models.calibration.shapes import COLLECTIVES, RINGS
from models.calibration.store import HeldOut, OperatorFit

Fits = dict[str, list[OperatorFit]]
Told = dict[str, list[Fitted]]
Kin = dict[tuple[str, ...], list[OperatorFit]]
# A sibling's collective told the times of 8 devices, from 2, of 65 others within 22 % in 90 %: per doubling of n + 1.
LENT_DRIFT = 0.13


def main(arguments: list[str] | None = None) -> None:
    """Fit what the command line names and write one file per device and engine family."""
    parser = argparse.ArgumentParser(prog="python -m models.calibration.fit", description=__doc__)
    parser.add_argument("operators", type=Path)
    parser.add_argument("collectives", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", action="append", help="only these devices (as the tables call them) and siblings")
    parser.add_argument("--op", action="append", help="only these operators; the fits of others stay as they are")
    parser.add_argument("--again", action="store_true", help="keep parameters of the output folder, correct them anew")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    tables = (options.operators, options.collectives)
    fit_tables(*tables, options.output, options.device, options.op, options.again)


def fit_tables(
    operators: Path,
    collectives: Path,
    output: Path,
    only_devices: list[str] | None = None,
    only_ops: list[str] | None = None,
    again: bool = False,
) -> None:
    """Fit two measurement tables, silicon by silicon; write a file per (device, engine family), and the index."""
    every = sorted({*measured.devices_in(operators), *measured.devices_in(collectives)})
    for silicon in dict.fromkeys(store.silicon_of(device) for device in only_devices or every):
        labels = [device for device in every if store.silicon_of(device) == silicon]
        groups = [group for label in labels for group in _groups(operators, collectives, label, only_ops)]
        for engine in dict.fromkeys(group.engine for group in groups):
            own = [group for group in groups if group.engine == engine]
            _fit_engine(own, engine, output, only_ops, again)
    store.write_index(output)


def _groups(operators: Path, collectives: Path, label: str, only_ops: list[str] | None) -> Iterator[Group]:
    """Yield the groups of one device that are to be fitted; a table that holds none of the operators is not read."""
    found = [measured.collective_groups(collectives, label)]
    if not only_ops or set(only_ops) - set(COLLECTIVES):
        found.insert(0, measured.operator_groups(operators, label))
    yield from (group for group in chain(*found) if not only_ops or group.op in only_ops)


def _fit_engine(groups: list[Group], engine: str, output: Path, only_ops: list[str] | None, again: bool) -> None:
    """Fit the groups of one engine on one silicon and write its files; fits of other operators stay as they are."""
    labels = tuple(dict.fromkeys([*(group.device for group in groups), *store.siblings_of(groups[0].device)]))
    before = {label: store.read(label, engine, output) for label in labels}
    known = {(label, *_key(one)): one for label in labels for one in before[label]}
    fits: Fits = {label: [one for one in before[label] if only_ops and one.op not in only_ops] for label in labels}
    told: Told = {label: [] for label in labels}
    kin: Kin = {}
    for members in _pools(groups):
        for device, fitted in _fit_members(members, known if again else {}, kin):
            fits[device].append(fitted.fit)
            told[device].append(fitted)
            if not is_of_one_count(members[0]):
                kin.setdefault(_name(fitted.fit), []).append(fitted.fit)
    kept = {label: held_out.of_others(store.held_out(label, engine, output), only_ops) for label in labels}
    judged: dict[str, Sequence[HeldOut]] = {
        label: [*kept[label], *held_out.judged(told[label])] for label in labels if fits[label]
    }
    written = {label: every for label, every in fits.items() if every}
    if written:
        store.write(output, engine, written, judged)


def _fit_members(
    groups: list[Group], known: dict[tuple[str, ...], OperatorFit], kin: Kin
) -> Iterator[tuple[str, Fitted]]:
    """Yield the fits of a pool.

    One count of devices does not tell how time grows with devices: the parameters are those of a sibling then that was
    measured at more, kin, where it takes the same time at this one.
    """
    started = time.process_time()
    lenders = kin if is_of_one_count(groups[0]) and pool.PAIRS not in groups[0].sub_op else {}
    lent = {group.device: pool.nearest(group, lenders.get(_name(group), [])) for group in groups}
    starts = [lent[group.device] or known.get((group.device, *_key(group))) for group in groups]
    ready = pool.members_of(groups, [np.array(start.parameters) if start else None for start in starts])
    if not ready:
        return
    for member, fitted in zip(ready, pool.fit_pool(ready), strict=True):
        errors = {name: f"{error.median:.3f}/{error.p90:.3f}" for name, error in fitted.fit.errors.items()}
        trees = len(fitted.fit.packed.get("scale", ()))
        print(*pool.name_of(member.group), member.group.rows, f"{trees} trees", errors, file=sys.stderr)
        drift = max(fitted.fit.drift, LENT_DRIFT if lent[member.group.device] else 0.0)
        yield member.group.device, replace(fitted, fit=replace(fitted.fit, drift=drift))
    print(f"{time.process_time() - started:.1f} CPU s", file=sys.stderr, flush=True)


def _pools(groups: list[Group]) -> list[list[Group]]:
    """Return groups that share a correction: one kernel on all devices of a silicon, with every format of its cache.

    Releases of a collectives library that take different times are kept apart, and collectives of a device that was
    measured at one count of devices only; these come last.
    """
    found: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        release = group.version if group.op in COLLECTIVES else ""
        alone = "alone" if is_of_one_count(group) else ""
        name = (group.op, group.dtype, group.kernel, group.sub_op, release, alone)
        found.setdefault(name, []).append(group)
    return sorted(found.values(), key=lambda members: is_of_one_count(members[0]))


def is_of_one_count(group: Group) -> bool:
    """Return whether a group is of a collective at one count of devices."""
    return group.op in RINGS and len(np.unique(group.shape["n_devices"])) == 1


def fit_group(group: Group) -> OperatorFit | None:
    """Return the fit of one group by itself with its held-out errors, or None (and a word why) where there is none."""
    member = pool.member_of(group)
    return pool.fit_pool([member])[0].fit if member else None


def _name(one: OperatorFit | Group) -> tuple[str, ...]:
    return one.op, one.kernel, one.sub_op


def _key(one: OperatorFit | Group) -> tuple[str, ...]:
    return one.op, one.dtype, one.kv_dtype, one.kernel, one.sub_op, one.version


if __name__ == "__main__":
    main()
