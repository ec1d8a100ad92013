"""What a policy may ask for: a closed set of actions, each checked in one place against what physics allows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.actions import CANCEL, DEPART, FAIL, PIN, PUSH_OUT, REJECT, REPRICE, SETTLE, SUBMIT, UNPIN, WITHDRAW
from simulator.fleet import ROLES
from simulator.layout import COMING, DECODING, FINISHED, HELD, NONE, WAITING

if TYPE_CHECKING:
    from simulator.control.plane import Plane


@dataclass(frozen=True, slots=True)
class Assign:
    """Queue a request that is at the gateway at a lane."""

    request: int
    lane: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take a waiting request back from the queue it is in: to the gateway, or to where its KV is."""

    request: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request for its client."""

    request: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Turn a request at the gateway away."""

    request: int


@dataclass(frozen=True, slots=True)
class Depart:
    """Take a decoding request out of its batch at the end of the step under way; its KV stays until it is moved."""

    request: int


@dataclass(frozen=True, slots=True)
class Open:
    """Let a lane take requests."""

    lane: int


@dataclass(frozen=True, slots=True)
class Close:
    """Let a lane take no more requests; those it has go on."""

    lane: int


@dataclass(frozen=True, slots=True)
class Fail:
    """Lose a lane with all it holds."""

    lane: int


@dataclass(frozen=True, slots=True)
class SetRole:
    """Let a lane serve whole requests, prompts only, or answers only, from the next request on."""

    lane: int
    role: str


@dataclass(frozen=True, slots=True)
class SetVariant:
    """Price a lane's steps from its pool's table of this index, from the next step on: a share, a slow device."""

    lane: int
    variant: int


@dataclass(frozen=True, slots=True)
class SetLimit:
    """Change one of a lane's limits, from the next step on."""

    lane: int
    name: str
    value: int


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep the prompt of a request that is done in the cache of the lane it ended on, as far as it is there."""

    done: int


@dataclass(frozen=True, slots=True)
class Unpin:
    """Let what was pinned for a request be evicted again."""

    done: int


@dataclass(frozen=True, slots=True)
class PushOut:
    """Evict what of a request's prompt nobody uses from the lane it ended on, to the tiers below where it has any."""

    done: int


Action = (
    Assign
    | Withdraw
    | Cancel
    | Refuse
    | Depart
    | Open
    | Close
    | Fail
    | SetRole
    | SetVariant
    | SetLimit
    | Pin
    | Unpin
    | PushOut
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An action that physics did not allow, and why."""

    action: Action
    why: str


LIMITS = ("max_batched_tokens", "long_prefill_tokens", "watermark_blocks")


def refusal(plane: "Plane", action: Action) -> str | None:
    """Return why an action cannot be done now, or None."""
    if hasattr(action, "lane") and not 0 <= action.lane < len(plane.lanes):
        return f"no lane {action.lane}; the fleet has 0 to {len(plane.lanes) - 1}"
    if hasattr(action, "request") and plane.slot(action.request) == NONE:
        return f"request {action.request} is done, or has not come"
    check = _CHECKS.get(type(action))
    return check(plane, action) if check else None


def _check_assign(plane: "Plane", action: Assign) -> str | None:
    if plane.status(action.request) not in (COMING, HELD):
        return "the request is not at the gateway"
    if not plane.serves(action.request)[action.lane]:
        return "the lane serves other models"
    return None if plane.is_open[action.lane] else "the lane is closed"


def _check_withdraw(plane: "Plane", action: Withdraw) -> str | None:
    return None if plane.status(action.request) == WAITING else "the request waits in no queue"


def _check_refuse(plane: "Plane", action: Refuse) -> str | None:
    return None if plane.status(action.request) in (COMING, HELD) else "the request is not at the gateway"


def _check_cancel(plane: "Plane", action: Cancel) -> str | None:
    return None if COMING < plane.status(action.request) < FINISHED else "the request is not in flight"


def _check_depart(plane: "Plane", action: Depart) -> str | None:
    return None if plane.status(action.request) == DECODING else "the request is not decoding"


def _check_done(plane: "Plane", action: Pin | Unpin | PushOut) -> str | None:
    in_trace = 0 <= action.done < len(plane.requests)
    return None if in_trace and plane.status(action.done) == FINISHED else "the request is not finished"


def _check_open(plane: "Plane", action: Open) -> str | None:
    return "the lane is open" if plane.is_open[action.lane] else None


def _check_close(plane: "Plane", action: Close) -> str | None:
    return None if plane.is_open[action.lane] else "the lane is closed"


def _check_role(plane: "Plane", action: SetRole) -> str | None:
    return None if action.role in ROLES else f"unknown role {action.role!r}; known: {', '.join(ROLES)}"


def _check_variant(plane: "Plane", action: SetVariant) -> str | None:
    known = len(plane.pool_of(action.lane).variants)
    return None if 0 <= action.variant <= known else f"the pool has variants 0 to {known}"


def _check_limit(plane: "Plane", action: SetLimit) -> str | None:
    if action.name not in LIMITS:
        return f"unknown limit {action.name!r}; known: {', '.join(LIMITS)}"
    if action.name == "watermark_blocks" and action.value > plane.lanes["total_blocks"][action.lane] // 10:
        return "a watermark is at most a tenth of the lane's blocks"
    return None if action.value >= 1 else "a limit is at least 1"


_CHECKS: dict[type, Callable[[Any, Any], str | None]] = {
    Assign: _check_assign,
    Withdraw: _check_withdraw,
    Refuse: _check_refuse,
    Cancel: _check_cancel,
    Depart: _check_depart,
    Open: _check_open,
    Close: _check_close,
    SetRole: _check_role,
    SetVariant: _check_variant,
    SetLimit: _check_limit,
    Pin: _check_done,
    Unpin: _check_done,
    PushOut: _check_done,
}


def perform(plane: "Plane", action: Action) -> None:
    """Do an action that is allowed."""
    _PERFORM[type(action)](plane, action)


def _assign(plane: "Plane", action: Assign) -> None:
    plane.held.pop(action.request, None)
    plane.act(SUBMIT, plane.slot(action.request), action.lane)


def _withdraw(plane: "Plane", action: Withdraw) -> None:
    plane.act(WITHDRAW, plane.slot(action.request))
    if plane.status(action.request) == HELD:
        plane.held[action.request] = None


def _cancel(plane: "Plane", action: Cancel) -> None:
    plane.act(CANCEL, plane.slot(action.request))


def _refuse(plane: "Plane", action: Refuse) -> None:
    plane.act(REJECT, plane.slot(action.request))


def _depart(plane: "Plane", action: Depart) -> None:
    plane.act(DEPART, plane.slot(action.request))


def _open(plane: "Plane", action: Open) -> None:
    plane.lanes["cost"][action.lane] = plane.costs[action.lane]
    plane.is_open[action.lane] = True
    plane.act(SETTLE, lane=action.lane)
    plane.offer_all()


def _close(plane: "Plane", action: Close) -> None:
    plane.lanes["cost"][action.lane] = np.inf
    plane.is_open[action.lane] = False
    plane.act(SETTLE, lane=action.lane)


def _fail(plane: "Plane", action: Fail) -> None:
    if plane.is_open[action.lane]:
        _close(plane, Close(action.lane))
    plane.act(FAIL, lane=action.lane)


def _set_role(plane: "Plane", action: SetRole) -> None:
    plane.lanes["role"][action.lane] = ROLES.index(action.role)


def _set_variant(plane: "Plane", action: SetVariant) -> None:
    plane.act(REPRICE, lane=action.lane, amount=int(plane.first_variants[action.lane]) + action.variant)


def _set_limit(plane: "Plane", action: SetLimit) -> None:
    plane.lanes[action.name][action.lane] = action.value


def _pin(plane: "Plane", action: Pin) -> None:
    plane.act(PIN, action.done, amount=plane.content_blocks(action.done))


def _unpin(plane: "Plane", action: Unpin) -> None:
    plane.act(UNPIN, action.done)


def _push_out(plane: "Plane", action: PushOut) -> None:
    lane = int(plane.requests["lane"][action.done])
    plane.act(PUSH_OUT, action.done, lane, plane.content_blocks(action.done))


_PERFORM: dict[type, Callable[[Any, Any], None]] = {
    Assign: _assign,
    Withdraw: _withdraw,
    Cancel: _cancel,
    Refuse: _refuse,
    Depart: _depart,
    Open: _open,
    Close: _close,
    Fail: _fail,
    SetRole: _set_role,
    SetVariant: _set_variant,
    SetLimit: _set_limit,
    Pin: _pin,
    Unpin: _unpin,
    PushOut: _push_out,
}
