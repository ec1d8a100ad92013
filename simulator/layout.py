"""The rows of a run: what is kept for each request in flight, each lane, and the run as a whole."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.reference import by_reference
from models.step import PRICED

FAR = np.int64(1 << 62)  # of numpy, for kernels would be compiled once more for a constant of Python
NONE = -1

COMING, WAITING, PREFILLING, DECODING = 0, 1, 2, 3
LOADING, READY = 4, 5  # its KV is on its way to another lane, or has come there
HELD, MOVING = 6, 7  # at the gateway with no lane; in no batch, with its KV on its source lane
FINISHED, REJECTED, CANCELLED, VACANT = 8, 9, 10, 11
STAYS, CANCELS, DEPARTS = 0, 1, 2  # what a request does at the end of the step under way
IDLE, DECODE_RUN, MIXED_STEP = 0, 1, 2
BOTH, PREFILL, DECODE = 0, 1, 2  # roles of a lane

# What the control plane may ask to be told of: each a bit.
TELL_FINISHED, TELL_FIRST_TOKEN, TELL_PREFILLED, TELL_DEPARTED = 1, 2, 4, 8
TELL_PREEMPTED, TELL_REFUSED, TELL_CANCELLED, TELL_HELD, TELL_FETCHING = 16, 32, 64, 128, 256

REQUEST = np.dtype(
    [
        ("arrival_ps", "i8"),
        ("enqueued_ps", "i8"),  # when it joined the queue of its lane; before all time after a preemption
        ("queued_ps", "i8"),  # when the scheduler took notice: at the end of the step under way
        ("scheduled_ps", "i8"),  # first time in a batch
        ("joined_ps", "i8"),  # when, handed over, it joined the decodes of its second lane
        ("first_token_ps", "i8"),
        ("finish_ps", "i8"),
        ("joined_step", "i8"),  # the lane's step count when its decoding began
        ("number", "i8"),  # its row in the trace
        ("input_tokens", "i8"),
        ("output_tokens", "i8"),
        ("bucket", "i8"),  # size class that a planned router looks at
        ("lane", "i8"),
        ("status", "i8"),
        ("priority", "i8"),  # lower goes first, where a lane looks at it
        ("swapped_tokens", "i8"),  # KV in host memory since its preemption
        ("preemptions", "i8"),
        ("generated_tokens", "i8"),  # as of its last prefill
        ("computed_tokens", "i8"),  # as of its last prefill chunk
        ("chunk_tokens", "i8"),  # in the running step
        ("last_chunk_ps", "i8"),  # duration of the step that completed its prefill
        ("source_lane", "i8"),  # lane that it left and that still holds its KV, or NONE
        ("is_leaving", "i8"),  # what it will do at the end of the step under way
        ("contents_at", "i8"),  # its content blocks lie there in the contents of the run
        ("contents", "i8"),
        ("held_nodes", "i8"),  # of them, those it shares or could share
        ("held_blocks", "i8"),
        ("own_node", "i8"),  # what it left behind when preempted, after so many shared nodes
        ("own_after_nodes", "i8"),
        ("cached_tokens", "i8"),  # found in the cache when first admitted
        ("next_waiting", "i8"),
        ("next_prefill", "i8"),
        ("previous_running", "i8"),
        ("next_running", "i8"),
        ("leased_lane", "i8"),  # lane that keeps blocks free for it, or NONE
        ("leased_blocks", "i8"),
        ("lands_ps", "i8"),  # when its KV will have come
        ("remote_tokens", "i8"),  # of that, from a shared tier, where the control plane moves it
        ("copied_tokens", "i8"),  # of its KV, what host memory keeps a copy of
        ("told", "i8"),  # bits of what the control plane wants to be told of this very request
    ],
    align=True,
)

LANE = np.dtype(
    [
        *PRICED,
        ("number", "i8"),
        ("pool", "i8"),
        ("role", "i8"),
        ("stages", "i8"),  # pipeline depth
        ("ranks", "i8"),  # lanes of the replica that step together
        ("first_rank", "i8"),
        ("max_sequences", "i8"),
        ("max_batched_tokens", "i8"),
        ("long_prefill_tokens", "i8"),
        ("chunked_prefill", "i8"),
        ("prefill_first", "i8"),  # prefills go alone, before decodes
        ("reserves", "i8"),  # admits only what can finish without preemption
        ("reserved_blocks", "i8"),
        ("reserve", "i8"),  # part of the answers to come that admission leaves room for, in 1 / 2**20; see reserve.py
        ("reserve_least", "i8"),
        ("reserve_fall", "i8"),  # of the part, with each decode step; 0 where nothing is reserved so
        ("is_short", "i8"),  # the head of the queue waits for the part to fall
        ("by_priority", "i8"),
        ("swap_ps_per_token", "i8"),  # each way; 0 where preempted requests compute again
        ("swap_ps", "i8"),  # that the coming step spends on swapping
        ("asynchronous", "i8"),  # steps are formed while the one before runs
        ("block_shift", "i8"),  # log2 of the tokens in a KV block
        ("part_shift", "i8"),  # log2 of the parts of a token that contexts grow by
        ("period_shift", "i8"),  # log2 of the steps after which decodes take blocks in the same steps again
        ("total_blocks", "i8"),
        ("watermark_blocks", "i8"),
        ("max_context_tokens", "i8"),
        ("cost", "f8"),  # what one more request weighs, relative to other lanes; infinite where none may come
        ("load", "f8"),  # its weighed queue, one more request counted
        ("load_tree", "i8"),  # where its router's tournament lies, NONE where it has none
        ("load_leaf", "i8"),
        ("finishes_at", "i8"),  # heap of (step, request): when decoding requests end
        ("crossings_at", "i8"),  # [phase]: blocks that decoding requests need at steps = phase
        ("stages_at", "i8"),  # [stage]: when the replica's stages are free
        ("activity", "i8"),
        ("start_ps", "i8"),
        ("end_ps", "i8"),
        ("formed_ps", "i8"),  # when the step after the one that ended was formed
        ("run_steps", "i8"),
        ("chunks", "i8"),  # of prompts, in the running step
        ("new_tokens", "i8"),
        ("steps", "i8"),  # steps in which decodes took part
        ("decoding", "i8"),
        ("running", "i8"),
        ("waiting", "i8"),
        ("outstanding", "i8"),
        ("context_tokens", "i8"),  # KV tokens held by decoding requests
        ("context_parts", "i8"),  # and parts of a token beyond
        ("prefilled_tokens", "i8"),  # KV tokens held by requests in prefill, the running chunk included
        ("free_blocks", "i8"),
        ("is_eroding", "i8"),  # the head of the queue waits for blocks, and decodes take those it hopes to find cached
        ("late_blocks", "i8"),  # of them, those that an asynchronous scheduler does not know of yet
        ("late_finishes", "i8"),
        ("loading", "i8"),  # requests whose KV is on its way here
        ("leaving", "i8"),  # running requests that were cancelled
        ("first_ready", "i8"),  # requests whose KV has come, through next_waiting
        ("last_ready", "i8"),
        ("link_ps_per_token", "i8"),  # of KV leaving a prefill lane
        ("link_latency_ps", "i8"),
        ("link_layers", "i8"),  # KV leaves in so many parts while the last chunk is computed; 0: after it
        ("link_free_ps", "i8"),
        ("caching", "i8"),
        ("oldest_node", "i8"),  # queue of free blocks with content: the first to be taken
        ("newest_node", "i8"),
        ("plain_blocks", "i8"),  # free blocks after the newest node
        ("first_waiting", "i8"),
        ("last_waiting", "i8"),
        ("first_prefill", "i8"),
        ("last_prefill", "i8"),
        ("last_running", "i8"),
        ("scheduled_steps", "i8"),
        ("preemptions", "i8"),
        ("busy_ps", "i8"),
        ("assigned", "i8"),
        ("variant", "i8"),  # whose prices its steps have
        ("next_variant", "i8"),  # those from the next step on
        ("twin", "i8"),  # lane of the same device that shares its KV blocks, or NONE
        ("waiting_tokens", "i8"),  # of the requests in its queue, to be computed
        ("fetching", "i8"),  # requests that wait for tiers outside the batch
        ("swap_operation_ps", "i8"),  # of moving so many blocks to host memory or back
        ("swap_operation_blocks", "i8"),
        ("swap_keeps_copies", "i8"),  # what was swapped in stays in host memory, and need not be written again
        ("shelves_at", "i8"),  # of the free blocks with content, NONE where they lie in one queue; see shelves.py
        ("tiers_at", "i8"),  # what it knows of the tiers below its memory, or NONE; see tiers.py
    ],
    align=True,
)

NODE = np.dtype(
    [
        ("content", "i8"),  # a content block of the trace, or -1 - slot of a preempted request
        ("blocks_before", "i8"),
        ("lane", "i8"),  # or, counted on from the last lane, the place of the store that keeps it
        ("blocks", "i8"),  # what has not been taken again
        ("whole_blocks", "i8"),
        ("refs", "i8"),
        ("previous", "i8"),
        ("next", "i8"),
        ("next_in_bucket", "i8"),
        ("shelf", "i8"),  # place of the list that it is in, of a store's
        ("reads", "i8"),  # from there
        ("ready_ps", "i8"),  # when it has been written there; FAR where only its name is known
    ],
    align=True,
)

CLOCK = np.dtype(
    [
        ("next_coming", "i8"),  # how many of the coming requests have arrived
        ("coming", "i8"),  # how many there are
        ("next_lane", "i8"),  # of round robin
        ("router", "i8"),
        ("fast_forward", "i8"),
        ("lane_events", "i8"),
        ("events_at", "i8"),  # tournament of lanes by end_ps
        ("event_leaves", "i8"),
        ("content_tokens", "i8"),  # in a content block of the trace
        ("vacant_node", "i8"),
        ("front_lanes", "i8"),  # those that requests arrive at: all but decode lanes, which come last
        ("decode_tree", "i8"),
        ("patience_ps", "i8"),  # after which a client gives up, or FAR
        ("log_from_ps", "i8"),  # steps that take place between these are written down
        ("log_until_ps", "i8"),
        ("logged", "i8"),
        ("not_logged", "i8"),  # for want of room
        ("timers", "i8"),
        ("now_ps", "i8"),  # of the last event
        ("done", "i8"),  # requests finished, refused or cancelled
        ("told", "i8"),  # bits of what the control plane wants to be told of
        ("notices", "i8"),
        ("hands_over", "i8"),  # whether the data plane moves what was prefilled, or the control plane does
        ("fetches", "i8"),  # whether the data plane moves what shared tiers have, or the control plane does
        ("tenants_at", "i8"),  # [content block]: the tenant that it counts against, -1 where none is named
    ],
    align=True,
)

LOGGED = np.dtype(
    [
        ("lane", "i8"),
        ("start_ps", "i8"),
        ("end_ps", "i8"),
        ("steps", "i8"),  # more than one where decodes ran without a change of the batch
        ("decodes", "i8"),
        ("chunks", "i8"),
        ("new_tokens", "i8"),  # of prompts
        ("context_tokens", "i8"),  # held by the decodes before the first of the steps
        ("context_parts", "i8"),  # and parts of a token beyond
    ],
    align=True,
)


@by_reference
class State(NamedTuple):
    """Everything that changes during a run, and the prices of its steps.

    words holds, at the places that lanes and clock name, what comes in lists: heaps, tournaments, pipeline stages.
    """

    clock: npt.NDArray[Any]  # one CLOCK
    requests: npt.NDArray[Any]  # REQUEST each: a slot serves one request after another
    lanes: npt.NDArray[Any]  # LANE each
    coming: npt.NDArray[np.int64]  # slots of requests yet to arrive, in order
    words: npt.NDArray[np.int64]
    prices: npt.NDArray[np.int64]
    nodes: npt.NDArray[Any]  # NODE each: cached content
    buckets: npt.NDArray[np.int64]  # of the table from (lane, content) to node
    contents: npt.NDArray[np.int64]  # content blocks of all requests, in order
    timers: npt.NDArray[np.int64]  # heap of what will happen to single requests
    notices: npt.NDArray[np.int64]  # pairs of what the control plane is to be told, and the slot it is about
    variants: npt.NDArray[Any]  # PRICED each: where the prices of a kind of lane lie
    log: npt.NDArray[Any]  # LOGGED each: steps of a window of time
    extras: tuple[int, ...] = ()  # not empty where lanes have tiers below their memory, or shelves in it; else kernels
    # are compiled without all that follows from them


def without_extras(state: State) -> State:
    """Return a state for kernels that look at no extras: so they are compiled once for fleets with and without."""
    return state._replace(extras=())


PS_PER_STEP, PS_PER_PAIR, PATIENCE_PS = 0, 1, 2


@by_reference
class Plan(NamedTuple):
    """What a planned router looks up: each pool's tournament, the planned fractions and those owed so far."""

    trees: npt.NDArray[np.int64]  # [pool]
    shares: npt.NDArray[np.float64]  # [bucket, pool]: planned fraction of requests
    credits: npt.NDArray[np.float64]  # [bucket, pool]: fraction owed so far
    prompts: npt.NDArray[
        np.int64
    ]  # [PS_PER_STEP, PS_PER_PAIR or PATIENCE_PS, lane], for a router that foresees prompts
