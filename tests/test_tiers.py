"""Tiers below a lane's memory: what is evicted or computed is kept there, and read back over a link."""

from dataclasses import replace

import numpy as np
import pytest
import toys

import traces
from simulator.control.actions import Fail, Open
from simulator.control.plane import operate
from simulator.control.routers import ROUTERS
from simulator.fleet import Fleet, Pool
from simulator.replay import Course, contents_of, replay
from simulator.tier import Tier
from traces.trace import Labels

MS = 1e-3
KV_BYTES = 1e6  # of a token; 1e9 bytes/s carry one a millisecond
PROMPT = 16  # tokens of a content block, which are four blocks


def pool(*tiers, replicas=1, prompts=4, layers=0, fetches="before", max_sequences=8, **costs):
    """Return replicas whose memory holds so many prompts, with steps of a millisecond."""
    blocks = 4 * prompts
    bounds = toys.limits(total_blocks=blocks, caching=True, max_context_tokens=4 * blocks, max_sequences=max_sequences)
    engine = replace(toys.engine(bounds, kv_bytes=KV_BYTES, **costs), layers=max(1, layers))
    return Pool(engine, replicas, tiers=tiers, fetches="layer-wise" if layers else fetches)


def dram(prompts=100, bytes_per_s=1e9, **about):
    """Return a tier that holds so many prompts."""
    return Tier("dram", prompts * PROMPT * KV_BYTES, bytes_per_s, **about)


def asked(names, owners=None, gap_s=0.1, column="tenant"):
    """Return prompts of one content block by name, and a token more, one every 100 ms."""
    contents = [[name, 1000 + place] for place, name in enumerate(names)]
    columns = {} if owners is None else {column: Labels(np.array(owners, np.int32), ("a", "b"))}
    return toys.trace(np.arange(len(names)) * gap_s, PROMPT + 1, 1, contents, **columns)


def found(run):
    """Return which prompts were found, in memory or below."""
    return [int(tokens) // PROMPT for tokens in run.outcome.cached_tokens]


AGAIN = [1, 2, 3, 4, 5, 6, 1]


def test_a_prompt_evicted_from_memory_is_read_back_from_the_tier_below():
    without, run = (replay(asked(AGAIN), Fleet((pool(*tiers),))) for tiers in ((), (dram(latency_s=2 * MS),)))
    assert found(without)[-1] == 0
    assert found(run)[-1] == 1
    # A step of a millisecond, after 16 tokens at one a millisecond and 2 ms of latency.
    assert run.ttft_s[-1] == pytest.approx(19 * MS, rel=1e-9)
    assert run.ttft_s[0] == pytest.approx(1 * MS, rel=1e-9)
    assert run.traffic[0].read_tokens == PROMPT


def test_each_operation_of_so_many_blocks_takes_its_time():
    tiers = [dram(operation_s=1 * MS, operation_blocks=size) for size in (1, 2, 4)]
    runs = [replay(asked(AGAIN), Fleet((pool(tier),))) for tier in tiers]
    assert np.rint([run.ttft_s[-1] / MS for run in runs]).tolist() == [1 + 16 + 4, 1 + 16 + 2, 1 + 16 + 1]


@pytest.mark.parametrize(("step_ms", "whole_ms"), [(4, 16 + 4 / 4), (32, 32 + 16 / 4)])
def test_layer_by_layer_the_longer_of_reading_and_computing_hides_the_other_but_for_a_layer(step_ms, whole_ms):
    run = replay(asked(AGAIN), Fleet((pool(dram(), layers=4, step_ps=step_ms * toys.PS_PER_MS),)))
    assert run.ttft_s[-1] == pytest.approx(whole_ms * MS, rel=1e-9)


@pytest.mark.parametrize(("fetches", "other_ms"), [("before", 16 + 1), ("outside", 1)])
def test_a_prompt_that_waits_outside_the_batch_holds_up_no_other(fetches, other_ms):
    """A prompt of another comes a moment after one that is read for 16 ms."""
    trace = asked([*AGAIN, 99])
    arrival_ns = trace.arrival_ns.copy()
    arrival_ns[-1] = arrival_ns[-2] + 1
    run = replay(replace(trace, arrival_ns=arrival_ns), Fleet((pool(dram(), fetches=fetches, max_sequences=1),)))
    assert found(run)[-2:] == [1, 0]
    assert np.rint(run.ttft_s[-2:] / MS).tolist() == [17, other_ms + (fetches == "before")]
    assert run.ttft_s[-2] == pytest.approx(17 * MS, rel=1e-9)


def test_what_is_on_its_way_down_is_not_found_yet():
    slow = dram(bytes_per_s=1e9 / 50)  # a prompt takes 800 ms
    assert found(replay(asked(AGAIN), Fleet((pool(slow),))))[-1] == 0
    assert found(replay(asked(AGAIN, gap_s=2.0), Fleet((pool(slow),))))[-1] == 1


def test_a_shared_tier_that_takes_prompts_when_computed_serves_other_replicas():
    pooled = dram(is_shared=True, writes_through=True)
    trace = asked([1, 1])
    for tier, hits in ((dram(writes_through=True), [0, 0]), (pooled, [0, 1])):
        run = replay(trace, Fleet((pool(tier, replicas=2),), "round-robin"))
        assert found(run) == hits


def test_a_shared_tier_carries_so_much_for_all_together():
    # Two prompts are evicted from both replicas; read at one time, the second waits for the first.
    names = [1, 2, *range(3, 15), 1, 2]
    trace = asked(names)
    together = trace.arrival_ns.copy()
    together[-1] = together[-2]
    trace = replace(trace, arrival_ns=together)
    for total, last_ms in ((1e9, 16 + 16 + 1), (np.inf, 16 + 1)):
        tier = dram(is_shared=True, total_bytes_per_s=total)
        run = replay(trace, Fleet((pool(tier, replicas=2),), "round-robin"))
        assert found(run)[-2:] == [1, 1]
        assert np.rint(run.ttft_s[-2:] / MS).tolist() == [17, last_ms]


def test_what_one_tier_evicts_the_next_takes():
    ssd = Tier("ssd", 1e12, 1e8)
    run = replay(asked([1, *range(2, 9), 1], gap_s=1.0), Fleet((pool(dram(prompts=2), ssd),)))
    assert found(run)[-1] == 1
    assert [each.read_tokens for each in run.traffic] == [0, PROMPT]
    assert run.ttft_s[-1] == pytest.approx((160 + 1) * MS, rel=1e-9)


def read_below(eviction, names, prompts=10):
    run = replay(asked(names), Fleet((pool(dram(prompts, eviction=eviction), prompts=2),)))
    return run.traffic[0].read_tokens // PROMPT


def test_a_scan_flushes_lru_but_not_s3_fifo():
    """Five prompts are asked for again and again, and between them thirty that never come back."""
    scan = iter(range(100, 400))
    rounds = [name for _ in range(10) for name in (*range(1, 6), *(next(scan) for _ in range(30)))]
    warm = [name for _ in range(4) for name in range(1, 6)]
    names = [*warm, *rounds]
    assert read_below("s3-fifo", names) > read_below("lru", names) + 30


def test_lru_keeps_what_is_read_and_fifo_does_not():
    names = [name for fresh in range(100, 140) for name in (1, fresh, fresh + 500)]
    assert read_below("lru", names) == 39 > read_below("fifo", names)


@pytest.mark.parametrize("column", ["tenant", "slo_class"])
def test_a_quota_is_kept_from_others(column):
    """Tenant a comes back to three prompts while b floods the tier with prompts of its own."""
    names, owners = [], []
    for turn in range(12):
        names += [1, 2, 3, *range(100 + 20 * turn, 120 + 20 * turn)]
        owners += [0] * 3 + [1] * 20
    trace = asked(names, owners, column=column)
    hits = []
    for quotas in ({}, {"a": 0.5, "b": 0.5}):
        run = replay(trace, Fleet((pool(dram(10, quotas=quotas), prompts=2),)))
        hits.append(sum(found(run)))
    assert hits[0] == 0
    assert hits[1] == 3 * 11


def test_a_replica_that_fails_loses_its_own_tiers_but_not_the_shared_one():
    def failing(plane):
        yield plane.wait(0.55)
        plane.do(Fail(0))
        plane.do(Open(0))

    for tier, hit in ((dram(), 0), (dram(is_shared=True), 1)):
        run = operate(asked([*AGAIN[:-1], 7, 8, 1]), Fleet((pool(tier),)), controllers=[failing]).run
        assert found(run)[-1] == hit
        assert run.is_finished.all()


def conversation(turns, others):
    """Return a conversation that grows by a content block a turn, with prompts of others between its turns."""
    contents = []
    for turn in range(1, turns + 1):
        contents.append(list(range(1, turn + 1)))
        contents += [[1000 * turn + each] for each in range(others)]
    lengths = [PROMPT * len(each) for each in contents]
    return toys.trace(np.arange(len(contents)) * 0.5, lengths, 1, contents)


def test_of_a_conversation_that_comes_back_only_what_is_new_is_written_again():
    written = []
    for moves_up in (False, True):
        run = replay(conversation(6, 8), Fleet((pool(dram(moves_up=moves_up), prompts=8),)))
        assert run.outcome.cached_tokens[-9] == 5 * PROMPT
        written.append(run.traffic[0].written_tokens // PROMPT)
    others = 8 * 6 - 8  # of the last turn, eight prompts are in memory yet
    assert written == [others + 6, others + sum(range(1, 7))]


def test_a_gateway_may_see_what_a_replica_has_below_its_memory():
    seen = []

    def looking(plane):
        yield plane.wait(0.65)
        seen.extend(plane.matched_tokens(6, below).tolist() for below in (False, True))

    trace = asked([*AGAIN[:-1], 1], gap_s=0.1)
    trace = replace(trace, arrival_ns=np.append(trace.arrival_ns[:-1], 10**9))
    operate(trace, Fleet((pool(dram()),)), controllers=[looking])
    assert seen == [[0], [PROMPT]]


@pytest.mark.parametrize(("below", "hits"), [(False, 0), (True, 1)])
def test_a_prompt_goes_to_the_replica_that_has_it_below_its_memory_where_the_router_looks_there(below, hits):
    trace = asked([50, 1, 51, *range(2, 12), 1])  # the first prompt of name 1 comes to replica 1
    evict = {number: number % 2 for number in range(13)}

    def routing(plane):
        aware = ROUTERS["prefix-aware"](below=below)(plane)
        return lambda request, view: evict[request.number] if request.number in evict else aware(request, view)

    run = operate(trace, Fleet((pool(dram(), replicas=2, prompts=2),)), routing=routing).run
    assert found(run)[-1] == hits


def test_fleets_without_tiers_run_kernels_that_know_none():
    for tiers, kinds in (((), 0), ((dram(),), 1)):
        course = Course(Fleet((pool(*tiers),)), contents_of(asked(AGAIN)))
        assert len(course.state.extras) == kinds


def test_a_small_memory_above_an_endless_tier_finds_all_that_the_trace_repeats(shared):
    trace = traces.read(shared / "traces" / "mooncake" / "conversation_trace.jsonl.gz")
    bounds = toys.limits(
        max_sequences=512, max_batched_tokens=1 << 18, block_tokens=16, total_blocks=10_000,
        max_context_tokens=160_000, caching=True,
    )  # fmt: skip
    engine = toys.engine(bounds, cell_shift=28, step_ps=1, kv_bytes=1.0)
    run = replay(trace, Fleet((Pool(engine, 1, tiers=(Tier("dram", 1e12, 1e30),)),)))
    hit = run.outcome.cached_tokens.sum() / trace.input_tokens.sum()
    assert hit == traces.statistics.prefix_reuse(trace)["token_hit_infinite"]
    assert run.traffic[0].read_tokens > 0.2 * trace.input_tokens.sum()


def test_tiers_are_checked_where_they_are_made():
    with pytest.raises(ValueError, match="unknown eviction 'lfu' of tier dram; known: lru, fifo, s3-fifo"):
        dram(eviction="lfu")
    with pytest.raises(ValueError, match="bytes_per_s of tier dram must be positive"):
        dram(bytes_per_s=0.0)
    with pytest.raises(ValueError, match="quotas of tier dram must be shares"):
        dram(quotas={"a": 0.8, "b": 0.4})
    with pytest.raises(ValueError, match="only the last can be shared"):
        Fleet((pool(dram(is_shared=True), Tier("ssd", 1e12, 1e9)),))
    with pytest.raises(ValueError, match="no prefix cache"):
        Fleet((Pool(toys.engine(kv_bytes=1.0), 1, tiers=(dram(),)),))
