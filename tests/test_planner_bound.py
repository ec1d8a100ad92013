"""Work prices and the rigorous bound: below every replay, every router, every fleet that survives."""

import itertools
from dataclasses import replace

import numpy as np
import planner_toys
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp
from test_dataplane import random_case

from models.step import PICOSECONDS_PER_SECOND
from planners.bounds import values, work
from planners.bounds.bound import rigorous_usd_per_hour, windows_of
from planners.bounds.queue import fewest_misses, least_speed
from planners.bounds.values import Values, earnings, values_of
from planners.demand import fresh_tokens, sizes, survey
from planners.siblings import siblings_of
from planners.slo import holds
from simulator.fleet import Fleet, Pool
from simulator.replay import replay


def test_a_prompt_alone_is_priced_as_its_share_of_the_fullest_step():
    # A step of 64 tokens takes 1 ms + 64 * 0.1 ms = 7.4 ms: 7.4 / 64 ms a token, and no step has cheaper tokens.
    engine = planner_toys.offer("toy", 1.0).priced
    price = work.token_prices(engine, work.worth_of(np.array([640]), np.array([1])))
    assert price.prefill_s == pytest.approx(7.4e-3 / 64, rel=0.01)
    assert price.prefill_s <= 7.4e-3 / 64 * (1 + 1e-9)


def test_decodes_alone_are_priced_as_their_share_of_the_widest_batch():
    # Eight decodes a step of 1 ms + 8 * 0.1 ms: 0.225 ms each.
    engine = planner_toys.offer("toy", 1.0).priced
    price = work.token_prices(engine, (0.0, 1000.0, 0.0))
    assert price.decode_s == pytest.approx(1.8e-3 / 8, rel=0.01)


def test_a_limit_on_tpot_makes_decodes_dearer():
    # Steps of at most 1.4 ms hold four decodes: 0.35 ms each.
    engine = planner_toys.offer("toy", 1.0).priced
    price = work.token_prices(engine, (0.0, 1000.0, 0.0), tpot_limit_s=1.4e-3)
    assert price.decode_s == pytest.approx(1.4e-3 / 4, rel=0.02)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9))
def test_no_schedule_takes_less_than_the_work(seed):
    trace, fleet = random_case(seed)
    fleet = Fleet((replace(fleet.pools[0], role="both"),))
    run = replay(trace, fleet)
    engine, served = fleet.pools[0].engine, run.is_finished
    inputs, outputs = (column[served] for column in sizes(trace))
    fresh = fresh_tokens(trace)[served]
    if served.all():
        worth = work.worth_of(inputs, outputs, fresh)
        least_s = work.request_work_s(work.token_prices(engine, worth), inputs, outputs, fresh).sum()
        busy_s = run.lanes["busy_ps"].sum() / PICOSECONDS_PER_SECOND / engine.lanes
        assert least_s <= busy_s * (1 + 1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9))
def test_no_cut_of_a_prompt_into_chunks_takes_less_attention_than_its_floor(seed):
    _, fleet = random_case(seed)
    engine, most = fleet.pools[0].engine, 100
    first_s, slope_s = (
        getattr(engine.table, name)[0] / PICOSECONDS_PER_SECOND for name in ("prefill_ps", "prefill_slope_ps")
    )
    least_s = np.zeros(most + 1)  # of the first so many tokens of a prompt
    for tokens in range(1, most + 1):
        chunk = np.arange(1, min(tokens, first_s.size - 1) + 1)
        least_s[tokens] = (least_s[tokens - chunk] + first_s[chunk] + slope_s[chunk] * (tokens - chunk)).min()
    chunk_s = tuple(work.chunk_floor_s(engine).tolist())
    floor_s = work.attention_of(np.arange(1, most + 1), work.pair_floor_s(engine), chunk_s)
    assert (floor_s <= least_s[1:] * (1 + 1e-9)).all()


def test_a_short_prompt_pays_for_its_short_chunk():
    # A chunk takes 1 ms whatever its length: a prompt of 4 tokens 1 ms, 0.25 ms a token; one of 64 in a chunk as well.
    table = planner_toys.offer("toy", 1.0).priced.table
    first_ps = np.full_like(table.prefill_ps, PICOSECONDS_PER_SECOND // 1000)
    engine = replace(planner_toys.offer("toy", 1.0).priced, table=table._replace(prefill_ps=first_ps))
    chunk_s = tuple(work.chunk_floor_s(engine).tolist())
    assert work.attention_of(np.array([4, 64]), 0.0, chunk_s) == pytest.approx([1e-3, 1e-3], rel=0.05)


def test_replicas_that_only_short_prompts_suit_do_not_make_up_what_long_ones_lack():
    # Engine 0 takes 0.1 ms a token; engine 1, at a tenth of the price, 1 ms, but 50 ms a step less: good at 4 tokens.
    offers = [planner_toys.offer("long", 10.0, 51.0, 100.0), planner_toys.offer("short", 1.0, 1.0, 1100.0)]
    trace = toys.trace(np.arange(400) * 1e-3, np.where(np.arange(400) % 20, 60, 4), 1)
    market = survey(trace, planner_toys.promises("ttft:p99<=500ms"), offers)
    rows = [row for row in windows_of(market).rows if not row.relief]
    assert len(rows) == 2
    (least, most) = sorted(rows, key=lambda row: float(row.power[1] / row.demand))
    assert float(least.power[1] / least.demand) < float(most.power[1] / most.demand) * 0.999
    assert least.demand >= most.demand * 0.98


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9))
def test_no_replica_earns_faster_than_its_earnings(seed):
    trace, fleet = random_case(seed)
    fleet, rng = Fleet((replace(fleet.pools[0], role="both"),)), np.random.default_rng(seed)
    run = replay(trace, fleet)
    engine, served = fleet.pools[0].engine, run.is_finished
    inputs, outputs = (column[served] for column in sizes(trace))
    if not served.all():
        return
    slow = np.nan_to_num(run.metric_s("tpot"))
    limit_s = float(rng.choice([np.inf, np.quantile(slow, rng.uniform())]))
    chunk = tuple(rng.uniform(0, rng.choice([0.0, 1.0]), work.chunk_edges().size).tolist())
    worth = Values(*rng.uniform(0, 1, 3) * [1, rng.choice([1, 10]), 0.1], 1e-3, chunk)
    earned = worth.of_prompts(fresh_tokens(trace)[served]).sum()
    earned += worth.of_answers(inputs, outputs)[slow <= limit_s].sum()
    busy_s = run.lanes["busy_ps"].sum() / PICOSECONDS_PER_SECOND / engine.lanes
    assert earned <= busy_s * earnings(engine, worth, limit_s) * (1 + 1e-9)


def test_values_are_the_prices_of_the_cheapest_steps():
    # A step of 1 ms and 0.1 ms a token: 64 prefill tokens in 7.4 ms or 8 decodes in 1.8 ms; together they cost no less.
    engine = planner_toys.offer("toy", 1.0).priced
    found = values_of([engine], np.array([2.0]), (640.0, 0.0, 0.0), np.inf)
    assert found.prefill == pytest.approx(2 * 7.4e-3 / 64, rel=1e-3)
    assert earnings(engine, found, np.inf) == pytest.approx(2.0, rel=1e-2)


def test_what_an_earlier_request_brought_need_not_be_computed_again():
    # Blocks of 4 tokens: the second prompt of 10 shares two blocks, so that 2 of its tokens are fresh.
    trace = toys.trace([0.0, 1.0, 2.0], [10, 10, 9], 1, [[1, 2], [1, 2], [3, 4]], content_tokens=4)
    assert fresh_tokens(trace).tolist() == [10, 2, 9]
    assert fresh_tokens(toys.trace([0.0, 1.0], [10, 10], 1)).tolist() == [10, 10]


@pytest.mark.parametrize("block", range(4))
def test_no_surviving_fleet_under_any_router_costs_less_than_the_bound(block):
    promises = planner_toys.promises("ttft:p90<=60ms", "tpot:p90<=6ms")
    cheaper = 0
    for seed in range(10 * block, 10 * block + 10):
        trace, offers = planner_toys.random_market(seed)
        bound = rigorous_usd_per_hour(survey(trace, promises, offers))
        for counts in itertools.product(range(4), repeat=len(offers)):
            pools = tuple(Pool(offer.priced, count) for offer, count in zip(offers, counts, strict=True) if count)
            cost = sum(offer.usd_per_hour * count for offer, count in zip(offers, counts, strict=True))
            if not pools or cost >= bound:
                continue
            for router in ("join-shortest-queue", "round-robin", "least-kv"):
                assert not holds(replay(trace, Fleet(pools, router)), promises), (seed, counts, router)
            cheaper += 1
    assert cheaper > 0, "some fleets must be cheaper than the bound, or it says nothing"


def test_no_fleet_that_survives_a_sibling_too_costs_less_than_the_bound_for_both():
    promises = planner_toys.promises("ttft:p90<=60ms", "tpot:p90<=6ms")
    higher = 0
    for seed in range(12):
        trace, offers = planner_toys.random_market(seed)
        market, siblings = survey(trace, promises, offers), siblings_of(trace, (1, 2), 0)
        higher += planner_toys.siblings_raise_the_bound(market, siblings)
    assert higher > 0, "some sibling must ask for more than its trace"


def test_bursts_raise_the_bound():
    # 100 prompts of 64 tokens, 7.4 ms each: 0.74 s of work. Evenly over 10 s one replica is idle most of the time; at
    # once, with 50 ms of patience and one miss allowed, it takes 99 * 7.4 / 50 = 14.7 replicas.
    offers = [planner_toys.offer("toy", 1.0)]
    promises = planner_toys.promises("ttft:p99<=50ms")
    even = survey(toys.trace(np.arange(100) * 0.1, 64, 1), promises, offers)
    burst = survey(toys.trace(np.zeros(100), 64, 1), promises, offers)
    assert rigorous_usd_per_hour(even) == pytest.approx(1.0, rel=1e-4)
    assert rigorous_usd_per_hour(burst) == pytest.approx(15.0, rel=1e-4)


def test_more_patience_never_raises_the_bound():
    trace, offers = planner_toys.bursty_trace(3), planner_toys.two_offers()
    bounds = [
        rigorous_usd_per_hour(survey(trace, planner_toys.promises(f"ttft:p90<={limit}ms", "tpot:p90<=4ms"), offers))
        for limit in (30, 60, 120, 1000)
    ]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[-1]


def misses_by_programme(work_s, arrival_s, patience_s, speed):
    """The fewest requests, parts of one allowed, to leave out so that every window from an arrival to a due time fits.

    Of no use in the planner: it takes minutes where the queue takes a blink.
    """
    count = work_s.size
    windows = [(first, last) for first in range(count) for last in range(first, count)]
    rows = np.array([[-work_s[i] * (first <= i <= last) for i in range(count)] for first, last in windows])
    room = [speed * (arrival_s[b] + patience_s - arrival_s[a]) - work_s[a : b + 1].sum() for a, b in windows]
    return milp(np.ones(count), constraints=LinearConstraint(rows, -np.inf, room), bounds=(0, 1)).fun


@pytest.mark.parametrize("block", range(4))
def test_no_choice_leaves_out_fewer_than_the_queue_does(block):
    found, least = 0.0, 0.0
    for seed in range(50 * block, 50 * block + 50):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(1, 9))
        arrival_s, work_s = np.sort(rng.uniform(0, 5, count)), rng.integers(1, 6, count) / 2
        patience_s, speed = float(rng.uniform(0.5, 3)), float(rng.uniform(0.3, 1.5))
        fewest = fewest_misses(work_s, arrival_s, patience_s, speed)
        truly = misses_by_programme(work_s, arrival_s, patience_s, speed)
        assert fewest <= truly + 1e-6, seed
        found, least = found + fewest, least + truly
    assert found >= 0.95 * least


def test_a_queue_is_as_fast_as_its_burst_needs():
    # Three requests of 2 s at once, 1 s of patience: 6 a second, or 4 where one may be left out.
    work_s, arrival_s = np.full(3, 2.0), np.zeros(3)
    assert least_speed(work_s, arrival_s, 1.0, 0.0) == pytest.approx(6.0, rel=1e-4)
    assert least_speed(work_s, arrival_s, 1.0, 1.0) == pytest.approx(4.0, rel=1e-4)
    assert least_speed(work_s, arrival_s, 1.0, 3.0) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_a_queue_that_is_fast_enough_already_asks_for_nothing(seed):
    rng = np.random.default_rng(seed)
    arrival_s, work_s = np.cumsum(rng.exponential(rng.choice([0.02, 1.0], 300))), rng.exponential(1.0, 300)
    speed = least_speed(work_s, arrival_s, 2.0, 5.0)
    assert (
        fewest_misses(work_s, arrival_s, 2.0, speed * 0.99) > 5.0 >= fewest_misses(work_s, arrival_s, 2.0, speed * 1.01)
    )
    assert least_speed(work_s, arrival_s, 2.0, 5.0, above=speed * 0.9) == pytest.approx(speed, rel=1e-4)
    assert least_speed(work_s, arrival_s, 2.0, 5.0, above=speed * 1.01) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_no_other_patience_lets_steps_earn_less_at_most(seed):
    rng = np.random.default_rng(seed)
    count = 30
    prefill, decodes = rng.integers(0, 5, count).astype(float), rng.integers(0, 4, count).astype(float)
    prefill[0], decodes[0] = 1.0, 0.0  # a step without decodes is never late
    step_s = rng.uniform(0.01, 1.0, count).round(2 if seed % 2 else 8)
    steps = values._Steps(prefill, decodes, 3 * decodes, step_s, decodes * (step_s - 0.4))
    worth = Values(*(rng.random(3) * (rng.random(3) < 0.6)), 0.0)
    least = values._earned(steps, worth, values._patience(steps, worth)).max()
    others = [values._earned(steps, worth, factor).max() for factor in (0.0, *np.geomspace(1e-4, 1e4, 2000))]
    assert least <= min(others) * (1 + 1e-9) + 1e-15
