"""The fields that the APIs we write for have, as far as we write them: names, types, and what must be there.

A field's value is a type, a tuple of types, a set of the words allowed, a list with the form of its items, or the
fields below it; a name that ends in ! must be there. Taken from the definitions of each project: Kubernetes apps/v1 and
gateway v1, LeaderWorkerSet v1, KServe LLMInferenceService v1alpha2, the values schema of the llm-d-modelservice chart,
DynamoGraphDeployment v1beta1 and v1alpha1, AIBrix PodAutoscaler v1alpha1, llm-d benchmark report 0.2.1, Mélange.
"""

from typing import Any

NUMBER = (int, float)
ANY = object
TEXTS = {"*": str}

CONTAINER: dict[str, Any] = {
    "name!": str,
    "image": str,
    "command": [str],
    "args": [str],
    "ports": [{"containerPort!": int, "name": str}],
    "readinessProbe": {"httpGet!": {"path": str, "port!": int}, "periodSeconds": int, "failureThreshold": int},
    "startupProbe": {"httpGet!": {"path": str, "port!": int}, "periodSeconds": int, "failureThreshold": int},
    "resources": {"limits": TEXTS, "requests": TEXTS},
    "volumeMounts": [{"name!": str, "mountPath!": str}],
    "env": [{"name!": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath!": str}}}],
    "envFrom": [{"secretRef": {"name!": str}}],
}
VOLUME = {"name!": str, "emptyDir": {"medium": str, "sizeLimit": str}}
POD_SPEC = {"nodeSelector": TEXTS, "containers!": [CONTAINER], "volumes": [VOLUME]}
METADATA = {"name!": str, "labels": TEXTS, "annotations": TEXTS}
POD_TEMPLATE = {"metadata": {"labels": TEXTS}, "spec!": POD_SPEC}
SHARED = {
    "replicas": int,
    "multinode": {"nodeCount!": int},
}

DYNAMO_COMPONENT = {
    "name!": str,
    "type": {"frontend", "worker", "prefill", "decode", "planner", "epp"},
    "podTemplate": POD_TEMPLATE,
    "sharedMemorySize": str,
    "modelRef": {"name!": str, "revision": str},
    **SHARED,
}
DYNAMO_SERVICE = {
    "componentType": str,
    "subComponentType": str,
    "envFromSecret": str,
    "resources": {"limits": {"gpu": str}},
    "extraPodSpec": {"nodeSelector": TEXTS, "mainContainer": {"image": str, "command": [str], "args": [str]}},
    **SHARED,
}
KSERVE_WORKLOAD = {
    "replicas": int,
    "parallelism": {"tensor": int, "pipeline": int, "data": int, "dataLocal": int, "dataRPCPort": int, "expert": bool},
    "template": POD_SPEC,
    "worker": POD_SPEC,
    "labels": TEXTS,
    "annotations": TEXTS,
}
LLM_D_ROLE = {
    "create": bool,
    "replicas": int,
    "nodeSelector": TEXTS,
    "parallelism": {"tensor": int, "data": int, "dataLocal": int, "workers": int},
    "containers": [
        {**CONTAINER, "modelCommand": {"vllmServe", "imageDefault", "custom"}, "mountModelVolume": bool},
    ],
}


def document(version: str, kind: str, spec: Any, *more: tuple[str, Any]) -> dict[str, Any]:
    """The fields of a Kubernetes object."""
    return {"apiVersion!": {version}, "kind!": {kind}, "metadata!": METADATA, "spec!": spec} | dict(more)


KINDS: dict[str, dict[str, Any]] = {
    "apps/v1 Deployment": document(
        "apps/v1", "Deployment", {"replicas": int, "selector!": {"matchLabels": TEXTS}, "template!": POD_TEMPLATE}
    ),
    "v1 Service": document(
        "v1", "Service", {"selector": TEXTS, "ports": [{"name": str, "port!": int, "targetPort": int}]}
    ),
    "v1 ConfigMap": {"apiVersion!": {"v1"}, "kind!": {"ConfigMap"}, "metadata!": METADATA, "data": TEXTS},
    "gateway.networking.k8s.io/v1 HTTPRoute": document(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        {
            "parentRefs": [{"name!": str}],
            "rules": [{"backendRefs": [{"name!": str, "port": int, "weight": int}]}],
        },
    ),
    "leaderworkerset.x-k8s.io/v1 LeaderWorkerSet": document(
        "leaderworkerset.x-k8s.io/v1",
        "LeaderWorkerSet",
        {
            "replicas": int,
            "leaderWorkerTemplate!": {
                "size": int,
                "restartPolicy": {"Default", "RecreateGroupOnPodRestart", "None"},
                "leaderTemplate": POD_TEMPLATE,
                "workerTemplate!": POD_TEMPLATE,
            },
        },
    ),
    "serving.kserve.io/v1alpha2 LLMInferenceService": document(
        "serving.kserve.io/v1alpha2",
        "LLMInferenceService",
        {
            "model!": {"uri!": str, "name": str},
            "router": {"route": {}, "gateway": {}, "scheduler": {}},
            "prefill": KSERVE_WORKLOAD,
            **KSERVE_WORKLOAD,
        },
    ),
    "nvidia.com/v1beta1 DynamoGraphDeployment": document(
        "nvidia.com/v1beta1",
        "DynamoGraphDeployment",
        {"backendFramework": {"sglang", "vllm", "trtllm"}, "components": [DYNAMO_COMPONENT]},
    ),
    "nvidia.com/v1alpha1 DynamoGraphDeployment": document(
        "nvidia.com/v1alpha1",
        "DynamoGraphDeployment",
        {"backendFramework": {"sglang", "vllm", "trtllm"}, "services": {"*": DYNAMO_SERVICE}},
    ),
    "autoscaling.aibrix.ai/v1alpha1 PodAutoscaler": document(
        "autoscaling.aibrix.ai/v1alpha1",
        "PodAutoscaler",
        {
            "scalingStrategy!": {"HPA", "KPA", "APA"},
            "minReplicas": int,
            "maxReplicas!": int,
            "scaleTargetRef!": {"apiVersion": str, "kind": str, "name": str},
            "metricsSources": [
                {
                    "metricSourceType!": {"pod", "resource", "custom", "external", "domain"},
                    "protocolType!": {"http", "https"},
                    "path!": str,
                    "port": str,
                    "targetMetric!": str,
                    "targetValue!": str,
                }
            ],
        },
    ),
}
LLM_D_VALUES = {
    "fullnameOverride": str,
    "modelArtifacts": {"name!": str, "uri!": str, "size": str, "authSecretName": str, "labels": TEXTS},
    "multinode": bool,
    "routing": {"servicePort": int, "proxy": {"enabled": bool, "targetPort": int}},
    "decode": LLM_D_ROLE,
    "prefill": LLM_D_ROLE,
    "accelerator": {"type": {"nvidia", "intel-i915", "intel-xe", "intel-gaudi", "amd", "google"}},
}
SKY_SERVICE = {
    "name": str,
    "resources!": {"accelerators": str, "ports": int},
    "service!": {"readiness_probe!": str, "replicas": int},
    "setup": str,
    "run!": str,
    "num_nodes": int,
}
UNITS = {"count", "percent", "fraction", "ratio", "ms", "s", "ms/token", "s/token", "tokens/s", "queries/s", "Watts"}
STATISTICS = {"units!": UNITS, "mean!": NUMBER, "stddev": NUMBER, "min": NUMBER, "max": NUMBER} | dict.fromkeys(
    ("p0p1", "p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p99p9"), NUMBER
)
SEQUENCE = {
    "distribution!": {"fixed", "gaussian", "uniform", "other"},
    "value!": NUMBER,
    "std_dev": NUMBER,
    "min": int,
    "max": int,
}
NATIVE = {"args": ANY, "envars": ANY, "config": ANY}
BENCHMARK_REPORT = {
    "version!": {"0.2.1"},
    "run!": {"uid!": str, "eid": str, "description": str, "keywords": [str]},
    "scenario": {
        "load": {
            "metadata!": {"schema_version": str, "cfg_id": str, "description": str},
            "standardized!": {
                "tool!": str,
                "tool_version!": str,
                "source!": {"random", "sampled", "unknown"},
                "input_seq_len!": SEQUENCE,
                "output_seq_len": SEQUENCE,
                "rate_qps": NUMBER,
                "concurrency": NUMBER,
                "stage": int,
            },
            "native!": NATIVE,
        },
        "stack": [
            {
                "metadata!": {"schema_version": str, "label!": str, "cfg_id!": str, "description": str},
                "standardized!": {
                    "kind!": {"inference_engine"},
                    "tool!": str,
                    "tool_version!": str,
                    "role!": {"replica", "prefill", "decode"},
                    "replicas!": int,
                    "model!": {"name!": str},
                    "accelerator!": {
                        "model!": str,
                        "count!": int,
                        "parallelism!": dict.fromkeys(("tp", "dp", "dp_local", "workers", "ep", "pp"), int),
                    },
                },
                "native!": NATIVE,
            }
        ],
    },
    "results!": {
        "request_performance": {
            "aggregate": {
                "requests": {
                    "total!": int,
                    "failures": int,
                    "incomplete": int,
                    "input_length": (dict, type(None)),
                    "output_length": (dict, type(None)),
                },
                "latency": dict.fromkeys(
                    ("time_to_first_token", "time_per_output_token", "inter_token_latency", "request_latency"),
                    STATISTICS,
                ),
                "throughput": dict.fromkeys(
                    ("input_token_rate", "output_token_rate", "total_token_rate", "request_rate"), STATISTICS
                ),
            }
        }
    },
}
MELANGE = {
    "gpu_info!": {"*": {"cost!": NUMBER, "tputs!": [[NUMBER]]}},
    "workload_distribution!": [[NUMBER]],
    "total_request_rate!": NUMBER,
    "slice_factor!": int,
    "input_token_edges": [int],
    "output_token_edges": [int],
    "about": [str],
}


def misfits(form: Any, value: Any, place: str = "") -> list[str]:
    """Return what in a value is not as the fields say, each with its place."""
    if isinstance(form, set):
        return [] if value in form else [f"{place}: {value!r} is none of {sorted(form)}"]
    if isinstance(form, list):
        if not isinstance(value, list):
            return [f"{place}: {value!r} is no list"]
        return [each for index, item in enumerate(value) for each in misfits(form[0], item, f"{place}[{index}]")]
    if not isinstance(form, dict):
        wrong = not isinstance(value, form) or (isinstance(value, bool) and form in (int, NUMBER))
        return [f"{place}: {value!r} is no {form}"] if wrong else []
    if not isinstance(value, dict):
        return [f"{place}: {value!r} is no object"]
    known = {name.removesuffix("!"): inner for name, inner in form.items()}
    found = [f"{place}.{name}: missing" for name in form if name.endswith("!") and name[:-1] not in value]
    for name, inner in value.items():
        if name not in known and "*" not in known:
            found.append(f"{place}.{name}: no such field")
        else:
            found += misfits(known.get(name, known.get("*")), inner, f"{place}.{name}")
    return found
