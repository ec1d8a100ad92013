"""Engines with other KV, ranks that share experts, or drafts: which are legal, worth a look, and planned with."""

import itertools
import json
from dataclasses import replace

import numpy as np
import planner_toys
import pytest
import toys
from click.testing import CliRunner

from models import device, llm
from models.speculation import Speculation
from planners import plan as plans
from planners import plan_file
from planners.bounds.bound import rigorous_usd_per_hour, windows_of
from planners.cli import main
from planners.demand import survey
from planners.exports import arguments
from planners.offers import engines
from planners.offers.dominance import dominates, shortlist, undominated
from planners.offers.engines import Offer, Variants, legal_engines, offers_for, variant_words
from planners.search.hunt import Hunt
from planners.search.search import Infeasible, find_plan
from planners.slo import holds, parse_all
from planners.study import Engines, Study
from simulator.fleet import Fleet, Pool
from simulator.replay import replay

DRAFTS = Speculation(3, 0.7)
WIDE = Variants(("bf16", "fp8"), ("bf16", "fp8"), (1, 2, 8, 16), (None, DRAFTS))


def cuts(model: str, name: str):
    found = legal_engines(llm.load(model), [device.load(name)], context_tokens=1, variants=WIDE)
    return {(one.tp, one.dp, one.ep, one.dtype, *variant_words(one)) for one in found}


def test_ranks_share_experts_within_a_node_and_a_dense_model_has_none():
    shared = {cut for cut in cuts("mixtral-8x7b", "h100-sxm") if cut[1] > 1}
    # 8 experts over at most the 8 devices of a node; 16 ranks are never to be had.
    assert {cut[:3] for cut in shared} == {(1, 2, 2), (2, 2, 4), (4, 2, 8), (1, 8, 8)}
    assert {cut[1] for cut in cuts("llama-3.1-8b", "h100-sxm")} == {1}


def test_narrow_kv_is_offered_only_where_the_device_multiplies_it():
    assert any("kv-fp8" in cut for cut in cuts("llama-3.1-8b", "h100-sxm"))
    assert not any("kv-fp8" in cut for cut in cuts("llama-3.1-8b", "a100-sxm-80gb"))


def test_a_model_is_offered_as_it_was_published_where_the_device_can():
    def dtypes(model, name):
        found = legal_engines(llm.load(model), [device.load(name)], context_tokens=1)
        return list(dict.fromkeys(one.dtype for one in found))

    assert dtypes("gpt-oss-20b", "a100-sxm-80gb") == ["mxfp4", "bf16"]  # widened as they are read
    assert dtypes("qwen3-30b-a3b", "h100-sxm") == ["bf16", "fp8_block"]
    assert dtypes("kimi-k2", "b200-sxm") == ["fp8_block"]


def test_drafts_that_do_not_fit_into_a_step_are_not_offered():
    one = [device.load("h100-sxm")]
    usual = engines.Settings(max_num_batched_tokens=512)  # 256 sequences of 4 tokens are 1,024
    found = legal_engines(llm.load("llama-3.1-8b"), one, context_tokens=1, variants=WIDE, settings=usual)
    assert {made.settings.speculation for made in found} == {None}


def test_names_of_offers_differ():
    names = [one.name for one in offers_for(llm.load("llama-3.1-8b"), [device.load("l40s")], variants=WIDE)]
    assert len(set(names)) == len(names) > 20


def toy(name: str, step_ms: float, blocks: int = 64, **changes) -> Offer:
    return planner_toys.offer(name, 1.0, step_ms, total_blocks=blocks, **changes)


def test_a_faster_engine_that_holds_as_much_dominates_and_one_that_holds_less_does_not():
    fast, slow, small = (toy("x", 1.0), toy("x", 2.0), toy("x", 1.0, blocks=32))
    assert dominates(fast.priced, slow.priced)
    assert not dominates(slow.priced, fast.priced)
    assert not dominates(small.priced, slow.priced)
    assert dominates(fast.priced, small.priced)


@pytest.mark.parametrize("seed", range(6))
def test_the_undominated_are_what_pairs_leave_and_their_bound_holds_for_the_rest(seed):
    rng = np.random.default_rng(seed)
    made = [
        toy("same", float(rng.integers(1, 4)), int(rng.integers(40, 70)), token_us=float(rng.integers(20, 200)))
        for _ in range(5)
    ]
    kept = undominated(made)
    beaten = [one for one in made if any(dominates(each.priced, one.priced) for each in made if each is not one)]
    assert [one for one in made if not any(one is each for each in beaten)] == [
        one for one in kept if not any(one is each for each in beaten)
    ]
    assert all(any(dominates(each.priced, one.priced) for each in kept) for one in made)
    trace, promises = planner_toys.bursty_trace(seed, 80), planner_toys.promises("ttft:p90<=60ms", "tpot:p90<=6ms")
    bound = rigorous_usd_per_hour(survey(trace, promises, kept))
    for one in made:
        for count in range(1, 4):
            if holds(replay(trace, Fleet((Pool(one.priced, count),))), promises):
                assert bound <= count + 1e-9


def drafting_market(seed: int):
    """A random trace, a random engine, and the same engine drafting."""
    trace, offers = planner_toys.random_market(seed)
    offers = offers[:1]
    drafted = []
    for one in offers:
        limits = one.priced.limits
        step_ps = int(one.priced.table.token_ps[0, 0])
        token_ps = int(one.priced.table.token_ps[0, 1]) - step_ps
        engine = toys.engine(
            limits, name=f"{one.name}/drafts", step_ps=step_ps, token_ps=token_ps, speculation=Speculation(2, 0.6, 0.1)
        )
        drafted.append(Offer(engine, one.usd_per_hour))
    return trace, [*offers, *drafted]


@pytest.mark.parametrize("block", range(3))
def test_a_plan_with_drafts_is_as_cheap_as_brute_force_with_the_same_routing(block):
    promises, drafting = planner_toys.promises("ttft:p90<=60ms", "tpot:p90<=4ms"), 0
    for seed in range(4 * block, 4 * block + 4):
        trace, offers = drafting_market(seed)
        try:
            plan = find_plan(trace, None, promises, offers=offers, variants=WIDE)
        except Infeasible:
            continue
        market = survey(trace, promises, offers)
        assert plan.usd_per_hour_bound <= plan.usd_per_hour
        assert holds(replay(trace, plan.fleet()), promises)
        drafting += any(pool.name.endswith("drafts") for pool in plan.pools)
        judge = Hunt(market, windows_of(market), lambda words: None)
        most = [int(plan.usd_per_hour / usd) for usd in market.usd_per_hour]
        for counts in itertools.product(*(range(count + 1) for count in most)):
            if any(counts) and float(np.dot(counts, market.usd_per_hour)) < plan.usd_per_hour - 1e-6:
                assert not judge.attempt_replicas(counts), (seed, counts)
    assert drafting, "drafts are worth their while in some of these"


def test_the_shortlist_leaves_out_what_another_on_the_same_devices_beats_in_all():
    trace = planner_toys.bursty_trace(0, 60)
    names = ("same", "same", "other")
    offers = [
        replace(one, priced=replace(one.priced, name=name))
        for one, name in zip((toy("x", 1.0), toy("x", 2.0), toy("x", 3.0)), names, strict=True)
    ]
    market = survey(trace, planner_toys.promises("ttft:p90<=100ms"), offers)
    steps = [market.offers[engine].priced.table.token_ps[0, 0] for engine in shortlist(market)]
    assert sorted(steps) == [1 * toys.PS_PER_MS, 3 * toys.PS_PER_MS]


@pytest.fixture(scope="module")
def small_plan():
    """A plan of engines with narrow KV and drafts."""
    variants = Variants(("bf16",), ("fp8",), (1,), (DRAFTS,))
    trace = planner_toys.bursty_trace(0, 200, 20.0)
    slos = parse_all(["ttft:p99<=200ms", "tpot:p99<=12ms"])
    return trace, find_plan(trace, llm.load("llama-3.1-8b"), slos, ["l40s"], variants=variants)


def test_a_plan_of_variants_comes_back_from_its_json_and_replays_the_same(small_plan):
    trace, plan = small_plan
    text = json.dumps(plan.result())
    again = plans.from_result(json.loads(text), llm.load("llama-3.1-8b"))
    engine = again.pools[0].engine
    assert (engine.kv_dtype, engine.settings.speculation) == ("fp8", DRAFTS)
    assert json.dumps(again.result()) == text
    assert replay(trace, again.fleet()).counts() == plan.requests
    assert "kv-fp8 drafts3" in plans.cut_name(plan.pools[0])
    flags = dict(itertools.pairwise(arguments.vllm(engine)))
    assert json.loads(flags["--speculative-config"])["num_speculative_tokens"] == 3
    assert flags["--kv-cache-dtype"] == "fp8"


def test_variants_are_written_down_where_they_are_not_as_usual():
    trace = planner_toys.bursty_trace(0, 10)
    plain = Study("llama-3.1-8b", ("ttft:p99<=2s",))
    assert "engines" not in plan_file.inputs_of(plain, trace)
    wide = replace(plain, engines=Engines(kv_dtypes=("fp8",), dp=(1, 8), speculative=("3:0.7",)))
    inputs = json.loads(json.dumps(plan_file.inputs_of(wide, trace)))
    assert plan_file.study_of(inputs).engines == wide.engines


def test_flags_say_what_may_vary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{number / 4},100,20\n" for number in range(40))
    (tmp_path / "chat.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    asked = ["fleet", "chat.csv", "--model", "llama-3.1-8b", "--devices", "l40s", "--slo", "ttft:p99<=2s", "--analytic"]
    flags = ["--variants", "kv_dtypes=fp8", "--variants", "dp=1,8", "--variants", "speculative=none,3:0.7", "--json"]
    outcome = CliRunner().invoke(main, [*asked, *flags])
    assert outcome.exit_code == 0, outcome.output
    engines = json.loads(outcome.stdout)["inputs"]["engines"]
    assert (engines["kv_dtypes"], engines["dp"], engines["speculative"]) == (["fp8"], [1, 8], ["none", "3:0.7"])
    refused = CliRunner().invoke(main, [*asked, "--variants", "dp"])
    assert refused.exit_code == 2
    assert "--variants dp: expected KEY=VALUE,VALUE" in refused.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("engines: {kv_dtypes: [fp9]}", "3:10: engines: unknown dtype 'fp9'"),
        ("engines: {speculative: ['3']}", "3:10: engines: cannot read the speculation '3'"),
        ("engines: {dp: [0]}", "3:10: engines: dp must be at least 1, not 0"),
        ("engines: {tp: [2]}", "3:11: engines.tp: unknown key"),
    ],
)
def test_mistakes_in_variants_are_told_with_their_place(tmp_path, line, words):
    file = tmp_path / "plan.yaml"
    file.write_text(f"model: llama-3.1-8b\nslo: ['ttft:p99<=2s']\n{line}\n")
    outcome = CliRunner().invoke(main, ["fleet", "-f", str(file)])
    assert outcome.exit_code == 2
    assert words in outcome.stderr
