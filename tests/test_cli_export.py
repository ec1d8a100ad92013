"""A plan as others deploy it: what is written parses, asks for the planned devices, and has only fields that exist."""

import json
import subprocess
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import toys
import yaml
from click.testing import CliRunner
from export_fields import BENCHMARK_REPORT, KINDS, LLM_D_VALUES, MELANGE, SKY_SERVICE, misfits

from models import device, llm
from models.engine import Engine, Settings
from planners import exports, plan_file
from planners.cli import main
from planners.exports import arguments, melange, results
from planners.exports.deployment import of_plan
from planners.gate import compare
from planners.plan import Plan, PlannedPool
from planners.study import Study
from simulator.replay import replay

H100, L4 = device.load("h100-sxm"), device.load("l4")
SMALL, LARGE = llm.load("llama-3.1-8b"), llm.load("mixtral-8x7b")


def plan_of(*pools: tuple[Engine, int], shares=((0.75, 0.25),)) -> Plan:
    planned = tuple(
        PlannedPool(engine.name, engine.device.name, replicas, usd_per_hour=2.0 * replicas, engine=engine)
        for engine, replicas in pools
    )
    usd = sum(pool.usd_per_hour for pool in planned)
    return Plan(planned, usd, usd / 2, "planned", (0,), shares)


TWO_POOLS = plan_of((Engine(SMALL, H100), 3), (Engine(SMALL, L4, tp=2, dtype="fp8"), 2))
TWO_NODES = plan_of((Engine(LARGE, H100, tp=8, pp=2, ep=8), 1), shares=((1.0,),))


def written(target: str, plan: Plan = TWO_POOLS) -> dict[str, str]:
    deployment = of_plan(plan, "org/model", promises=("ttft:p99<=2s",), requests_per_s=5.5)
    return exports.load(target)(deployment)


def documents(target: str, plan: Plan = TWO_POOLS) -> list[dict]:
    return [each for text in written(target, plan).values() for each in yaml.safe_load_all(text)]


def of_kind(kind: str, found: list[dict]) -> list[dict]:
    return [each for each in found if each.get("kind") == kind]


@pytest.mark.parametrize("plan", ["two pools", "two nodes"])
@pytest.mark.parametrize("target", ["k8s", "lws", "kserve", "dynamo", "dynamo-v1alpha1", "aibrix"])
def test_kubernetes_objects_have_only_fields_that_exist_and_all_that_must_be(target, plan):
    if (target, plan) == ("aibrix", "two nodes"):
        pytest.skip("its Deployments hold one node")
    found = documents(target, TWO_POOLS if plan == "two pools" else TWO_NODES)
    assert found
    for each in found:
        assert misfits(KINDS[f"{each['apiVersion']} {each['kind']}"], each) == []


def test_values_and_services_have_only_fields_that_exist():
    assert [misfits(LLM_D_VALUES, each) for each in documents("llm-d")] == [[], []]
    assert [misfits(SKY_SERVICE, each) for each in documents("skypilot")] == [[], []]


def test_a_field_that_does_not_exist_or_is_missing_is_found():
    (graph,) = documents("dynamo")
    form = KINDS["nvidia.com/v1beta1 DynamoGraphDeployment"]
    graph["spec"]["components"][0]["kind"] = "x"
    graph["spec"]["backendFramework"] = "tgi"
    del graph["metadata"]["name"]
    assert len(misfits(form, graph)) == 3


def test_kubernetes_asks_for_every_planned_device():
    found = of_kind("Deployment", documents("k8s"))
    asked = 0
    for each in found:
        pod = each["spec"]["template"]["spec"]
        asked += each["spec"]["replicas"] * int(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert asked == 3 * 1 + 2 * 2


def test_kubernetes_sends_each_pool_to_its_own_device():
    selectors = [each["spec"]["template"]["spec"]["nodeSelector"] for each in of_kind("Deployment", documents("k8s"))]
    assert selectors == [{"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, {"nvidia.com/gpu.product": "NVIDIA-L4"}]


def test_kubernetes_services_find_the_pods_of_their_pool():
    found = documents("k8s")
    for deployment, service in zip(of_kind("Deployment", found), of_kind("Service", found), strict=True):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_kubernetes_keeps_the_planned_routing():
    found = documents("k8s")
    exact = json.loads(of_kind("ConfigMap", found)[0]["data"]["routing.json"])
    assert exact["shares"] == [[0.75, 0.25]]
    weights = [backend["weight"] for backend in of_kind("HTTPRoute", found)[0]["spec"]["rules"][0]["backendRefs"]]
    assert weights == [750, 250]
    services = [each["metadata"]["name"] for each in of_kind("Service", found)]
    assert exact["pools"] == services


def test_a_replica_on_two_nodes_becomes_a_leader_and_its_worker():
    (group,) = of_kind("LeaderWorkerSet", documents("k8s", TWO_NODES))
    template = group["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 2
    assert template["leaderTemplate"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"


def test_kserve_has_a_service_per_pool_with_its_parallelism():
    found = documents("kserve")
    assert [each["spec"]["parallelism"]["tensor"] for each in found] == [1, 2]
    for each in found:
        assert "--tensor-parallel-size" not in each["spec"]["template"]["containers"][0]["env"][0]["value"]


def test_llm_d_values_fit_the_chart():
    for each in documents("llm-d"):
        assert each["decode"]["containers"][0]["modelCommand"] == "vllmServe"
        assert each["modelArtifacts"]["uri"] == "hf://org/model"
    assert [each["decode"]["parallelism"]["tensor"] for each in documents("llm-d")] == [1, 2]


def test_dynamo_graphs_have_a_frontend_and_a_worker_per_pool():
    (graph,) = documents("dynamo")
    components = graph["spec"]["components"]
    assert [each["type"] for each in components] == ["frontend", "worker", "worker"]
    assert len({each["name"] for each in components}) == 3
    (older,) = documents("dynamo-v1alpha1")
    services = older["spec"]["services"]
    assert sum(each["replicas"] for each in services.values()) == 1 + 3 + 2


def test_a_dynamo_replica_on_two_nodes_says_so():
    (graph,) = documents("dynamo", TWO_NODES)
    assert graph["spec"]["components"][1]["multinode"] == {"nodeCount": 2}


def test_aibrix_scales_each_pool_from_the_plan_up():
    scalers = of_kind("PodAutoscaler", documents("aibrix"))
    assert [each["spec"]["minReplicas"] for each in scalers] == [3, 2]
    names = {each["metadata"]["name"] for each in of_kind("Deployment", documents("aibrix"))}
    assert {each["spec"]["scaleTargetRef"]["name"] for each in scalers} == names
    with pytest.raises(ValueError, match="spans 2 nodes"):
        written("aibrix", TWO_NODES)


def test_skypilot_names_accelerators_and_replicas():
    found = documents("skypilot")
    assert [each["resources"]["accelerators"] for each in found] == ["H100:1", "L4:2"]
    assert [each["service"]["replicas"] for each in found] == [3, 2]


def parted() -> Plan:
    both = plan_of((Engine(SMALL, H100), 3), (Engine(SMALL, L4, tp=2, dtype="fp8"), 2), shares=((1.0,),))
    roles = ("prefill", "decode")
    return replace(both, pools=tuple(replace(pool, role=role) for pool, role in zip(both.pools, roles, strict=True)))


def test_pools_that_hand_over_are_written_so_where_the_target_knows_how():
    for target in ("k8s", "lws", "kserve", "dynamo", "dynamo-v1alpha1"):
        for each in documents(target, parted()):
            assert misfits(KINDS[f"{each['apiVersion']} {each['kind']}"], each) == []
    (service,) = documents("kserve", parted())
    assert (service["spec"]["prefill"]["replicas"], service["spec"]["replicas"]) == (3, 2)
    (graph,) = documents("dynamo", parted())
    assert [each["type"] for each in graph["spec"]["components"]] == ["frontend", "prefill", "decode"]
    prefill, decode = documents("llm-d", parted())
    assert misfits(LLM_D_VALUES, prefill) == misfits(LLM_D_VALUES, decode) == []
    assert [each["create"] for each in (prefill["prefill"], prefill["decode"])] == [True, False]
    assert [each["create"] for each in (decode["prefill"], decode["decode"])] == [False, True]
    assert decode["routing"]["proxy"]["enabled"]
    assert not prefill["routing"]["proxy"]["enabled"]
    assert all("NixlConnector" in text for text in written("vllm", parted()).values())
    first, second = written("sglang", parted()).values()
    assert "--disaggregation-mode prefill" in first
    assert "--disaggregation-mode decode" in second


def test_kubernetes_sends_all_requests_of_a_split_plan_through_the_router_that_hands_them_over():
    found = documents("k8s", parted())
    (route,) = of_kind("HTTPRoute", found)
    (backend,) = route["spec"]["rules"][0]["backendRefs"]
    router = next(each for each in of_kind("Deployment", found) if each["metadata"]["name"] == backend["name"])
    command = router["spec"]["template"]["spec"]["containers"][0]["command"]
    asked = {(flag, url.split("//")[1].split(":")[0]) for flag, url in pairwise(command) if "//" in url}
    roles = {each["metadata"]["name"]: each for each in of_kind("Service", found)}
    assert asked == {(f"--{name.rsplit('-', 1)[1]}", name) for name in roles if not name.endswith("-router")}
    pods = [each["spec"]["template"]["spec"]["containers"][0] for each in of_kind("Deployment", found)]
    assert [each["env"][0]["name"] for each in pods if "env" in each] == ["VLLM_NIXL_SIDE_CHANNEL_HOST"] * 2


def test_a_decode_pool_is_sent_no_request():
    assert [pool.weight for pool in of_plan(parted(), "m").pools] == [1.0, 0.0]


@pytest.mark.parametrize("target", ["aibrix", "melange"])
def test_targets_that_cannot_hand_over_say_which_can(target):
    exports.check_roles(target, ["both"])
    with pytest.raises(ValueError, match=f"{target} cannot hand requests over .* these can: k8s"):
        exports.check_roles(target, ["prefill", "decode"])


@pytest.mark.parametrize("target", ["vllm", "sglang", "tensorrt-llm", "benchmark"])
def test_scripts_are_legal_shell(target, tmp_path):
    for name, text in written(target).items():
        if name.endswith(".sh"):
            (tmp_path / name).write_text(text)
            assert subprocess.run(["bash", "-n", str(tmp_path / name)]).returncode == 0


def test_vllm_is_told_what_was_planned():
    flags = arguments.vllm(Engine(LARGE, H100, tp=8, ep=8, dtype="fp8", kv_dtype="fp8"))
    value = dict(pairwise(flags))
    assert (value["--tensor-parallel-size"], value["--max-num-seqs"], value["--kv-cache-dtype"]) == ("8", "256", "fp8")
    assert "--enable-expert-parallel" in flags
    assert value["--quantization"] == "fp8"


def test_engines_are_told_how_a_prefill_pool_schedules():
    settings = Settings(scheduling_policy="priority", async_scheduling=False)
    planned, usual = (Engine(SMALL, H100, settings=one) for one in (settings, Settings()))
    assert dict(pairwise(arguments.vllm(planned, "prefill")))["--scheduling-policy"] == "priority"
    assert "--no-async-scheduling" in arguments.vllm(planned, "prefill")
    assert "--disable-overlap-schedule" in arguments.sglang(planned, "prefill")
    assert not {"--scheduling-policy", "--no-async-scheduling"} & set(arguments.vllm(usual))
    assert "--disable-overlap-schedule" not in arguments.sglang(usual)


def test_memory_fractions_are_what_each_engine_means_by_them():
    engine = Engine(SMALL, H100)
    kv_bytes = engine.kv_tokens * engine.kv_bytes_per_token_per_device
    static = float(dict(pairwise(arguments.sglang(engine)))["--mem-fraction-static"])
    assert static == pytest.approx((engine.weight_bytes_per_device + kv_bytes) / H100.memory_bytes, abs=1e-3)
    free = arguments.tensorrt_llm(engine)[1]["kv_cache_config"]["free_gpu_memory_fraction"]
    assert free == pytest.approx(kv_bytes / (H100.memory_bytes - engine.weight_bytes_per_device), abs=1e-3)


def test_strings_that_look_like_booleans_are_quoted():
    from planners.exports import yaml_text

    text = yaml_text.text_of([{"answer": "y", "other": "off"}])
    assert '"y"' in text
    assert yaml.safe_load(text) == {"answer": "y", "other": "off"}


def test_every_target_is_written_from_a_plan_file(tmp_path):
    import traces

    inputs = plan_file.inputs_of(Study("llama-3.1-8b", ("ttft:p99<=2s",)), traces.sample())
    (tmp_path / "plan.json").write_text(plan_file.text_of(TWO_POOLS, inputs))
    for target in exports.TARGETS:
        folder = tmp_path / target
        outcome = CliRunner().invoke(main, ["export", target, str(tmp_path / "plan.json"), "-o", str(folder)])
        assert outcome.exit_code == 0, outcome.output
        assert list(folder.iterdir())


def test_what_a_replay_shows_is_written_from_a_plan_file(tmp_path, monkeypatch):
    rows = "".join(f"{number / 4},{100 + 10 * (number % 7)},{20 + number % 5}\n" for number in range(40))
    (tmp_path / "chat.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    monkeypatch.chdir(tmp_path)
    plan = ["fleet", "chat.csv", "--model", "llama-3.1-8b", "--devices", "l4", "--slo", "tpot:p99<=100ms"]
    assert CliRunner().invoke(main, plan).exit_code == 0
    for target in exports.RUN_TARGETS:
        outcome = CliRunner().invoke(main, ["export", target, "plan.json", "-o", target, "--json"])
        assert outcome.exit_code == 0, outcome.output
        assert json.loads(outcome.stdout)["result"]["files"]
        assert list((tmp_path / target).iterdir())


def test_a_replay_reads_like_a_benchmark():
    run = replay(toys.trace(np.arange(20) / 100, 4, 8), toys.fleet())
    deployment = of_plan(TWO_POOLS, "org/model")
    (report,) = yaml.safe_load_all(results.benchmark_report(deployment, run)["benchmark-report.yaml"])
    assert misfits(BENCHMARK_REPORT, report) == []
    aggregate = report["results"]["request_performance"]["aggregate"]
    assert aggregate["requests"]["total"] == 20
    assert aggregate["latency"]["time_to_first_token"]["p50"] == pytest.approx(run.percentile_s("ttft", 50), rel=1e-5)
    assert [each["standardized"]["accelerator"]["parallelism"]["tp"] for each in report["scenario"]["stack"]] == [1, 2]
    content = json.loads(results.vllm_bench(deployment, run)["vllm-bench.json"])
    assert content["p99_tpot_ms"] == pytest.approx(run.percentile_s("tpot", 99) * 1e3, rel=1e-5)
    assert content["output_lens"] == [8] * 20
    assert content["ttfts"] == pytest.approx(run.ttft_s, rel=1e-5)


def test_a_report_of_nothing_served_is_still_a_report():
    run = replay(toys.trace([0, 1], 10_000, 8), toys.fleet())
    (text,) = results.benchmark_report(of_plan(TWO_POOLS, "org/model"), run).values()
    report = yaml.safe_load(text)
    assert misfits(BENCHMARK_REPORT, report) == []
    assert report["results"]["request_performance"]["aggregate"]["requests"]["failures"] == 2


def test_a_throughput_is_that_of_the_largest_batch_that_keeps_the_pace():
    """A step of 1 ms and 1 ms a sequence: 8 sequences of 10 tokens take 9 ms a step, 3 sequences 4 ms."""
    engine = toys.engine(sequence_ps=toys.PS_PER_MS)
    free, kept = (melange.throughput_per_s(engine, 1, 10, limit_s) for limit_s in (float("inf"), 4.5e-3))
    assert free == pytest.approx(8 / (10 * 9e-3), rel=0.05)
    assert kept == pytest.approx(3 / (10 * 4e-3), rel=0.05)
    assert melange.throughput_per_s(engine, 10_000, 1, 1.0) == melange.NEVER_PER_S


def test_sizes_are_counted_where_they_belong():
    trace = toys.trace(np.arange(4), [1, 100, 600, 20_000], [1, 40, 40, 2000])
    counts, inputs, outputs = melange.cells(trace)
    assert counts.sum() == 4
    assert (counts[0, 0], counts[0, 1], counts[2, 1], counts[-1, -1]) == (1, 1, 1, 1)
    assert (inputs[0, 1], outputs[-1, -1], inputs[-1, -1]) == (100, 2000, 20_000)
    assert inputs[1, 3] == 256


def test_melange_is_told_cost_and_throughput_by_size():
    run = replay(toys.trace(np.arange(20) / 100, 4, 8), toys.fleet())
    one = of_plan(plan_of((Engine(SMALL, H100), 3), shares=((1.0,),)), "org/model", promises=("tpot:p99<=50ms",))
    content = json.loads(melange.config(one, run)["melange.json"])
    assert misfits(MELANGE, content) == []
    (told,) = content["gpu_info"].values()
    assert told["cost"] == 2.0
    shapes = [np.shape(each) for each in (told["tputs"], content["workload_distribution"])]
    assert shapes == [(len(melange.INPUT_EDGES), len(melange.OUTPUT_EDGES))] * 2
    assert np.sum(content["workload_distribution"]) == pytest.approx(1)


def test_a_predicted_benchmark_is_compared_like_a_measured_one(tmp_path):
    run = replay(toys.trace(np.arange(20) / 100, 4, 8), toys.fleet())
    (text,) = results.vllm_bench(of_plan(TWO_POOLS, "org/model"), run).values()
    (tmp_path / "bench.json").write_text(text)
    found = compare.read(tmp_path / "bench.json")
    assert found.figures["slo.ttft.p99"] == pytest.approx(run.percentile_s("ttft", 99), rel=1e-5)
    assert found.figures["requests.finished"] == 20


def test_an_unknown_target_is_bad_input(tmp_path):
    outcome = CliRunner().invoke(main, ["export", "nomad", str(tmp_path / "plan.json")])
    assert outcome.exit_code == 2
    assert "known: k8s" in outcome.stderr
