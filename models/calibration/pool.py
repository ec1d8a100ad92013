"""Fit one operator's kernel on all devices of one silicon: each its own physical parameters, one correction for all."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import device as devices
from models.calibration import fitting, measured, residual, store
from models.calibration.boosting import Budget
from models.calibration.forms import FORMS, OF_ENGINES, Form, form_told
from models.calibration.measured import Group
from models.calibration.plausible import impossible
from models.calibration.shapes import FEW_FOR_TREES, RINGS, feature_columns, form_of, octaves_outside
from models.calibration.store import Error, OperatorFit
from models.operators import Formats, Machine

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]

SEED = 20_260
MAX_BOOST_ROWS = 120_000
MAX_TRIAL_ROWS = 60_000
# Splits of which held-out errors are told.
SPLITS = ("shape", "family", "beyond")
JUDGED_BY_FAMILY = ("moe", "attn_decode", "attn_prefill", "attn_mixed")
# The rows whose errors are told never choose how much a correction may learn; those that tell how many rows the stated
# interval holds choose nothing at all.
ERROR_FOLD, TRIAL_FOLD, COVERAGE_FOLD = 0, 1, 4
TRIAL_FOLDS = (1, 2, 3)  # where few families leave the first with none
BUDGET = Budget(300, 63, 4.0)
# Few architectures teach little: more would be learnt by heart.
BUDGET_OF = {"moe": Budget(75, 31, 20.0)}
MOST_ROWS_OF = {"moe": 20_000}  # of devices of one silicon, which hardly differ
TREE_COUNTS = (12, 19, 38, 75, 150, 300)
FADE_TREES = 75  # enough to tell how far a correction reaches
WORTHWHILE = 0.975  # twice the trees must bring the error down to this share
P90_WEIGHT = 0.3  # what is minimised is the median plus this share of the 90th percentile
# Rows so much slower than the physical form, on the log, that a tuner's accident explains them: they are judged, but
# teach nothing, since they befall one architecture and spare its sibling.
ODD = {"moe": 0.35}
ALIKE_ON_KIN = ("moe",)
PAIRS = "pairwise"  # in the name of a fabric that joins devices by twos, measured within one pair
HOST_LINK_SHARE = 0.63  # of a data sheet's PCIe rate, as two L40S reduce 256 MiB (collectives table, NCCL 2.27.3)
LIKE_KIN = 0.1  # median difference of log time up to which a collective takes the time of a sibling's
FEWEST_HELD_BACK = 7
MOST_HELD_BACK = 0.6
FEW_FOR_TAILS = 40  # fewer errors tell no tail: the interval spans them all
FEWEST_ROWS = 12
FEWEST_ROWS_OF = {"lookup": 1}  # three parameters, of which the fixed time and the memory's share hardly differ
DEFAULT_INTERVAL = (0.7, 1.45)
# Of few families the ones held back differ less than those to come: what their interval lacked on another fold.
WIDER = {"moe": 1.2, "mla_decode": 1.5}
NARROWEST = 0.001  # an interval holds its prediction, by this at least


class Member(NamedTuple):
    """One group of a pool: its form, number formats, device, parameters, and what tells it from its siblings."""

    group: Group
    form: Form
    formats: Formats
    machine: Machine
    parameters: Floats
    told: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Held:
    """Rows of one member held back by a split: log(predicted / measured), seconds, octaves outside the other rows."""

    log_error: Floats
    seconds: Floats
    octaves: Floats


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fit, the rows that its errors were told on by split, and by split whether its interval held those of a fold
    that chose nothing."""

    fit: OperatorFit
    held: dict[str, Held] = field(hash=False)
    covered: dict[str, Booleans] = field(hash=False)


def members_of(groups: Sequence[Group], starts: Sequence[Floats | None]) -> list[Member]:
    """Return the groups of a pool made ready, those that can be fitted; starts hold parameters to keep, where known.

    Experts' kernels choose alike on all devices of a silicon: only on the first are all discrete choices tried.
    """
    members: list[Member] = []
    for group, start in zip(groups, starts, strict=True):
        kin = members[0].parameters if members and group.op in ALIKE_ON_KIN else None
        member = member_of(group, start, kin)
        members += [member] if member else []
    return members


def member_of(group: Group, start: Floats | None = None, kin: Floats | None = None) -> Member | None:
    """Return a group made ready for its pool, or None (and a word why) where it cannot be fitted.

    start holds parameters to keep, where they are known, kin those of a sibling to start from; else all discrete
    choices are tried.
    """
    try:
        machine = measured.machine_of(devices.find(group.device), group.dtype)
    except ValueError as error:
        print(*name_of(group), f"not fitted: {error}", file=sys.stderr)
        return None
    formats = measured.formats_of(group.op, group.dtype, group.kv_dtype)
    fastest = measured.fastest_machine_of(devices.find(group.device), group.dtype, group.kv_dtype)
    group = group.keep(~impossible(group, fastest, formats))
    if group.rows < FEWEST_ROWS_OF.get(form_of(group.op), FEWEST_ROWS):
        print(*name_of(group), f"not fitted: only {group.rows} possible rows", file=sys.stderr)
        return None
    form = form_for(group)
    if start is None or len(start) != len(form.parameters):
        rows = (group.columns, group.seconds, formats, machine)
        rng = np.random.default_rng(SEED)
        start = fitting.fit_physics(form, *rows, rng) if kin is None else fitting.refit_physics(form, *rows, kin, rng)
    if PAIRS in group.sub_op and group.op in RINGS:
        start = beyond_pairs(form, start, devices.find(group.device))
    number = store.siblings_of(group.device).index(group.device)
    return Member(group, form, formats, machine, start, (float(number), formats.kv_bytes))


def beyond_pairs(form: Form, parameters: Floats, device: devices.Device) -> Floats:
    """Return a collective's parameters where only pairs share a link: more devices meet over their host's."""
    reached = HOST_LINK_SHARE * device.host_link_bytes_per_s
    named = dict(zip(form.parameters, parameters, strict=True))
    named["crowding"] = max(1.0, named["bandwidth_bytes_per_s"] / reached)
    return np.array([*named.values()])


def form_for(group: Group) -> Form:
    """Return the form of a group's kernel: its name may tell a choice; a collectives library has no engines' shots."""
    form = form_told(form_of(group.op), group.engine, group.kernel)
    of_library = group.op in RINGS and not group.kernel.startswith(OF_ENGINES)
    return replace(form, codes=form.codes[:1]) if of_library else form


def nearest(group: Group, fits: Sequence[OperatorFit]) -> OperatorFit | None:
    """Return the fit of a sibling's collective that tells a group's rows best, or None where none tells them well."""
    if not fits:
        return None
    form, formats = FORMS[form_of(group.op)], measured.formats_of(group.op, group.dtype, group.kv_dtype)
    machine = measured.machine_of(devices.find(group.device), group.dtype)
    told = [form.evaluate(group.columns, formats, machine, np.array(fit.parameters))[:, 0] for fit in fits]
    errors = [float(np.median(np.abs(np.log(seconds / group.seconds)))) for seconds in told]
    return fits[int(np.argmin(errors))] if min(errors) <= LIKE_KIN else None


def name_of(group: Group) -> tuple[str, ...]:
    """Return what names a group in a log."""
    return group.device, group.engine, group.op, group.dtype, group.kv_dtype, group.kernel, group.sub_op


def fit_pool(pool: Sequence[Member]) -> list[Fitted]:
    """Return the fit of each member with its held-out errors.

    The errors are those of fits that never saw the rows held back, of any member; what is returned is then fitted on
    all rows.
    """
    budget = _budget(pool)
    told = {split: _held_out(pool, split, ERROR_FOLD, budget) for split in SPLITS}
    covered = SPLITS[:1] if pool[0].group.op == "gemm" else SPLITS[:2]
    fresh = {split: _held_out(pool, split, COVERAGE_FOLD, budget) for split in covered}
    packed = _boosted(pool, budget)
    if packed:
        packed["fade"] = _fade(pool, budget)
    found = []
    for at, member in enumerate(pool):
        held = {split: one for split, every in told.items() if (one := every[at]) is not None}
        again = {split: one for split, every in fresh.items() if (one := every[at]) is not None}
        fit = _fit_of(member, held, packed)
        found.append(Fitted(fit, held, {split: _covered(fit, one) for split, one in again.items()}))
    return found


def _fit_of(member: Member, held: dict[str, Held], packed: dict[str, Any]) -> OperatorFit:
    group = member.group
    # Of two device counts, either is far outside what the other tells.
    inside = [one for split, one in held.items() if split == "shape" or (split == "family" and group.op not in RINGS)]
    interval = _interval([one.log_error for one in inside], WIDER.get(group.op, 1.0))
    return OperatorFit(
        *(group.op, group.dtype, group.kv_dtype, group.kernel, group.sub_op, member.form.name),
        parameters=tuple(float(value) for value in member.parameters),
        provenance="calibrated",
        rows=group.rows,
        errors={split: error_of(one.log_error) for split, one in held.items()},
        interval=interval,
        valid=ranges_of(group),
        source=group.source,
        version=group.version,
        packed=packed,
        drift=_drift(interval, [one for split, one in held.items() if split == "beyond" or group.op in RINGS]),
        member=member.told,
    )


def ranges_of(group: Group) -> dict[str, tuple[float, float]]:
    """Return the least and the most of each shape column of a group."""
    return {name: (float(values.min()), float(values.max())) for name, values in group.shape.items()}


def error_of(log_error: Floats) -> Error:
    """Return the summary of log(predicted / measured) as relative errors."""
    relative = np.expm1(log_error)
    size = np.abs(relative)
    quantile = float(np.quantile(size, 0.9))
    return Error(len(size), float(np.median(size)), float(size.mean()), quantile, float(relative.mean()))


def _interval(log_errors: list[Floats], wider: float) -> tuple[float, float]:
    """Return the factors on a prediction between which 90 % of the held-out measurements lay, made wider on the log."""
    if not log_errors:
        return DEFAULT_INTERVAL
    pooled = -np.concatenate(log_errors)
    tail = 0.05 if len(pooled) >= FEW_FOR_TAILS else 0.0
    low, high = np.exp(wider * np.quantile(pooled, (tail, 1.0 - tail)))
    return min(float(low), 1.0 - NARROWEST), max(float(high), 1.0 + NARROWEST)


def _drift(interval: tuple[float, float], held: Sequence[Held]) -> float:
    """Return by how much the interval's log must grow per octave outside the range of a fit to hold 90 % there."""
    missed = [np.zeros(0)]
    for one in held:
        outside = one.octaves > 0.0
        lacks = np.maximum(np.log(interval[0]) + one.log_error, -one.log_error - np.log(interval[1]))
        missed.append(np.maximum(lacks, 0.0)[outside] / one.octaves[outside])
    found = np.concatenate(missed)
    return float(np.quantile(found, 0.9)) if len(found) else 0.0


def _covered(fit: OperatorFit, held: Held) -> Booleans:
    """Return which rows the stated interval of a fit holds."""
    low, high = np.log(fit.interval)
    wider = fit.drift * held.octaves
    return np.asarray((-held.log_error >= low - wider) & (-held.log_error <= high + wider))


def _held_out(pool: Sequence[Member], split: str, fold: int, budget: Budget) -> list[Held | None]:
    """Return what a fit of all other rows says of the rows that a split holds back of each member, where enough are."""
    held = [measured.held_back(member.group.op, member.group.shape, split, fold) for member in pool]
    enough = [FEWEST_HELD_BACK <= rows.sum() <= MOST_HELD_BACK * len(rows) for rows in held]
    if not any(enough):
        return [None] * len(pool)
    refit = _fitted_afresh if split == "beyond" else _refitted
    rests = [refit(member._replace(group=member.group.keep(~rows))) for member, rows in zip(pool, held, strict=True)]
    ready = [rest for rest in rests if rest.group.rows]
    packed = _boosted(ready, budget)
    if packed and split == "beyond":
        packed["fade"] = _fade(ready, budget)
    trees = residual.unpack(packed) if packed else None
    found: list[Held | None] = []
    for member, rest, rows, is_enough in zip(pool, rests, held, enough, strict=True):
        kept = rest._replace(group=member.group.keep(rows))
        found.append(_told(kept, trees, ranges_of(rest.group)) if is_enough else None)
    return found


def _refitted(member: Member) -> Member:
    """Return a member with its parameters fitted to its rows from where they are, its discrete choices kept."""
    if member.group.rows < FEWEST_ROWS:
        return member
    told = (member.form, member.group.columns, member.group.seconds, member.formats, member.machine)
    return member._replace(parameters=fitting.refit_physics(*told, member.parameters, np.random.default_rng(SEED + 1)))


def _fitted_afresh(member: Member) -> Member:
    """Return a member with its parameters fitted to its rows from the form's guess: they know of no others."""
    if member.group.rows < FEWEST_ROWS:
        return member
    told = (member.form, member.group.columns, member.group.seconds, member.formats, member.machine)
    return member._replace(parameters=fitting.fit_physics(*told, np.random.default_rng(SEED)))


def _fade(pool: Sequence[Member], budget: Budget) -> float:
    """Return over how many octaves outside its range a correction should halve: what predicts the largest rows best."""
    held = [measured.held_back(member.group.op, member.group.shape, "beyond", TRIAL_FOLD) for member in pool]
    rests = [
        _refitted(member._replace(group=member.group.keep(~rows))) for member, rows in zip(pool, held, strict=True)
    ]
    least = budget._replace(trees=min(budget.trees, FADE_TREES))
    packed = _boosted([rest for rest in rests if rest.group.rows], least, MAX_TRIAL_ROWS)
    kept = [
        rest._replace(group=member.group.keep(rows))
        for member, rest, rows in zip(pool, rests, held, strict=True)
        if rest.group.rows and rows.any()
    ]
    if not packed or not kept:
        return residual.FADES[-1]
    scores = [_score(kept, residual.unpack(packed | {"fade": fade})) for fade in residual.FADES]
    return residual.FADES[int(np.argmin(scores))]


def _score(kept: Sequence[Member], trees: residual.Trees) -> float:
    """Return the error that a trial should make small: the median and a share of the 90th percentile."""
    errors = np.abs(np.concatenate([_told(one, trees, {}).log_error for one in kept]))
    return float(np.median(errors) + P90_WEIGHT * np.quantile(errors, 0.9))


def _told(kept: Member, trees: residual.Trees | None, ranges: dict[str, tuple[float, float]]) -> Held:
    outputs, features = _seen(kept)
    log_error = np.log(residual.corrected(outputs[:, 0], features, trees) / kept.group.seconds)
    return Held(log_error, kept.group.seconds, octaves_outside(kept.group.shape, ranges))


def _seen(member: Member) -> tuple[Floats, Floats]:
    """Return the seconds and traits of a member's rows, and the features that a correction sees."""
    group = member.group
    outputs = member.form.evaluate(group.columns, member.formats, member.machine, member.parameters)
    return outputs, residual.features_of(outputs, group.shape, feature_columns(group.op), member.told)


def _boosted(pool: Sequence[Member], budget: Budget, most_rows: int = MAX_BOOST_ROWS) -> dict[str, Any]:
    """Return the packed residual trees of a pool, or none where the shapes are too few to learn from."""
    shapes = np.concatenate([np.stack(list(member.group.shape.values()), axis=1) for member in pool])
    if len(np.unique(shapes, axis=0)) < FEW_FOR_TREES:
        return {}
    features, residuals = [], []
    for member in pool:
        outputs, seen = _seen(member)
        features.append(seen)
        residuals.append(np.log(member.group.seconds / outputs[:, 0]))
    usual = np.flatnonzero(np.concatenate(residuals) < ODD.get(pool[0].group.op, np.inf))
    if len(usual) < FEW_FOR_TREES:
        return {}
    most_rows = min(most_rows, MOST_ROWS_OF.get(pool[0].group.op, most_rows))
    rows = np.random.default_rng(SEED + 2).permutation(usual)[:most_rows]
    sized = residual.sized_features(feature_columns(pool[0].group.op), features[0].shape[1])
    return residual.boost(np.concatenate(features)[rows], np.concatenate(residuals)[rows], sized, budget)


def _budget(pool: Sequence[Member]) -> Budget:
    """Return how much the correction of a pool may learn: more trees only where they predict rows held back better."""
    op = pool[0].group.op
    most = _affordable(BUDGET_OF.get(op, BUDGET), sum(member.group.rows for member in pool))
    kind = "family" if op in JUDGED_BY_FAMILY else "shape"
    held, packed = _trial(pool, kind), dict[str, Any]()
    if held:
        rest = [one._replace(group=one.group.keep(~rows)) for one, rows in zip(pool, held, strict=True)]
        packed = _boosted([one for one in rest if one.group.rows], most, MAX_TRIAL_ROWS)
    if not packed:
        return most._replace(trees=min(most.trees, TREE_COUNTS[0]))
    kept = [one._replace(group=one.group.keep(rows)) for one, rows in zip(pool, held, strict=True) if rows.any()]
    trees = residual.unpack(packed)
    best, least = 0, np.inf
    for count in dict.fromkeys(min(count, most.trees) for count in TREE_COUNTS):
        first = residual.first_trees(trees, count)
        score = _score(kept, first)
        if score < WORTHWHILE * least:
            best, least = count, score
    return most._replace(trees=best)


def _trial(pool: Sequence[Member], kind: str) -> list[Booleans]:
    """Return the rows of each member that a trial holds back, of the first fold that holds enough and not too many."""
    for fold in TRIAL_FOLDS:
        held = [measured.held_back(member.group.op, member.group.shape, kind, fold) for member in pool]
        share = np.concatenate(held)
        if FEWEST_HELD_BACK <= share.sum() <= MOST_HELD_BACK * len(share):
            return held
    return []


def _affordable(budget: Budget, rows: int) -> Budget:
    """Return a budget cut to what so many rows can teach."""
    leaves = int(np.clip(rows / 30, 6, budget.leaves))
    return Budget(int(np.clip(rows / 40, 12, budget.trees)), leaves, budget.leaf_rows)
