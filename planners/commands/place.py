"""`plan place`: replicas onto nodes, stages onto classes, layers onto groups, tenants onto replicas, experts to run."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from planners.answer import Answer
from planners.cli import FAILED, Failure
from planners.commands.envelope import give
from planners.commands.options import json_flag
from planners.commands.tables import seconds, table

if TYPE_CHECKING:
    from planners.place.pipelines import Cluster

Facts = TypeVar("Facts")
Found = TypeVar("Found")


@click.group()
def place() -> None:
    """Decide what goes where: each question is a file, each answer the best there is or has its bound beside it."""


@place.command()
@click.argument("plan", metavar="PLAN")
@click.argument("file", metavar="RACKS")
@json_flag
def replicas(plan: str, file: str, as_json: bool) -> None:
    """Place the replicas of a plan.json onto the nodes of RACKS.

    RACKS has `racks` as a plan.yaml does: nodes by device, power_w, zone; and perhaps `priority` by pool, `running`
    replicas by node and pool, and `survives_zone`. Urgent pools first, then as few moves as can be, as few nodes, and
    the largest room left on one.
    """
    from planners import plan_file
    from planners.place.place_file import Racks
    from planners.place.placement import place as placed

    facts = _read(file, Racks)
    chosen = plan_file.read(plan).plan
    found = placed(_checked(file, lambda: facts.wanted(chosen)), _checked(file, facts.nodes), facts.power_w())
    where = [(pool, node, count) for (pool, node), count in sorted(found.placed.items())]
    result = {
        "placed": [{"pool": pool, "node": node, "replicas": count} for pool, node, count in where],
        "missing": found.missing,
        "disrupted": found.disrupted,
        "nodes_used": found.nodes_used,
        "most_free": found.most_free,
    }
    rows = [["Pool", "Node", "Replicas"], *([pool, node, str(count)] for pool, node, count in where)]
    lines = [table(rows, right=[2]), ""]
    lines += [f"Missing   {count} x {pool}: no room" for pool, count in found.missing.items()]
    lines.append(f"Nodes     {found.nodes_used} in use, {found.disrupted} running replicas stopped or moved")
    give(Answer("place replicas", {"plan": plan, "file": file}, result), as_json, "\n".join(lines))
    if found.missing and not as_json:
        raise Failure("not every replica has a place", FAILED)


@place.command()
@click.argument("file", metavar="AGENTS")
@json_flag
def stages(file: str, as_json: bool) -> None:
    """Assign the stages of an agent to classes of hardware, cheapest within a promise from end to end.

    AGENTS has `stages`, each with what it takes on the classes it runs on, or a model and tokens for the cost model to
    tell, and what it passes on; `classes` with prices and counts, or a device; `limit_ms`; and perhaps requests_per_s,
    latency_ms, gb_per_s and usd_per_gb between classes.
    """
    from planners.place.agents import assign
    from planners.place.place_file import Agents

    facts = _read(file, Agents)
    graph = _checked(file, facts.graph)
    asked = facts.limit_ms / 1e3, facts.requests_per_s, facts.utilisation
    found = _feasible(lambda: _checked(file, lambda: assign(*graph, *asked)))
    rows = [["Stage", "Class"], *([name, chosen] for name, chosen in found.classes.items())]
    lines = [
        table(rows),
        "",
        f"Path      {seconds(found.seconds)}, promised {seconds(facts.limit_ms / 1e3)}",
        f"Cost      {found.usd_per_request:.6g} USD a request, {found.usd_per_hour:.6g} USD/h in all; none is cheaper",
        f"Replicas  {', '.join(f'{count} x {name}' for name, count in found.replicas.items())}",
    ]
    give(Answer("place stages", {"file": file}, asdict(found)), as_json, "\n".join(lines))


@place.command()
@click.argument("file", metavar="LAYERS")
@click.option("--trials", default=3000, metavar="N", help="Placements to try; 3000 by default.")
@click.option("--seed", default=0, metavar="N", help="Seed of the trials.")
@json_flag
def layers(file: str, trials: int, seed: int, as_json: bool) -> None:
    """Lay the layers of one model over unlike groups of devices, so that most tokens flow through.

    LAYERS has `model`; `groups`, each of a device, how many act as one, how many such, and an island; gbit_per_s
    within islands and between_gbit_per_s; sequences and context_tokens. Told beside it: even stages, pipelines of each
    kind by itself, the best single pipeline, and what no placement serves more than.
    """
    from planners.place.pipelines import best_placement, most_per_s
    from planners.place.place_file import Layers

    cluster, count = _checked(file, _read(file, Layers).cluster)
    placement, per_s = _checked(file, lambda: best_placement(cluster, count, trials, seed))
    most, others = most_per_s(cluster, count), _other_placements(cluster, count)
    spans = {group.name: span for group, span in zip(cluster.groups, placement, strict=True)}
    result = {"layers": count, "placement": spans, "tokens_per_s": per_s, "tokens_per_s_bound": most, "others": others}
    rows = [["Group", "Layers"], *([name, f"{a} to {b}" if b > a else "none"] for name, (a, b) in spans.items())]
    lines = [table(rows), "", f"Serves    {per_s:,.0f} tokens/s; no placement more than {most:,.0f}"]
    lines += [f"Or        {value:,.0f} tokens/s by {name}" for name, value in others.items()]
    give(Answer("place layers", {"file": file, "trials": trials, "seed": seed}, result), as_json, "\n".join(lines))


@place.command()
@click.argument("file", metavar="EXPERTS")
@json_flag
def experts(file: str, as_json: bool) -> None:
    """Choose the experts to run at the edge, and who answers what, under budgets of energy and delay.

    EXPERTS has `queries` by kind with their shares; `experts` with quality, energy_j and delay_ms by kind of query and
    standby_j; energy_j for a mean query, delay_ms for each, and how many are `answering`.
    """
    from planners.place.experts import best_subset
    from planners.place.place_file import Edge

    facts = _read(file, Edge)
    choice = _checked(file, facts.choice)
    found = _feasible(lambda: best_subset(choice, facts.energy_j, facts.delay_ms / 1e3, facts.answering))
    names = list(facts.experts)
    answers = {kind: [names[e] for e in own] for kind, own in zip(facts.queries, found.answers, strict=True)}
    result = {
        "running": [names[expert] for expert in found.running],
        "answers": answers,
        "quality": found.quality,
        "energy_j": found.energy_j,
        "delay_s": found.delay_s,
    }
    rows = [["Query", "Answered by"], *([kind, ", ".join(own)] for kind, own in answers.items())]
    lines = [
        table(rows),
        "",
        f"Quality   {found.quality:.4g}, the most there is within {facts.energy_j:g} J and {facts.delay_ms:g} ms",
        f"Takes     {found.energy_j:.4g} J a query, {seconds(found.delay_s)} at most",
    ]
    give(Answer("place experts", {"file": file}, result), as_json, "\n".join(lines))


@place.command()
@click.argument("file", metavar="TENANTS")
@json_flag
def tenants(file: str, as_json: bool) -> None:
    """Pack tenants that cannot be divided onto the cheapest replicas.

    TENANTS has `tenants`, each with memory_gb, compute and count; and `replicas` with usd_per_hour, memory_gb, compute.
    """
    from planners.place.place_file import Packed
    from planners.place.tenants import cheapest_packing

    facts = _read(file, Packed)
    sizes = _checked(file, facts.sizes)
    found = _checked(file, lambda: cheapest_packing(*sizes))
    kinds, names = list(facts.replicas), list(facts.tenants)
    held = [
        {
            "replica": kinds[kind],
            "count": count,
            "tenants": {name: n for name, n in zip(names, pattern, strict=True) if n},
        }
        for (kind, pattern), count in found.patterns
    ]
    result = {
        "replicas": held,
        "usd_per_hour": found.usd_per_hour,
        "usd_per_hour_bound": found.usd_per_hour_bound,
        "gap": found.gap,
        "usd_per_hour_of_one_more": dict(zip(names, found.tenant_usd_per_hour, strict=True)),
    }
    rows = [["Replicas", "Tenants on each"]]
    rows += [[f"{one['count']} x {one['replica']}", _counted(one["tenants"])] for one in held]
    total = f"Cost      {found.usd_per_hour:.2f} USD/h; no packing costs less than {found.usd_per_hour_bound:.2f}"
    give(Answer("place tenants", {"file": file}, result), as_json, f"{table(rows)}\n\n{total} (gap {found.gap:.1%})")


def _counted(counts: Any) -> str:
    return ", ".join(f"{count} x {name}" for name, count in counts.items())


def _other_placements(cluster: "Cluster", count: int) -> dict[str, float]:
    """Return what simpler placements serve [tokens/s]."""
    from planners.place.pipelines import MOST_STAGES, best_pipeline, even_stages, separate_pipelines, served_per_s

    largest = max(group.most_layers for group in cluster.groups)
    fewest = min(group.most_layers for group in cluster.groups)
    found = {
        "even stages": max(
            served_per_s(cluster, count, even_stages(cluster, count, -(-count // size))) for size in (fewest, largest)
        ),
        "a pipeline of each kind": served_per_s(cluster, count, separate_pipelines(cluster, count)),
    }
    if len(cluster.groups) <= MOST_STAGES:
        found["one pipeline"] = best_pipeline(cluster, count)[2]
    return found


def _read(file: str, kind: type[Facts]) -> Facts:
    from planners import marked_yaml

    return marked_yaml.read(file, kind)


def _checked(file: str, make: Callable[[], Found]) -> Found:
    """Return what is made of a file's content; its mistakes name the file."""
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _feasible(find: Callable[[], Found]) -> Found:
    from planners.search.infeasible import Infeasible

    try:
        return find()
    except Infeasible as error:
        raise Failure("\n".join(error.reasons), FAILED) from error
