"""Role flips: lanes that decode come to the aid of those that prefill while prompts queue there, and go back."""

import numpy as np

from simulator.control.actions import SetRole
from simulator.control.freeness import freeness
from simulator.control.plane import Controller, Plane, Process
from simulator.layout import DECODE, PREFILL


def flipping(high_tokens: float, low_tokens: float, every_s: float = 1.0, least_decoding: int = 1) -> Controller:
    """Return the controller that lets lanes change between prefill and decode, one at a time (xLLM, ElasticMM).

    While more prompt tokens than `high_tokens` wait per lane that prefills, the freest decode lane becomes one of them;
    while fewer than `low_tokens`, the emptiest that was flipped decodes again. What it has under way it ends in its old
    role. For hand-over by a controller, operate(..., hands_over=False), and routing of the control plane.
    """

    def control(plane: Plane) -> Process:
        roles, flipped = plane.lanes["role"], list[int]()
        while True:
            yield plane.wait(every_s)
            prefilling = np.flatnonzero(plane.is_open & (roles == PREFILL))
            decoding = np.flatnonzero(plane.is_open & (roles == DECODE))
            waiting_tokens = plane.lanes["waiting_tokens"][prefilling].sum() / max(1, prefilling.size)
            if waiting_tokens > high_tokens and decoding.size > least_decoding:
                lane = int(decoding[freeness(plane)[decoding].argmax()])
                flipped.append(lane)
                _flip(plane, lane, "prefill")
            elif waiting_tokens < low_tokens and flipped:
                lane = min(flipped, key=lambda each: int(plane.lanes["outstanding"][each]))
                flipped.remove(lane)
                _flip(plane, lane, "decode")

    return control


def _flip(plane: Plane, lane: int, role: str) -> None:
    plane.do(SetRole(lane, role))
    plane.ledger.events.append((plane.now_s, f"lane {lane} is to {role}"))
    plane.offer_all()
