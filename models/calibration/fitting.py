"""Fit the parameters of one kernel form to measured seconds: least squares on the log, robust, few rows."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from models.calibration.forms import DEVICES, NODES, Form
from models.device import OPERATOR_SCALARS
from models.operators import Formats, Machine

Floats = npt.NDArray[np.float64]

MAX_ROWS = 1200
TRIAL_ROWS = 400
REFIT_ROWS = 600
SOFT_SCALE = 0.05  # log error beyond which a row pulls linearly, not quadratically
PRIOR_WEIGHT = 0.007  # of a parameter one spread from its guess, as a root mean square error of the rows
# How widely parameters differ between devices and kernels, on the log; what the rows leave open stays near its guess.
SPREADS = {
    "fixed_s": 2.0,
    "host_s": 2.0,
    "compute_efficiency": 0.3,
    "power_efficiency": 0.3,
    "memory_efficiency": 0.1,
    "processor_share": 0.4,
    "cache_speedup": 0.5,
    "cache_copies": 0.5,
    "sharpness": 0.5,
    "crowding": 0.3,
}
SPREAD = 1.0
QUICKEST_SHARE = {"fixed_s": 0.5, "host_s": 0.8}  # of the quickest rows' time, where a fit of these starts
TIMER_S = 5e-6  # rows not much longer than this tell little: their log error is scaled down
FEW_SHOT_PRIOR = 1.5  # pull of a kin's scalars against a few rows of the device itself
WIDEST = 60.0  # how far from its guess a parameter may move, as a factor
WAITS = (1e-8, 1e-2)  # what every call waits, in seconds
LIMITS = {
    "efficiency": (0.02, 1.0),
    "processor_share": (0.7, 12.0),
    "cache_copies": (0.3, 12.0),
    "sharpness": (1.0, 12.0),
    "speedup": (1.0, 12.0),
    "tail": (0.02, 1.0),
    "crowding": (0.5, 6.0),
}


def fit_physics(
    form: Form, columns: Floats, seconds: Floats, formats: Formats, machine: Machine, rng: np.random.Generator
) -> Floats:
    """Return the parameters, codes last, that explain `seconds` best among the form's discrete choices.

    What happens within a node is told by its rows alone, where they are of several counts of devices.
    """
    if form.between and _tells_apart(columns):
        across = columns[:, NODES] > 1.0
        inner = fit_physics(form, columns[~across], seconds[~across], formats, machine, rng)
        return fit_few(form, columns[across], seconds[across], formats, machine, inner, free=form.between)
    chosen = rng.permutation(len(seconds))[:MAX_ROWS]
    columns, seconds = columns[chosen], seconds[chosen]
    few = slice(0, TRIAL_ROWS)
    guess = _guess(form, seconds)
    trials: list[tuple[float, int, Floats, tuple[float, ...]]] = []
    for codes in form.codes:
        fit, loss = _least_squares(form, columns[few], seconds[few], formats, machine, guess, codes, 10)
        trials.append((loss, len(trials), fit, codes))
    _, _, start, codes = min(trials)
    fit, _ = _least_squares(form, columns, seconds, formats, machine, start, codes, 20)
    return np.append(fit, codes)


def refit_physics(
    form: Form,
    columns: Floats,
    seconds: Floats,
    formats: Formats,
    machine: Machine,
    start: Floats,
    rng: np.random.Generator,
) -> Floats:
    """Return the parameters fitted to other rows from a start near by, its discrete choices kept."""
    if form.between and _tells_apart(columns):
        across = columns[:, NODES] > 1.0
        inner = refit_physics(form, columns[~across], seconds[~across], formats, machine, start, rng)
        return fit_few(form, columns[across], seconds[across], formats, machine, inner, free=form.between)
    chosen = rng.permutation(len(seconds))[:REFIT_ROWS]
    count = len(form.guesses)
    codes = tuple(float(code) for code in start[count:])
    fit, _ = _least_squares(form, columns[chosen], seconds[chosen], formats, machine, start[:count], codes, 8)
    return np.append(fit, codes)


def _tells_apart(columns: Floats) -> bool:
    """Return whether rows of one node are of several counts of devices and there are rows of more nodes."""
    across = columns[:, NODES] > 1.0
    return bool(across.any()) and len(np.unique(columns[~across, DEVICES])) > 1


def fit_few(
    form: Form,
    columns: Floats,
    seconds: Floats,
    formats: Formats,
    machine: Machine,
    kin: Floats,
    corrected: Floats | float = 1.0,
    rounds: int = 12,
    free: tuple[str, ...] = OPERATOR_SCALARS,
) -> Floats:
    """Return a kin's parameters with only some fitted to a few rows: by default efficiencies and fixed time.

    Thirty rows tell how fast a device multiplies, reads and launches; how its kernels are cut they cannot tell.
    corrected is the factor by which the kin's correction lengthens each row.
    """
    from scipy.optimize import least_squares

    moved = [at for at, name in enumerate(form.guesses) if name in free]
    lowest, highest = limits(form)
    weight = 1.0 / (1.0 + TIMER_S / seconds)

    def with_scalars(logs: Floats) -> Floats:
        fit = kin.copy()
        fit[moved] = np.exp(logs)
        return fit

    def errors(logs: Floats) -> Floats:
        predicted = corrected * form.evaluate(columns, formats, machine, with_scalars(logs))[:, 0]
        pull = FEW_SHOT_PRIOR * SOFT_SCALE * np.sqrt(len(seconds)) * (logs - np.log(kin[moved]))
        return np.append(weight * np.log(predicted / seconds), pull)

    start = np.clip(np.log(kin[moved]), lowest[moved] + 1e-6, highest[moved] - 1e-6)
    bounds = (lowest[moved], highest[moved])
    found = least_squares(errors, start, bounds=bounds, loss="soft_l1", f_scale=SOFT_SCALE, max_nfev=rounds)
    return with_scalars(found.x)


def _least_squares(
    form: Form,
    columns: Floats,
    seconds: Floats,
    formats: Formats,
    machine: Machine,
    start: Floats,
    codes: tuple[float, ...],
    rounds: int,
) -> tuple[Floats, float]:
    """Return positive parameters and the robust loss; parameters move in log space, held near the form's guess."""
    from scipy.optimize import least_squares

    errors = _errors_of(form, columns, seconds, formats, machine, codes)
    lowest, highest = limits(form)
    first = np.clip(np.log(start), lowest + 1e-6, highest - 1e-6)
    found = least_squares(errors, first, bounds=(lowest, highest), max_nfev=rounds, diff_step=1e-3)
    return np.exp(found.x), float(found.cost) / len(seconds)


def _guess(form: Form, seconds: Floats) -> Floats:
    """Return where a fit starts: the form's guesses, what every call takes as the quickest rows tell."""
    quickest = float(np.quantile(seconds, 0.01))
    told = {name: share * quickest for name, share in QUICKEST_SHARE.items()}
    return np.array([told.get(name, guess) for name, guess in form.guesses.items()])


def _errors_of(
    form: Form, columns: Floats, seconds: Floats, formats: Formats, machine: Machine, codes: tuple[float, ...]
) -> Callable[[Floats], Floats]:
    """Return the function from log parameters to weighted log errors, with the pull towards the form's guess."""
    centre = np.log(_guess(form, seconds))
    spread = np.array([SPREADS.get(name, SPREAD) for name in form.guesses])
    weight = 1.0 / (1.0 + TIMER_S / seconds)
    prior = PRIOR_WEIGHT * np.sqrt(len(seconds)) / spread

    def errors(logs: Floats) -> Floats:
        predicted = form.evaluate(columns, formats, machine, np.append(np.exp(logs), codes))[:, 0]
        return np.append(softened(weight * np.log(predicted / seconds)), prior * (logs - centre))

    return errors


def limits(form: Form) -> tuple[Floats, Floats]:
    """Return the lowest and highest log of each positive parameter: an efficiency is at most 1, and so on."""
    bounds = []
    for name, guess in form.guesses.items():
        low, high = WAITS if name in QUICKEST_SHARE else (guess / WIDEST, guess * WIDEST)
        for ending, (least, most) in LIMITS.items():
            if name.endswith(ending):
                low, high = max(low, least), min(high, most)
        bounds.append((np.log(low), np.log(high)))
    lowest, highest = np.array(bounds).T
    return lowest, highest


def softened(errors: Floats) -> Floats:
    """Return errors whose squares grow like the errors themselves beyond the soft scale."""
    squares = 2.0 * (np.sqrt(1.0 + (errors / SOFT_SCALE) ** 2) - 1.0)
    return np.asarray(SOFT_SCALE * np.sign(errors) * np.sqrt(squares))
