"""The hunt for the cheapest fleet that survives the rehearsal: propose, replay, cut off what broke, propose again.

Logic-based Benders decomposition: the mix proposes, the replay disposes, and what it learns of a pool's capacity goes
back into the mix. Capacities learned on one mix of requests guide the search; they prove nothing about another.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from planners import mix, rehearsal
from planners.demand import Market
from planners.mix import Demand
from planners.rehearsal import ROUTERS, Candidate, Verdict
from simulator.run import Run

Array = npt.NDArray[np.float64]

ROUNDS = 40
CHEAPER_BY = 1e-6  # relative: what counts as cheaper
CAUTION = 1 / 256  # a pool that broke carries at least this fraction less than what broke it
SWAPS = 6  # cheaper engines that a replica may be swapped for, at most


class Hunt:
    """One search on one market: the verdicts so far, what pools were seen to carry, and the cheapest survivors."""

    def __init__(self, market: Market, tell: Callable[[str], None]) -> None:
        self.market = market
        self.tell = tell
        self.verdicts: dict[Candidate, Verdict] = {}
        self.carries: dict[tuple[int, int], float] = {}
        self.best: Verdict | None = None
        self.best_run: Run | None = None
        self.best_single: Verdict | None = None
        self.rounds = 0
        self.is_exhausted = False

    def single_engines(self) -> None:
        """Find the fewest replicas of each engine that survive alone, while they may be cheaper than the best."""
        usd, load = self.market.usd_per_hour, self.market.load
        fewest = np.maximum(np.ceil(load), 1)
        for engine in np.argsort(usd * fewest, kind="stable"):
            if not self._may_serve_alone(engine):
                continue
            self._fewest(int(engine), int(fewest[engine]))

    def mixes(self) -> None:
        """Let the mix propose fleets cheaper than the best so far until there are none, or ROUNDS are over."""
        for _ in range(ROUNDS):
            proposal = self._proposal()
            if proposal is None:
                self.is_exhausted = True
                return
            self.rounds += 1
            replicas, shares = proposal
            chosen = rehearsal.candidate(replicas, shares)
            verdict, run = self.attempt(chosen)
            if not verdict.survives:
                self._learn(chosen, run)

    def shrink(self) -> None:
        """Take away or swap for cheaper, replica by replica, until every such neighbour of the best fleet fails."""
        improved = True
        while improved and self.best is not None:
            before = self.best
            for replicas in self._neighbours(before):
                self.attempt_replicas(replicas)
                if self.best is not before:
                    break
            improved = self.best is not before

    def attempt_replicas(self, replicas: tuple[int, ...]) -> bool:
        """Rehearse replicas [engine] with balanced shares, under each router; say whether they survive."""
        carried = [self.capacity(engine, count) if count else 0.0 for engine, count in enumerate(replicas)]
        shares = mix.balanced_shares(self.market.demand, carried)
        if shares is None:
            return False
        chosen = rehearsal.candidate(replicas, shares)
        routers = ROUTERS if len(chosen.pools) > 1 else ROUTERS[:1]
        return any(self.attempt(replace(chosen, router=router))[0].survives for router in routers)

    def attempt(self, chosen: Candidate) -> tuple[Verdict, Run]:
        """Rehearse a candidate and keep it if it is the cheapest survivor."""
        run = rehearsal.rehearse(self.market, chosen)
        verdict = rehearsal.judge(self.market, chosen, run)
        self.verdicts[chosen] = verdict
        if verdict.survives:
            if _is_cheaper(verdict, self.best):
                self.best, self.best_run = verdict, run
                self.tell(f"{describe(self.market, chosen)} survives at ${verdict.usd_per_hour:.2f}/h")
            if self._is_single_device(chosen) and _is_cheaper(verdict, self.best_single):
                self.best_single = verdict
        return verdict, run

    def capacity(self, engine: int, count: int) -> float:
        """Return the load that a pool is believed to carry: its replicas, less what was seen to break one."""
        known = [
            carried * count / size
            for (other, size), carried in self.carries.items()
            if other == engine and size >= count
        ]
        return min([float(count), *known])

    def cheaper_failure(self) -> Verdict | None:
        """Return the dearest fleet that fails and costs less than the best; of equal ones the least strained."""
        if self.best is None:
            return None
        failed = [
            verdict for verdict in self.verdicts.values() if not verdict.survives and _is_cheaper(verdict, self.best)
        ]
        return max(failed, key=lambda verdict: (verdict.usd_per_hour, -verdict.strain), default=None)

    def _may_serve_alone(self, engine: int) -> bool:
        demand = self.market.demand
        return bool(
            np.isfinite(self.market.load[engine]) and (demand.lost[:, engine].sum(axis=1) <= demand.allowed).all()
        )

    def _fewest(self, engine: int, fewest: int) -> None:
        """Find the fewest replicas of one engine that survive, if they cost less than the best fleet."""
        usd = float(self.market.usd_per_hour[engine])
        low = fewest - 1  # as good as seen to fail
        high = self._most_cheaper(usd)
        if high is None:
            low, high = self._gallop(engine, fewest)
        elif high <= low or not self._engine_survives(engine, high):
            return
        while high - low > 1:
            middle = (low + high) // 2
            if self._engine_survives(engine, middle):
                high = middle
            else:
                low = middle

    def _gallop(self, engine: int, fewest: int) -> tuple[int, int]:
        """Double the replicas until they survive, or until more of them help no more; return (fails, survives)."""
        low, high, strain = fewest - 1, fewest, math.inf
        while not self._engine_survives(engine, high):
            verdict = self.verdicts[self._alone(engine, high)]
            if verdict.strain >= strain:
                return high, high
            low, high, strain = high, 2 * high, verdict.strain
        return low, high

    def _alone(self, engine: int, count: int) -> Candidate:
        return Candidate(((engine, count),), ((1.0,),) * len(self.market.input_edges))

    def _engine_survives(self, engine: int, count: int) -> bool:
        verdict, _ = self.attempt(self._alone(engine, count))
        if not verdict.survives:
            self._cut(engine, count, (1 - CAUTION) * float(self.market.load[engine]))
        return verdict.survives

    def _most_cheaper(self, usd: float) -> int | None:
        """Return the most replicas at a price that cost less than the best fleet; None where there is none yet."""
        if self.best is None:
            return None
        return math.ceil(self.best.usd_per_hour * (1 - CHEAPER_BY) / usd) - 1

    def _proposal(self) -> tuple[tuple[int, ...], Array] | None:
        """Return the cheapest mix of engines that might yet be cheaper than the best, and how to share the load."""
        market = self.market
        ceiling = math.inf if self.best is None else self.best.usd_per_hour * (1 - CHEAPER_BY)
        engines = [engine for engine in undominated(market) if self._floor_usd(engine) < ceiling]
        if not engines:
            return None
        demand = Demand(market.demand.load[engines], market.demand.lost[:, engines], market.demand.allowed)
        capacity = [
            {size: self.capacity(engine, size) for size in mix.sizes_up_to(self._most_cheaper_or(engine))}
            for engine in engines
        ]
        failed = [
            replicas for replicas in self._failed() if all(not count or e in engines for e, count in replicas.items())
        ]
        found = mix.cheapest_mix(
            market.usd_per_hour[engines],
            demand,
            capacity,
            below_usd_per_hour=None if math.isinf(ceiling) else ceiling,
            excluded=[tuple(replicas.get(engine, 0) for engine in engines) for replicas in failed],
        )
        if found is None:
            return None
        replicas = [0] * len(market.offers)
        for engine, count in zip(engines, found.replicas, strict=True):
            replicas[engine] = count
        carried = [self.capacity(engine, count) if count else 0.0 for engine, count in enumerate(replicas)]
        shares = mix.balanced_shares(market.demand, carried)
        assert shares is not None, "the mix carries every bucket"
        return tuple(replicas), shares

    def _most_cheaper_or(self, engine: int) -> int:
        """Return the most replicas of an engine worth proposing."""
        finite = self.market.demand.load[engine][np.isfinite(self.market.demand.load[engine])]
        enough = max(1, math.ceil(2 * finite.sum()))
        most = self._most_cheaper(float(self.market.usd_per_hour[engine]))
        return enough if most is None else min(most, enough)

    def _failed(self) -> Iterator[dict[int, int]]:
        """Yield the fleets seen to fail under the planned router."""
        for chosen, verdict in self.verdicts.items():
            if not verdict.survives and chosen.router == ROUTERS[0]:
                yield dict(chosen.pools)

    def _floor_usd(self, engine: int) -> float:
        """Return a cost that every busy-without-a-pause mix with one replica of this engine exceeds.

        The cheapest price of each bucket, less the most that the replica can save of it, plus the replica.
        """
        demand, usd = self.market.demand, self.market.usd_per_hour
        cheapest = np.min(np.where(np.isfinite(demand.load), demand.load, np.inf) * usd[:, None], axis=0)
        load, worth = demand.load[engine], cheapest
        order = [bucket for bucket in np.argsort(load / worth, kind="stable") if np.isfinite(load[bucket])]
        room, saved = 1.0, 0.0
        for bucket in order:
            part = min(1.0, room / load[bucket]) if load[bucket] > 0 else 1.0
            saved, room = saved + part * worth[bucket], room - part * load[bucket]
            if room <= 0:
                break
        return float(cheapest.sum() - saved + usd[engine])

    def _learn(self, chosen: Candidate, run: Run) -> None:
        """Find what each pool that broke would have carried of its own requests, and cut off more than that."""
        slos = self.market.slos
        strains = [rehearsal.pool_strain(run, pool, slos) for pool in range(len(chosen.pools))]
        worst = max(strains)
        for pool, (engine, count) in enumerate(chosen.pools):
            if strains[pool] > 1 or strains[pool] == worst:
                shares = np.array([row[pool] for row in chosen.shares])
                load = self.market.demand.load[engine]
                carried = float((shares[shares > 0] * load[shares > 0]).sum())
                fraction = rehearsal.largest_fraction(self.market, engine, count, rehearsal.pool_rows(run, pool))
                self._cut(engine, count, min(fraction, 1 - CAUTION) * carried)

    def _cut(self, engine: int, count: int, carried: float) -> None:
        self.carries[engine, count] = min(carried, self.carries.get((engine, count), math.inf))

    def _neighbours(self, best: Verdict) -> Iterator[tuple[int, ...]]:
        """Yield fleets with one replica less, then with one swapped for a cheaper engine's, the cheapest swaps last."""
        replicas = [0] * len(self.market.offers)
        for engine, count in best.candidate.pools:
            replicas[engine] = count
        for engine, _ in best.candidate.pools:
            fewer = replicas.copy()
            fewer[engine] -= 1
            if any(fewer):
                yield tuple(fewer)
        for engine, _ in best.candidate.pools:
            for other in self._swaps_for(engine):
                swapped = replicas.copy()
                swapped[engine] -= 1
                swapped[other] += 1
                yield tuple(swapped)

    def _swaps_for(self, engine: int) -> list[int]:
        """Return the cheaper engines most able to stand in for a replica: the most work for their price first."""
        usd, load = self.market.usd_per_hour, self.market.load
        cheaper = [
            other
            for other in undominated(self.market)
            if usd[other] < usd[engine] * (1 - CHEAPER_BY) and np.isfinite(load[other])
        ]
        return sorted(cheaper, key=lambda other: (load[other], other))[:SWAPS]

    def _is_single_device(self, chosen: Candidate) -> bool:
        return len({self.market.offers[engine].device_name for engine, _ in chosen.pools}) == 1


def undominated(market: Market) -> list[int]:
    """Return the engines that no other, cautious like it or not, beats in price, every load and every promise."""
    usd, demand, offers = market.usd_per_hour, market.demand, market.offers
    budgets = [offer.is_cautious for offer in offers]

    def beats(one: int, other: int) -> bool:
        no_worse = (
            budgets[one] == budgets[other]
            and usd[one] <= usd[other]
            and bool((demand.load[one] <= demand.load[other]).all())
            and bool((demand.lost[:, one] <= demand.lost[:, other]).all())
        )
        is_equal = no_worse and usd[one] == usd[other] and bool((demand.load[one] == demand.load[other]).all())
        return no_worse and (not is_equal or one < other)

    everyone = range(len(offers))
    return [other for other in everyone if not any(beats(one, other) for one in everyone if one != other)]


def describe(market: Market, chosen: Candidate) -> str:
    """Return a candidate in words: its replicas and engines."""
    return " + ".join(f"{count} x {market.offers[engine].short_name}" for engine, count in chosen.pools)


def _is_cheaper(one: Verdict, other: Verdict | None) -> bool:
    return other is None or one.usd_per_hour < other.usd_per_hour * (1 - CHEAPER_BY)
