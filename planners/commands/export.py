"""`plan export`: a plan as Kubernetes objects, Helm values or command lines."""

from pathlib import Path

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import folder_option, json_flag


@click.command(epilog="With no -o the files are printed one after the other.")
@click.argument("target")
@click.argument("plan_path", metavar="PLAN")
@click.option("--model-id", metavar="ID", help="What the serving engine loads; the plan's model name by default.")
@click.option("--image", metavar="IMAGE", help="Container image; the vendor's vLLM image by default.")
@folder_option
@json_flag
def export(
    target: str, plan_path: str, model_id: str | None, image: str | None, folder: str | None, as_json: bool
) -> None:
    """Write the fleet of PLAN (a plan.json) for TARGET.

    Targets: k8s, lws, kserve, llm-d, dynamo, dynamo-v1alpha1, aibrix, skypilot, vllm, sglang, tensorrt-llm, benchmark;
    and of a replay of the plan's trace: benchmark-report, melange, vllm-bench.
    """
    from planners import exports, plan_file
    from planners.exports.deployment import of_plan

    write = exports.load(target)
    saved = plan_file.read(plan_path)
    exports.check_roles(target, (pool.role for pool in saved.plan.pools))
    facts = saved.inputs["trace"]
    deployment = of_plan(
        saved.plan,
        model_id or saved.llm.name,
        promises=tuple(map(str, saved.slos)),
        requests_per_s=facts["requests"] / facts["span_s"] if facts["span_s"] else None,
        image=image,
        seed=saved.inputs["seed"],
    )
    if target in exports.RUN_TARGETS:
        from simulator.replay import replay

        texts = write(deployment, replay(plan_file.read_trace(saved.inputs, plan_path), saved.plan.fleet()))
    else:
        texts = write(deployment)
    warnings = () if model_id else (f"model id is {saved.llm.name!r}; name the checkpoint with --model-id",)
    inputs = {"target": target, "plan": plan_path}
    if folder:
        _write(Path(folder), texts)
        words = "\n".join(str(Path(folder) / name) for name in texts)
    else:
        words = "".join(f"# file: {name}\n{text}---\n" for name, text in texts.items()).removesuffix("---\n").rstrip()
    give(Answer("export", inputs, {"files": texts}, warnings), as_json, words)


def _write(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        if name.endswith(".sh"):
            path.chmod(0o755)
