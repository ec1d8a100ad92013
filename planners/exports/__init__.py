"""A plan as others deploy it: one file a target, each a function from a deployment to named texts."""

from collections.abc import Callable, Iterable
from importlib import import_module

from models.toml_file import unknown_name

Texts = dict[str, str]

TARGETS = {
    "k8s": ("kubernetes:deployments", "Kubernetes Deployments and Services, one of each a pool, and the routing."),
    "lws": ("kubernetes:leader_worker_sets", "LeaderWorkerSets, for replicas that span nodes."),
    "kserve": ("kserve:services", "KServe LLMInferenceService (v1alpha2), one a pool."),
    "llm-d": ("llm_d:values", "Helm values of llm-d-modelservice, one release a pool."),
    "dynamo": ("dynamo:graph", "Dynamo DynamoGraphDeployment (v1beta1)."),
    "dynamo-v1alpha1": ("dynamo:graph_v1alpha1", "Dynamo DynamoGraphDeployment (v1alpha1)."),
    "aibrix": ("aibrix:deployments", "AIBrix Deployments and PodAutoscalers, one of each a pool."),
    "skypilot": ("skypilot:services", "SkyPilot services, one a pool."),
    "vllm": ("shell:vllm", "vLLM command lines, one a pool."),
    "sglang": ("shell:sglang", "SGLang command lines, one a pool."),
    "tensorrt-llm": ("shell:tensorrt_llm", "TensorRT-LLM command lines and their option files, one a pool."),
    "benchmark": ("shell:benchmark", "A command that checks the plan in production with vllm bench serve."),
}

# Targets that show what a replay of the plan's trace predicts: functions of a deployment and a run.
RUN_TARGETS = {
    "benchmark-report": ("results:benchmark_report", "An llm-d benchmark report (0.2.1) of the replay."),
    "melange": ("melange:config", "Input of Mélange's solver: cost and throughput of each kind of replica, by size."),
    "vllm-bench": ("results:vllm_bench", "The replay as vllm bench serve would save it."),
}


# Targets whose objects know how a pool that prefills hands requests over to one that decodes.
PARTING = (
    "k8s",
    "lws",
    "kserve",
    "llm-d",
    "dynamo",
    "dynamo-v1alpha1",
    "vllm",
    "sglang",
    "benchmark",
    "benchmark-report",
    "vllm-bench",
)


def check_roles(target: str, roles: Iterable[str]) -> None:
    """Raise ValueError where pools prefill or decode alone and the target has no way to say so."""
    alone = sorted(set(roles) - {"both"})
    if alone and target not in PARTING:
        words = f"{target} cannot hand requests over between pools that only {' and '.join(alone)}"
        raise ValueError(f"{words}; these can: {', '.join(PARTING)}")


def load(target: str) -> Callable[..., Texts]:
    """Return the function of a target; ValueError names the known ones."""
    known = TARGETS | RUN_TARGETS
    if target not in known:
        raise unknown_name("target", target, known)
    module, name = known[target][0].split(":")
    function: Callable[..., Texts] = getattr(import_module(f"planners.exports.{module}"), name)
    return function
