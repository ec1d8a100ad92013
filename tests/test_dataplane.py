"""The data plane against theory, against step-by-step runs and against its naive twin."""

import math
from dataclasses import replace

import naive_replay
import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

import traces
import traces.parquet
from models.compiled import bound
from models.engine import reserve_of
from models.speculation import Speculation
from simulator.advance import advance
from simulator.fleet import Fleet, Link, Pool
from simulator.layout import CANCELLED, FAR, FINISHED
from simulator.replay import NO_CONTENTS, Course, replay
from simulator.routing import ROUTERS
from simulator.stream import replay_blocks
from simulator.tier import EVICTIONS, Tier
from traces.trace import Labels, take

MS = 1e-3
STATUSES = {"finished": FINISHED, "cancelled": CANCELLED}


def random_case(seed: int):
    """Return a small random trace and fleet: tight blocks, odd limits, pipelines, every router."""
    rng, later = np.random.default_rng(seed), np.random.default_rng([seed, 1])  # later: what later features draw
    pools = []
    for index in range(rng.integers(1, 4)):
        block_tokens = int(rng.choice([1, 4, 16]))
        total_blocks = int(rng.integers(80, 200)) // block_tokens + 2
        bounds = toys.limits(
            max_sequences=int(rng.integers(1, 9)),
            max_batched_tokens=int(rng.integers(8, 65)),
            block_tokens=block_tokens,
            total_blocks=total_blocks,
            long_prefill_tokens=int(rng.choice([5, 1000])),
            max_context_tokens=total_blocks * block_tokens,
            asynchronous=bool(rng.random() < 0.4),
            caching=bool(rng.random() < 0.6),
            prefill_first=bool(rng.random() < 0.2),
            reserves=bool(rng.random() < 0.2),
            by_priority=bool(rng.random() < 0.3),
            swap_ps_per_token=int(rng.choice([0, 0, 1_000_000])),
        )
        stages = int(rng.choice([1, 1, 2]))
        bounds = replace(bounds, **reserve_of(float(later.choice([0.0, 0.0, 0.3, 0.7]))))
        bounds = replace(bounds, **random_swap(np.random.default_rng([seed, index, 5])))
        engine = toys.engine(
            bounds,
            name=f"toy{index}",
            stages=stages,
            ranks=int(later.choice([1, 1, 2, 3])) if stages == 1 else 1,
            step_ps=int(rng.integers(1, 3 * toys.PS_PER_MS)),
            token_ps=int(rng.integers(0, 10_000_000)),
            sequence_ps=int(rng.integers(0, 1_000_000)),
            pair_ps=int(rng.integers(0, 100_000)),
            kv_bytes=float(rng.choice([0.0, 1e6])),
            speculation=random_speculation(later, bounds) if later.random() < 0.25 else None,
            rng=rng,
        )
        pools.append(Pool(engine, int(rng.integers(1, 4)), speed=float(rng.choice([1.0, 2.0]))))
    pools = with_tiers(np.random.default_rng([seed, 2]), pools)
    pools = with_evictions(np.random.default_rng([seed, 4]), pools)
    if len(pools) > 1 and rng.random() < 0.4:
        pools = [*(replace(pool, role="prefill") for pool in pools[:-1]), replace(pools[-1], role="decode")]
    count = int(rng.integers(1, 80))
    gaps_s = rng.exponential(float(rng.choice([0.1, 2.0, 20.0])) * MS, count)
    inputs, outputs = rng.integers(1, 60, count), rng.integers(1, 60, count)
    contents = [shared_content(rng, tokens) for tokens in inputs] if rng.random() < 0.5 else None
    owners = np.random.default_rng([seed, 3]).integers(-1, 2, count).astype(np.int32)
    columns = {"priority": rng.integers(-1, 3, count), "tenant": Labels(owners, ("a", "b"))}
    trace = toys.trace(np.cumsum(gaps_s), inputs, outputs, contents, **columns)
    link = Link(bytes_per_s=1e10, latency_s=float(rng.choice([0.0, 1e-4])), is_layerwise=bool(rng.random() < 0.5))
    patience_s = float(rng.choice([0.02, 0.1])) if rng.random() < 0.3 else math.inf
    router = str(rng.choice(list(ROUTERS)))
    limit_s = float(later.choice([0.01, 0.05, math.inf]))
    return trace, Fleet(
        tuple(pools), router, input_edges=(0, 20), link=link, patience_s=patience_s, ttft_limit_s=limit_s
    )


def random_swap(rng):
    """Return how KV is swapped: in operations of so many blocks, with copies kept or not."""
    return {
        "swap_operation_ps": int(rng.choice([0, 3_000_000])),
        "swap_operation_blocks": int(rng.choice([1, 3])),
        "swap_keeps_copies": bool(rng.random() < 0.5),
    }


def with_tiers(rng, pools):
    """Return the pools, most of those that cache with tiers below their memory."""
    return [
        replace(pool, tiers=random_tiers(rng), fetches=str(rng.choice(["before", "layer-wise", "outside"])))
        if pool.engine.limits.caching and pool.engine.kv_bytes_per_token and rng.random() < 0.7
        else pool
        for pool in pools
    ]


def with_evictions(rng, pools):
    """Return the pools, some of those that cache with another eviction from their memory."""
    return [
        replace(
            pool,
            eviction=str(rng.choice(["lru", "s3-fifo"])),
            quotas={"a": 0.5, "b": 0.2} if rng.random() < 0.4 else {},
        )
        if pool.engine.limits.caching and rng.random() < 0.4
        else pool
        for pool in pools
    ]


def random_tiers(rng):
    """Return one or two tiers of a few prompts each, the last perhaps one that replicas share."""
    count = int(rng.integers(1, 3))
    return tuple(
        Tier(
            f"tier{place}",
            float(rng.integers(20, 400)) * 1e6,
            float(rng.choice([1e9, 1e11])),
            latency_s=float(rng.choice([0.0, 1e-4])),
            operation_s=float(rng.choice([0.0, 1e-5])),
            operation_blocks=int(rng.choice([1, 4])),
            is_shared=place == count - 1 and rng.random() < 0.5,
            total_bytes_per_s=float(rng.choice([2e9, math.inf])),
            eviction=str(rng.choice(EVICTIONS)),
            quotas={"a": 0.5, "b": 0.2} if rng.random() < 0.3 else {},
            writes_through=bool(rng.random() < 0.4),
            moves_up=bool(rng.random() < 0.3),
        )
        for place in range(count)
    )


def random_speculation(rng, bounds):
    """Return a draft that fits the token budget, or None."""
    most = bounds.max_batched_tokens // bounds.max_sequences - 1
    if most < 1:
        return None
    acceptance = float(rng.choice([0.0, 0.3, 0.77, 1.0]))
    return Speculation(int(rng.integers(1, min(4, most) + 1)), acceptance, draft_share=0.1)


def shared_content(rng, tokens):
    """Return the content blocks of a prompt: a path down a tree of few branches; a last, partial block by its size."""
    path, blocks = 1, []
    for place in range(0, tokens, 16):
        path = 3 * path + int(rng.integers(0, 2))
        blocks.append(100 * path + min(16, tokens - place))
    return blocks


def outcome(run):
    """Return what became of each request, one row each."""
    return np.stack([column.astype(np.int64) for column in run.outcome], axis=-1)


@pytest.mark.parametrize("block", range(10))
def test_fast_forward_single_steps_and_the_naive_twin_agree_to_the_last_bit(block):
    preempted = rejected = cached = cancelled = 0
    for seed in range(20 * block, 20 * block + 20):
        trace, fleet = random_case(seed)
        fast, slow = replay(trace, fleet), replay(trace, fleet, fast_forward=False)
        assert (outcome(fast) == outcome(slow)).all(), seed
        assert (outcome(fast) == outcome(replay(trace, fleet, chunk_requests=7))).all(), seed
        for row, twin in zip(outcome(fast), naive_replay.replay(trace, fleet), strict=True):
            row = dict(zip(fast.outcome._fields, row.tolist(), strict=True))
            if twin.status == "rejected":
                rejected += 1
                continue
            assert row["status"] == STATUSES[twin.status], seed
            if twin.status == "cancelled":
                cancelled += 1
                assert row["finish_ps"] == twin.finish_ps, seed
                continue
            assert (row["lane"], row["scheduled_ps"]) == (twin.lane, twin.scheduled_ps), seed
            assert (row["first_token_ps"], row["finish_ps"]) == (twin.first_token_ps, twin.finish_ps), seed
            assert row["joined_ps"] == (FAR if twin.joined_ps is None else twin.joined_ps), seed
            assert row["preemptions"] == twin.preemptions, seed
            assert row["cached_tokens"] == twin.cached_tokens, seed
            cached += twin.cached_tokens
            preempted += twin.preemptions
    assert preempted > 0, "the cases must be tight enough to preempt"
    assert cached > 0, "the cases must share prompts"


@pytest.mark.parametrize("seed", [1131, 1772, 2120])
def test_a_step_that_swaps_is_not_cut_short_of_it(seed):
    trace, fleet = random_case(seed)
    assert (outcome(replay(trace, fleet)) == outcome(replay(trace, fleet, fast_forward=False))).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1000, 10**9))
def test_requests_are_neither_lost_nor_made_and_blocks_come_back(seed):
    trace, fleet = random_case(seed)
    run = replay(trace, fleet)
    counts = run.counts()
    assert counts["arrived"] == len(trace) == counts["finished"] + counts["rejected"] + counts["failed"]
    assert counts["in_flight"] == 0
    lanes, rows = run.lanes, run.outcome
    assert (lanes["free_blocks"] == lanes["total_blocks"]).all()
    assert (lanes["context_tokens"] == 0).all()
    assert (lanes["prefilled_tokens"] == 0).all()
    finished = run.is_finished
    assert (run.arrival_ps <= rows.scheduled_ps)[finished].all()
    assert (rows.scheduled_ps < rows.first_token_ps)[finished].all()
    assert (rows.first_token_ps <= rows.finish_ps)[finished].all()
    assert ((rows.first_token_ps == rows.finish_ps) == (trace.output_tokens == 1))[finished].all()


def test_one_request_alone_takes_one_step_a_token():
    run = replay(toys.trace([0.0], 10, 5), toys.fleet())
    assert run.ttft_s[0] == 1 * MS
    assert run.e2e_s[0] == 5 * MS
    assert run.tpot_s[0] == pytest.approx(1 * MS, rel=1e-12)


def test_a_long_prompt_is_prefilled_in_chunks_of_the_token_budget():
    # 150 tokens through a budget of 64: three steps of 1 ms.
    run = replay(toys.trace([0.0], 150, 1), toys.fleet())
    assert run.ttft_s[0] == pytest.approx(3 * MS, rel=1e-12)


def test_decodes_and_a_prefill_share_the_token_budget():
    # Second prompt of 64 tokens meets one decode: 63 tokens in the first step, one in the next.
    run = replay(toys.trace([0.0, 0.0015], [10, 64], [10, 1]), toys.fleet())
    assert run.ttft_s[1] == pytest.approx(2.5 * MS, rel=1e-12)


def test_sequences_beyond_the_limit_wait():
    run = replay(toys.trace(np.zeros(9), 1, 10), toys.fleet())
    # One starts alone at 0, seven join at 1 ms; the ninth waits for the first to end at 10 ms.
    assert sorted(np.rint(run.ttft_s * 1e3).tolist()) == [1, 2, 2, 2, 2, 2, 2, 2, 11]


def test_without_blocks_the_last_admitted_is_preempted_and_computes_again():
    bounds = toys.limits(total_blocks=6, max_context_tokens=24)
    run = replay(toys.trace([0.0, 0.0], 8, 12), Fleet((Pool(toys.engine(bounds), 1),)))
    assert run.outcome.preemptions.tolist() == [0, 1]
    assert run.counts()["finished"] == 2


def test_a_request_that_can_never_fit_is_rejected():
    run = replay(toys.trace([0.0, 0.0], [100, 10], [101, 1]), toys.fleet())
    assert run.counts() == {"arrived": 2, "finished": 1, "rejected": 1, "failed": 0, "in_flight": 0}


def test_a_pipeline_of_two_stages_doubles_throughput_but_not_latency():
    one = replay(toys.trace(np.zeros(2), 1, 100), Fleet((Pool(toys.engine(toys.limits(max_sequences=1)), 1),)))
    two = replay(
        toys.trace(np.zeros(2), 1, 100), Fleet((Pool(toys.engine(toys.limits(max_sequences=1), stages=2), 1),))
    )
    assert one.span_s == pytest.approx(0.200)
    assert two.span_s == pytest.approx(0.1005)


def test_a_python_router_replaces_the_built_in_one():
    trace = toys.trace(np.arange(6) * 0.01, 4, 2)
    run = replay(trace, toys.fleet(3), router=lambda request, view: request.number % 3)
    assert run.outcome.lane.tolist() == [0, 1, 2, 0, 1, 2]
    assert (outcome(run) == outcome(replay(trace, toys.fleet(3, "round-robin")))).all()


def test_a_python_shortest_queue_equals_the_built_in_one():
    trace, _ = random_case(7)
    run = replay(trace, toys.fleet(3), router=lambda request, view: int(np.argmin(view.outstanding)))
    assert (outcome(run) == outcome(replay(trace, toys.fleet(3)))).all()


def test_a_bound_kernel_is_the_kernel():
    run = Course(toys.fleet(2), NO_CONTENTS)
    arguments = (run.state, run.plan, 0, -1, -1, -1)
    entry = bound(advance, *arguments)
    assert entry(*arguments) is None
    assert entry is not advance
    assert bound(len, []) is len


def test_a_python_router_that_names_no_lane_is_told_so():
    with pytest.raises(ValueError, match="named lane 3 for request 0; the fleet has 0 to 2"):
        replay(toys.trace([0.0], 1, 1), toys.fleet(3), router=lambda request, view: 3)


def test_the_same_replay_twice_gives_the_same_bytes():
    trace, fleet = random_case(11)
    assert outcome(replay(trace, fleet)).tobytes() == outcome(replay(trace, fleet)).tobytes()


def test_an_infinite_cache_finds_all_that_the_trace_repeats(shared):
    trace = traces.read(shared / "traces" / "mooncake" / "conversation_trace.jsonl.gz")
    bounds = toys.limits(
        max_sequences=512,
        max_batched_tokens=1 << 18,
        block_tokens=16,
        total_blocks=1 << 30,
        max_context_tokens=1 << 20,
        caching=True,
    )
    run = replay(trace, Fleet((Pool(toys.engine(bounds, cell_shift=28, step_ps=1), 1),)))
    found = run.outcome.cached_tokens.sum() / trace.input_tokens.sum()
    assert found == traces.statistics.prefix_reuse(trace)["token_hit_infinite"]
    assert found == pytest.approx(0.374, abs=5e-4)


@pytest.mark.parametrize("block", [113, 10_000])
def test_a_streamed_replay_equals_one_of_the_whole_trace(block):
    rng = np.random.default_rng(3)
    trace = toys.trace(
        np.cumsum(rng.exponential(0.002, 20_000)), rng.integers(1, 60, 20_000), rng.integers(1, 9, 20_000)
    )
    blocks = (take(trace, slice(start, start + block)) for start in range(0, len(trace), block))
    whole, streamed = replay(trace, toys.fleet(3)), replay_blocks(blocks, toys.fleet(3))
    assert streamed.requests == len(trace)
    assert np.array_equal(streamed.columns["ttft_s"], whole.ttft_s)
    assert np.array_equal(streamed.columns["tpot_s"], whole.tpot_s, equal_nan=True)


def test_a_trace_file_is_replayed_row_group_by_row_group(tmp_path):
    rng = np.random.default_rng(4)
    count = 3 * traces.parquet.ROW_GROUP_ROWS // 2
    trace = toys.trace(np.cumsum(rng.exponential(0.002, count)), 9, rng.integers(1, 9, count))
    path = tmp_path / "long.parquet"
    traces.write(trace, path)
    streamed = replay_blocks(traces.parquet.read_blocks(path), toys.fleet(3))
    assert np.array_equal(streamed.columns["ttft_s"], replay(trace, toys.fleet(3)).ttft_s)


def handing_over(**link):
    """One replica prefills, one decodes; KV of a token is 1 MB and the link carries 1 MB in 1 ms."""
    engine = toys.engine(kv_bytes=1e6)
    pools = (Pool(engine, 1, role="prefill"), Pool(engine, 1, role="decode"))
    return Fleet(pools, link=Link(bytes_per_s=1e9, **{"latency_s": 0.0, **link}))


def test_kv_moves_to_the_decode_lane_in_latency_plus_bytes_over_bandwidth():
    # Prefill 1 ms, 10 tokens of KV 10 ms and 2 ms of latency, then two decode steps.
    run = replay(toys.trace([0.0], 10, 3), handing_over(latency_s=0.002))
    assert run.ttft_s[0] == 1 * MS
    assert run.e2e_s[0] == pytest.approx(15 * MS, rel=1e-12)
    assert run.outcome.lane[0] == 1


def test_kv_of_two_requests_shares_the_link_one_after_the_other():
    run = replay(toys.trace([0.0, 0.0], 10, 2), handing_over())
    # The first prefill ends at 1 ms, the second at 2 ms: the link is busy from 1 to 21 ms.
    assert np.rint(run.e2e_s * 1e3).tolist() == [12, 22]


def test_layer_by_layer_only_what_the_prefill_did_not_hide_remains():
    engine = replace(toys.engine(kv_bytes=1e5), layers=10)
    pools = (Pool(engine, 1, role="prefill"), Pool(engine, 1, role="decode"))
    for tokens, remaining_ms in (
        (10, 0.1),
        (40, 3.0),
    ):  # 1 ms of KV hides but for a layer; 4 ms but for the step's 1 ms
        link = Link(bytes_per_s=1e9, latency_s=0.0, is_layerwise=True)
        run = replay(toys.trace([0.0], tokens, 2), Fleet(pools, link=link))
        assert run.e2e_s[0] == pytest.approx((1 + remaining_ms + 1) * MS, rel=1e-9)


def test_a_client_without_patience_gives_up_wherever_its_request_is():
    fleet = replace(toys.fleet(max_sequences=1), patience_s=0.0105)
    run = replay(toys.trace([0.0, 0.0], 10, [5, 50]), fleet)
    assert run.counts() == {"arrived": 2, "finished": 1, "rejected": 0, "failed": 1, "in_flight": 0}
    # It decodes from 5 to 11 ms: the step under way when it gave up is its last.
    assert run.outcome.finish_ps[1] == 11 * toys.PS_PER_MS
    assert (run.lanes["free_blocks"] == run.lanes["total_blocks"]).all()


def test_pools_that_decode_only_need_pools_that_prefill_only():
    pool = Pool(toys.engine(), 1)
    with pytest.raises(ValueError, match="need pools that only decode"):
        Fleet((replace(pool, role="prefill"),))
    with pytest.raises(ValueError, match="come after all others"):
        Fleet((replace(pool, role="decode"), replace(pool, role="prefill")))
    with pytest.raises(ValueError, match="unknown role 'both ways'; known: both, prefill, decode"):
        Fleet((replace(pool, role="both ways"),))


def test_chunks_that_arrive_at_one_instant_are_all_served():
    run = replay(toys.trace(np.zeros(20), 1, 2), toys.fleet(2), chunk_requests=3)
    assert run.counts()["finished"] == 20


@pytest.mark.parametrize("by_priority", [False, True])
def test_what_cannot_be_in_time_keeps_few_others_waiting(by_priority):
    # Steps of 64 tokens take 7.4 ms. Of 40 prompts at once, two lanes do six within 30 ms; the others are late whatever
    # is done. One more comes every 10 ms, which a single lane that is kept free can serve at once.
    trace = toys.trace([0.0] * 40 + [0.01 * (1 + i) for i in range(40)], 64, 1)
    costs = {"bounds": toys.limits(by_priority=by_priority), "token_ps": 100_000_000}
    foreseen = replay(trace, replace(toys.fleet(2, "in-time", **costs), ttft_limit_s=0.0299))
    shortest = replay(trace, toys.fleet(2, **costs))
    late, late_otherwise = (int((run.metric_s("ttft") > 0.0375).sum()) for run in (foreseen, shortest))
    assert 30 <= late <= 36 < late_otherwise
