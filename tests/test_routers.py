"""Routers: the defining property of each, on toys; and that all name only lanes that prompts may go to."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import toys

from simulator.control.actions import Close
from simulator.control.plane import CLEAR, Sight, operate
from simulator.control.prefix_index import HotPrefixes, PrefixIndex
from simulator.control.radix_index import RadixIndex
from simulator.control.rings import Ring
from simulator.control.routers import ROUTERS, routing_of
from simulator.fleet import Fleet, Pool
from simulator.replay import replay
from traces.trace import Labels

MS = 1e-3
CACHING = toys.limits(caching=True, total_blocks=400, max_sequences=16, max_context_tokens=1000)


def fleet(replicas=4, bounds=CACHING, **costs):
    return Fleet((Pool(toys.engine(bounds, **{"token_ps": toys.PS_PER_MS // 100, **costs}), replicas),))


def families(seed=0, count=300, gap_s=2 * MS, prompts=12, tokens=64, answers=6, evenly=False):
    """A trace of prompts of a few families, each with its beginning of three content blocks, zipf-popular."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, prompts + 1)
    chosen = rng.choice(prompts, count, p=weights / weights.sum())
    beginnings = [[10_000 * (family + 1) + place for place in range(3)] for family in range(prompts)]
    contents = [[*beginnings[family], 10**7 + row] for row, family in enumerate(chosen)]
    arrivals_s = gap_s * np.arange(count) if evenly else np.cumsum(rng.exponential(gap_s, count))
    sessions = Labels(chosen.astype(np.int32), tuple(f"s{each}" for each in range(prompts)))
    return toys.trace(arrivals_s, tokens, rng.integers(1, 2 * answers, count), contents, session_id=sessions)


def lanes_of(trace, on, name, *, controllers=(), sight=CLEAR, **settings):
    run = operate(trace, on, routing=routing_of(name, **settings), controllers=controllers, sight=sight).run
    assert run.counts()["in_flight"] == 0
    return run.outcome.lane


def hit_tokens(run):
    return int(run.outcome.cached_tokens.sum())


@pytest.mark.parametrize("name", ROUTERS)
def test_closed_lanes_and_lanes_that_only_decode_are_never_named(name):
    prefill, decode = (Pool(toys.engine(CACHING, kv_bytes=1e3), 3, role=role) for role in ("prefill", "decode"))
    named = set()

    def routing(plane):
        router = routing_of(name)(plane)

        def route(request, view):
            decision = router(request, view)
            if isinstance(decision, int):
                named.add(decision)
            return decision

        return route

    def closing(plane):
        plane.do(Close(1))
        yield plane.wait(0)

    run = operate(families(count=80), Fleet((prefill, decode)), routing=routing, controllers=[closing]).run
    assert run.counts()["finished"] == 80
    assert named <= {0, 2}


@pytest.mark.parametrize("name", ROUTERS)
def test_same_seed_same_lanes(name):
    trace = families(count=60)
    assert (lanes_of(trace, fleet(), name) == lanes_of(trace, fleet(), name)).all()


@pytest.mark.parametrize("name", ROUTERS)
def test_what_comes_while_all_lanes_are_closed_is_held_and_offered_again(name):
    def closing(plane):
        for lane in range(4):
            plane.do(Close(lane))
        yield plane.wait(1.0)
        from simulator.control.actions import Open

        plane.do(Open(2))
        plane.offer_all()

    run = operate(families(count=20), fleet(), routing=routing_of(name), controllers=[closing]).run
    assert run.counts()["finished"] == 20
    assert set(run.outcome.lane.tolist()) == {2}


def test_an_unknown_router_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="unknown router 'rounds'; known: round-robin, random"):
        routing_of("rounds")


def test_round_robin_names_each_lane_in_turn():
    assert lanes_of(families(count=8), fleet(), "round-robin").tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_random_names_all_lanes_about_as_often():
    counts = Counter(lanes_of(families(count=400), fleet(), "random").tolist())
    assert all(70 < counts[lane] < 130 for lane in range(4))  # 100 each, deviation 8.7


def test_least_requests_in_python_is_the_compiled_shortest_queue():
    trace, on = families(), fleet()
    assert (lanes_of(trace, on, "least-requests") == replay(trace, on).outcome.lane).all()


def test_by_an_old_view_the_first_of_equals_has_all_and_any_of_them_their_share():
    trace, on, old = families(gap_s=1 * MS, evenly=True), fleet(4), Sight(age_s=0.1)
    first, drawn = (lanes_of(trace, on, "least-requests", sight=old, seed=seed)[:99] for seed in (None, 1))
    assert set(first.tolist()) == {0}
    assert set(drawn.tolist()) == {0, 1, 2, 3}


def test_least_pending_tokens_looks_at_tokens_where_least_requests_counts_heads():
    # lane 0 works on a short prompt with two short ones behind it, lane 1 on one with a long one behind it
    trace = toys.trace(np.arange(7) * 1e-6, [20, 20, 4, 60, 4, 4, 4], 1)
    tight = replace(CACHING, max_batched_tokens=20, max_sequences=1)
    lanes = lanes_of(trace, fleet(2, tight), "least-pending-tokens").tolist()
    assert lanes == [0, 1, 0, 1, 0, 0, 0]
    assert lanes_of(trace, fleet(2, tight), "least-requests").tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_least_kv_looks_at_the_share_of_memory_in_use():
    small, large = (Pool(toys.engine(replace(CACHING, total_blocks=blocks)), 1) for blocks in (60, 400))
    trace = toys.trace(np.arange(4) * 3 * MS, 40, 50)
    # when the third comes some 45 of 240 tokens are in use and 43 of 1600, when the fourth comes twice as many of these
    assert lanes_of(trace, Fleet((small, large)), "least-kv").tolist() == [0, 1, 1, 1]
    assert lanes_of(trace, Fleet((small, large)), "least-requests").tolist() == [0, 1, 0, 1]


def test_the_shorter_of_two_queues_is_nearly_as_good_as_the_shortest_and_far_better_than_any():
    trace = families(count=2000, gap_s=0.9 * MS)

    def longest_queue(name):
        seen = []

        def watching(plane):
            while plane.now_s < 1.5:
                yield plane.wait(5 * MS)
                seen.append(plane.view().outstanding.max())

        lanes_of(trace, fleet(8), name, controllers=[watching])
        return np.mean(seen)

    best, two, any_ = (longest_queue(name) for name in ("least-requests", "power-of-two", "random"))
    assert best <= two < any_
    assert two - best < 0.5 * (any_ - best)


def test_a_session_stays_where_it_began():
    trace = families()
    lanes = lanes_of(trace, fleet(), "session-affinity")
    for code in range(12):
        assert len(set(lanes[trace.columns["session_id"].codes == code].tolist())) <= 1


def test_a_session_whose_lane_closes_moves_and_others_stay():
    trace, closed_s = families(), 0.2

    def closing(plane):
        yield plane.wait(closed_s)
        plane.do(Close(0))

    before, after = lanes_of(trace, fleet(), "session-affinity"), None
    after = lanes_of(trace, fleet(), "session-affinity", controllers=[closing])
    late = trace.arrival_ns > closed_s * 1e9
    assert not (after[late] == 0).any()
    assert (after[before != 0] == before[before != 0]).all()


def random_families(seed):
    rng = np.random.default_rng(seed)
    return families(seed, 400, float(rng.choice([0.3, 0.8, 2.0])) * MS, int(rng.choice([3, 12, 40])))


@pytest.mark.parametrize("seed", range(4))
def test_prefix_aware_in_python_is_the_compiled_one(seed):
    trace, on = random_families(seed), fleet(6)
    compiled = replay(trace, replace(on, router="prefix-aware")).outcome
    assert (lanes_of(trace, on, "prefix-aware") == compiled.lane).all()
    assert compiled.cached_tokens.sum() > 0


def test_prefix_aware_goes_where_the_prompt_is_cached_until_that_lane_is_much_fuller():
    one_family = families(count=60, prompts=1, gap_s=20 * MS, answers=2, evenly=True)
    assert set(lanes_of(one_family, fleet(), "prefix-aware").tolist()) == {0}
    crowded = families(count=60, prompts=1, gap_s=0.01 * MS)
    lanes = Counter(lanes_of(crowded, fleet(), "prefix-aware").tolist())
    assert max(lanes.values()) <= 60 // 4 + 8 + 1
    unguarded = lanes_of(crowded, fleet(), "prefix-aware", most_apart=np.inf, deviations=np.inf, own_index=True)
    assert set(unguarded.tolist()) == {0}


def test_a_gateways_own_index_finds_about_what_the_caches_have():
    trace, on = families(count=600, prompts=60), fleet()
    true, own = (operate(trace, on, routing=routing_of("prefix-aware", own_index=each)).run for each in (False, True))
    assert hit_tokens(own) == pytest.approx(hit_tokens(true), rel=0.1)
    assert hit_tokens(true) > 1.2 * hit_tokens(operate(trace, on, routing=routing_of("round-robin")).run)


def test_an_index_knows_beginnings_by_lane_and_forgets_the_least_recent_ends_first():
    index = PrefixIndex([4, 4])
    index.note([1, 2, 3], 0)
    index.note([1, 2], 1)
    assert index.matched_blocks([1, 2, 3, 9]).tolist() == [3, 2]
    assert index.matched_blocks([2, 3]).tolist() == [2, 1]  # content is named by all before it, so this never comes
    index.note([7, 8], 0)  # five blocks in four: 3 is the oldest
    assert index.matched_blocks([1, 2, 3]).tolist() == [2, 2]
    assert index.matched_blocks([7, 8]).tolist() == [2, 0]
    index.forget(0)
    assert index.matched_blocks([1, 2, 3]).tolist() == [0, 2]


def random_prompts(rng, count, branches=3, most=9):
    """Return prompts as paths down a tree of few branches; a name tells all that comes before it."""
    prompts = []
    for _ in range(count):
        path, blocks = 0, []
        for _ in range(int(rng.integers(1, most))):
            path = branches * path + 1 + int(rng.integers(branches))
            blocks.append(path)
        prompts.append(blocks)
    return prompts


@pytest.mark.parametrize("capacity", [1000, 25])
def test_a_radix_tree_knows_what_an_index_of_hashes_knows(capacity):
    """Both forget the least recently sent ends, so they agree to the block, full or not."""
    rng = np.random.default_rng(capacity)
    hashes, tree = PrefixIndex([capacity] * 3), RadixIndex([capacity] * 3)
    for prompt in random_prompts(rng, 400):
        assert tree.matched_blocks(prompt).tolist() == hashes.matched_blocks(prompt).tolist()
        lane = int(rng.integers(3))
        hashes.note(prompt, lane)
        tree.note(prompt, lane)
        assert tree.matched_at(prompt, lane) == min(len(prompt), capacity)
    tree.forget(1)
    assert not any(tree.matched_at(prompt, 1) for prompt in random_prompts(rng, 50))


def test_a_radix_tree_tells_content_apart_by_what_comes_before_it():
    tree = RadixIndex([10, 10])
    tree.note([1, 2, 3], 0)
    tree.note([1, 4, 3], 1)
    assert tree.matched_blocks([1, 4, 3]).tolist() == [1, 3]
    assert tree.matched_blocks([2, 3]).tolist() == [0, 0]


def test_a_gateway_routes_alike_by_either_index():
    trace = families(count=300, prompts=30)
    sent = [lanes_of(trace, fleet(), "prefix-aware", own_index=True, index=each) for each in ("block-hash", "radix")]
    assert (sent[0] == sent[1]).all()
    with pytest.raises(ValueError, match="unknown index 'trie' of prefixes; known: block-hash, radix"):
        routing_of("prefix-aware", index="trie")


def test_a_prefix_that_many_prompts_begin_with_is_told_apart_by_more_blocks_and_only_that():
    hot = HotPrefixes(lanes=4, window=40)
    keys = [hot.key([1, row]) for row in range(40)]  # all begin alike: 20 of 40 and more are too many for one key
    assert len(set(keys[:20])) == 1
    assert len(set(keys[21:])) == 19
    quiet = HotPrefixes(lanes=4, window=40)
    assert len({quiet.key([row % 8, row]) for row in range(400)}) == 8
    assert len({HotPrefixes(4, 40, splits=False).key([1, row]) for row in range(100)}) == 1


def test_a_lane_that_leaves_a_ring_moves_only_its_own_keys():
    ring = Ring(8)
    before = [next(ring.walk(key)) for key in range(4000)]
    after = [next(lane for lane in ring.walk(key) if lane != 3) for key in range(4000)]
    assert all(new == old for new, old in zip(after, before, strict=True) if old != 3)
    shares = Counter(before)
    assert all(0.6 * 500 < shares[lane] < 1.5 * 500 for lane in range(8))


def test_bounded_load_keeps_every_lane_within_its_factor_of_the_mean():
    trace = families(count=400, gap_s=0.3 * MS, prompts=2)
    seen = []

    def routing(plane):
        router = routing_of("bounded-load", factor=1.25)(plane)

        def route(request, view):
            lane = router(request, view)
            seen.append((view.outstanding[lane] + 1) / ((view.outstanding.sum() + 1) / 4))
            assert view.outstanding[lane] + 1 <= np.ceil(1.25 * (view.outstanding.sum() + 1) / 4)
            return lane

        return route

    operate(trace, fleet(), routing=routing)
    assert max(seen) > 1.1
    calm = families(count=100, gap_s=100 * MS, prompts=5, evenly=True)
    alone, codes = lanes_of(calm, fleet(), "bounded-load"), calm.columns["session_id"].codes
    assert all(len(set(alone[codes == code].tolist())) == 1 for code in range(5))


def test_two_rings_use_two_lanes_a_prefix_and_the_second_only_where_the_first_would_be_late():
    calm = families(count=200, gap_s=20 * MS)
    codes = calm.columns["session_id"].codes
    lanes = lanes_of(calm, fleet(), "dual-ring", splits=False)
    assert all(len(set(lanes[codes == code].tolist())) == 1 for code in np.unique(codes))
    busy = families(count=200, gap_s=0.2 * MS)
    lanes = lanes_of(busy, fleet(), "dual-ring", splits=False, slo_s=5 * MS)
    codes = busy.columns["session_id"].codes
    spread = [len(set(lanes[codes == code].tolist())) for code in np.unique(codes)]
    assert max(spread) == 2


def test_each_class_of_lengths_keeps_to_its_lanes():
    rng = np.random.default_rng(0)
    inputs = rng.integers(1, 100, 200)
    trace = toys.trace(np.cumsum(rng.exponential(MS, 200)), inputs, 4)
    lanes = lanes_of(trace, fleet(), "length-classes", edges_tokens=(50,), shares=(1, 3))
    assert set(lanes[inputs < 50].tolist()) == {0}
    assert set(lanes[inputs >= 50].tolist()) == {1, 2, 3}
    with pytest.raises(ValueError, match="2 edges make 3 classes"):
        routing_of("length-classes", edges_tokens=(10, 20), shares=(1, 1))


def test_the_freest_lane_has_most_memory_per_request():
    small, large = (Pool(toys.engine(replace(CACHING, total_blocks=blocks)), 1) for blocks in (100, 400))
    trace = toys.trace(np.arange(5) * 2 * MS, 40, 60)
    # 1600 free tokens on the larger, 400 on the smaller: (1600 - 40 k) / k comes below 400 at k = 4
    assert lanes_of(trace, Fleet((small, large)), "freeness").tolist() == [1, 1, 1, 1, 0]


@pytest.mark.parametrize(("age_s", "apart"), [(0.0, True), (1.0, False)])
def test_freeness_is_as_old_as_the_view(age_s, apart):
    trace = toys.trace([0.01, 0.02], 40, 60)
    run = operate(trace, fleet(2), routing=routing_of("freeness"), sight=Sight(age_s=age_s)).run
    assert (len(set(run.outcome.lane.tolist())) == 2) == apart


def test_the_earliest_first_token_is_foreseen_from_tokens_and_the_rate_of_each_lane():
    fast, slow = (Pool(toys.engine(CACHING, step_ps=0, token_ps=cost * toys.PS_PER_MS), 1) for cost in (10, 31))
    trace = toys.trace(np.arange(8) * 1e-6, 20, 1)
    # 200 ms a prompt on the fast lane, 620 on the slow: three at once are done before the first there, four are not
    lanes = lanes_of(trace, Fleet((fast, slow)), "latency-predictive", caches=False).tolist()
    assert lanes == [0, 0, 0, 1, 0, 0, 0, 1]


def test_a_gateway_that_counts_what_it_sent_does_not_herd_behind_an_old_view():
    trace = families(count=100, gap_s=0.1 * MS)
    old = Sight(age_s=5 * MS)
    blind = lanes_of(trace, fleet(), "latency-predictive", sight=old, caches=False, own_account=False)
    counting = lanes_of(trace, fleet(), "latency-predictive", sight=old, caches=False)
    assert len(set(blind[:20].tolist())) == 1
    assert len(set(counting[:20].tolist())) == 4


def test_alpha_weighs_speed_against_load():
    fast, slow = (Pool(toys.engine(CACHING, step_ps=0, token_ps=cost * toys.PS_PER_MS), 1) for cost in (1, 2))
    trace, both = toys.trace(np.arange(20) * 1e-6, 20, 1), Fleet((fast, slow))
    assert set(lanes_of(trace, both, "cost-blend", alpha=1.0).tolist()) == {0}
    assert Counter(lanes_of(trace, both, "cost-blend", alpha=0.0).tolist()) == {0: 10, 1: 10}
    assert 10 < Counter(lanes_of(trace, both, "cost-blend", alpha=0.4).tolist())[0] < 20
    with pytest.raises(ValueError, match="expected a weight from 0"):
        routing_of("cost-blend", alpha=2)


def test_a_lane_refuses_while_it_has_a_prompt_and_is_offered_the_next_when_that_is_done():
    trace = toys.trace(np.arange(6) * 1e-6, 40, 1)
    run = operate(trace, fleet(2, step_ps=0, token_ps=toys.PS_PER_MS), routing=routing_of("offer-refuse-retry")).run
    assert np.round(run.queue_s / (40 * MS), 3).tolist() == [0, 0, 1, 1, 2, 2]  # at the gateway: no lane has a queue
    assert run.outcome.lane.tolist() == [0, 1, 0, 1, 0, 1]


def test_what_all_lanes_refuse_for_its_whole_budget_is_turned_away():
    trace = toys.trace(np.arange(6) * 1e-6, 40, 1)
    routing = routing_of("offer-refuse-retry", budget_s=50 * MS)
    run = operate(trace, fleet(2, step_ps=0, token_ps=toys.PS_PER_MS), routing=routing).run
    assert run.counts() == {"arrived": 6, "finished": 4, "rejected": 2, "failed": 0, "in_flight": 0}
    assert run.outcome.finish_ps[4:].tolist() == pytest.approx([50e9 + 4e6, 50e9 + 5e6])


def test_planned_fractions_are_kept_size_by_size():
    pools = tuple(Pool(toys.engine(CACHING), 2) for _ in range(2))
    planned = Fleet(pools, input_edges=(0, 50), shares=((0.75, 0.25), (0.0, 1.0)))
    inputs = np.where(np.arange(160) % 2, 20, 60)
    lanes = lanes_of(toys.trace(np.arange(160) * MS, inputs, 4), planned, "weighted")
    assert Counter((lanes[inputs == 20] // 2).tolist()) == {0: 60, 1: 20}
    assert set((lanes[inputs == 60] // 2).tolist()) == {1}


def test_the_longest_prompt_that_waits_gives_way_where_some_prompt_must_be_late():
    # Steps of 64 tokens take 7.4 ms. A prompt of 192 would be done after the fourth of them, and each of three short
    # ones that come then too late, after 4.5; if it waits, only it is late.
    bounds = toys.limits(by_priority=True, max_context_tokens=250)
    lane = toys.fleet(1, "in-time", bounds=bounds, token_ps=100_000_000)
    trace = toys.trace([0.0, 0.001, 0.002, 0.002, 0.002], [64, 192, 64, 64, 64], 1)
    run = replay(trace, replace(lane, ttft_limit_s=4.5 * 7.4 * MS))
    assert (run.ttft_s * 1e3).tolist() == pytest.approx([7.4, 7 * 7.4 - 1, 12.8, 20.2, 27.6])
