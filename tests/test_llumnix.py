"""Llumnix: what its dispatch and its migration do, and the study of it in small."""

import numpy as np
import simpy
import toys

from simulator.control.migration import link
from simulator.control.plane import CLEAR, Plane, operate
from simulator.fleet import Fleet, Pool
from simulator.studies import llumnix as study
from simulator.studies.card import judge
from simulator.studies.workloads import lengths
from simulator.systems import llumnix as system
from simulator.systems.llumnix import Migration, fragmented, freest, least_memory, machines, serve

MS = 1e-3
MIGRATION = Migration(low=10.0, high=20.0, every_s=2 * MS, handshake_s=1 * MS)


def fleet(replicas=2, **bounds):
    chosen = {"max_batched_tokens": 128, "total_blocks": 40} | bounds
    return Fleet((Pool(toys.engine(toys.limits(**chosen), kv_bytes=1e6), replicas),))


def test_freeness_counts_the_batch_and_memory_does_not():
    seen = []

    def looking(plane):
        yield plane.wait(5 * MS)
        for build in (freest, least_memory):
            seen.append(build(plane)(plane.request(3), plane.view()))

    def spread(plane):
        return lambda request, view: min(request.number, 1)

    # one long request on lane 0: 100 tokens held by one; two short ones on lane 1: 60 held by two
    trace = toys.trace([0, 0, 0, 20 * MS], [96, 26, 26, 4], 40)
    operate(trace, fleet(2, total_blocks=64), routing=spread, controllers=[looking])
    assert seen == [0, 1]


def test_dispatch_counts_all_of_a_queue():
    seen = []

    def looking(plane):
        yield plane.wait(5 * MS)
        seen.append(freest(plane)(plane.request(5), plane.view()))

    # lane 0 has room for one of these at a time and three wait there; lane 1 has less memory free, and no queue
    trace = toys.trace([0, 1 * MS, 1 * MS, 1 * MS, 0, 20 * MS], [90, 90, 90, 90, 120, 4], 30)
    lanes = (0, 0, 0, 0, 1, 0)
    operate(trace, fleet(2), routing=lambda plane: lambda request, view: lanes[request.number], controllers=[looking])
    assert seen == [1]


def test_moves_make_room_for_the_head_of_a_queue_that_is_blocked():
    trace = toys.trace([0, 0, 1 * MS, 20 * MS], [60, 30, 30, 70], [80, 80, 80, 5])

    def chosen(plane):
        return lambda request, view: (0, 1, 0, 0)[request.number]

    still = serve(trace, fleet(), chosen, link(1e12))
    moved = serve(trace, fleet(), chosen, link(1e12), MIGRATION)
    assert [move.move.request for move in moved.moves if not move.why][:1] == [2]  # the shorter of the two there
    assert moved.run.queue_s[3] < 6 * MS < still.run.queue_s[3]
    assert moved.run.lanes["free_blocks"].tolist() == moved.run.lanes["total_blocks"].tolist()


def test_memory_is_fragmented_where_all_free_blocks_together_would_serve_a_blocked_head():
    seen = []

    def looking(plane):
        yield plane.wait(5 * MS)
        seen.append(fragmented(plane))

    def spread(plane):
        return lambda request, view: request.number % 2

    trace = toys.trace([0, 0, 2 * MS], [80, 80, 120], 60)
    operate(trace, fleet(2), routing=spread, controllers=[looking])
    # lanes of 40 blocks, 21 taken on each: 19 free here and there, and 30 wanted
    assert seen == [30 / 80]


def test_preemptions_cost_what_passes_until_the_request_goes_on(monkeypatch):
    monkeypatch.setattr(system, "LOOK_S", 0.5 * MS)
    trace = toys.trace([0] * 4, 8, 100)
    found = serve(trace, fleet(1), lambda plane: lambda request, view: 0, link(1e9))
    assert len(found.losses_s) == found.run.outcome.preemptions.sum() > 0
    assert min(found.losses_s) > 0


def test_kv_between_machines_passes_their_adapters_and_within_one_does_not():
    plane = Plane(simpy.Environment(initial_time=0), toys.trace([0], 1, 1), fleet(4), CLEAR)
    send = machines(2, 2, 32e9, 8e9)(plane)
    times_s = []
    for to in (1, 2):
        begun_ps = plane.environment.now
        plane.environment.run(until=send(0, to, 8e9, 1))
        times_s.append((plane.environment.now - begun_ps) / 1e12)
    assert np.allclose(times_s, [0.25, 1.0])


def test_the_study_runs_small_and_again_the_same(monkeypatch):
    facts = study._facts() | {"poll_s": 2.0}
    monkeypatch.setattr(study, "_facts", lambda: facts)
    monkeypatch.setattr(study, "SIZES", {True: (1, 50, 2)})
    first, second = (study.run(range(2), quick=True) for _ in range(2))
    assert repr(first) == repr(second)  # figures of moves are not numbers where there were none
    assert {each.claim.figure for each in judge(study.CARD, first).judgements} == set(first.figures)
    assert {row["system"] for row in first.curve} == {"load-aware", "llumnix"}


def test_each_seed_has_a_knee_of_its_own_and_short_requests_go_by_that_of_middling_ones():
    bench = study.Bench(study._facts(), range(2), 1, 200, 3)
    low, high = (4 * each for each in study.RATES_PER_S)
    assert all(low <= knee < high for knee in bench.knees("LL"))
    assert bench.knees("SS") == bench.knees("MM") != bench.knees("LL")


def test_lengths_drawn_by_the_published_quantiles_have_the_published_means():
    laws = study._facts()["lengths"]
    rng = np.random.default_rng(1)
    means = {law: lengths(rng, laws["fractions"], laws[law], 100_000).mean() for law in "SML"}
    assert all(abs(means[law] / published - 1) < 0.05 for law, published in (("S", 128), ("M", 256), ("L", 512)))
