"""The hunt for the cheapest fleet that survives the rehearsal: propose, replay, cut off what broke, propose again.

Logic-based Benders decomposition: the mix proposes, the replay disposes, and what it learns of a pool's capacity goes
back into the mix. Capacities learned on one mix of requests guide the search; they prove nothing about another. So
afterwards fleets near the best one, and where there are few enough all fleets that are cheaper, are replayed as well.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from planners.bounds.bound import Windows
from planners.demand import Market
from planners.offers.limits import Limits, keeps
from planners.search import mix, rehearsal
from planners.search.fluid import Limit
from planners.search.mix import Demand
from planners.search.rehearsal import ROUTERS, Candidate, Rehearsed, Verdict
from traces import Trace

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Replicas = tuple[int, ...]  # of each engine

ROUNDS = 40
ROUNDS_BESIDE_SPLIT = 3  # where pools that prefill or decode are cheaper than any mix seen so far
CHEAPER_BY = 1e-6  # relative: what counts as cheaper
CAUTION = 1 / 256  # a pool that broke carries at least this fraction less than what broke it
MOST_FLEETS = 20_000  # beyond so many cheaper fleets not all are looked at
NEIGHBOURS = 60  # most promising ones to replay around one best fleet
EFFORT_REQUESTS = 12_000_000  # requests to replay, at most, once the mix has no more to propose
MOST_ADDED = 2
WHEN_LEFT = "when only"  # begins what is told of a fleet that broke after failures: it may have been more than enough
NOTHING_LEFT = 1e9  # strain of a fleet that failures leave nothing of: large, but more replicas do help


class Hunt:
    """One search on one market: the verdicts so far, what pools were seen to carry, and the cheapest survivors."""

    def __init__(
        self,
        market: Market,
        windows: Windows,
        tell: Callable[[str], None],
        siblings: Sequence[Trace] = (),
        limits: Limits | None = None,
    ) -> None:
        self.market = market
        self.windows = windows
        self.tell = tell
        self.siblings = siblings
        self.hardest = 0  # the number of the trace that broke the last fleet that broke
        self.limits = limits or Limits()
        self.rows = self.limits.rows(market)
        self.engines = undominated(market, self.rows)
        self.verdicts: dict[Candidate, Verdict] = {}
        self.tried: dict[Replicas, bool] = {}
        self.carries: dict[tuple[int, int], float] = {}
        self.reaches: dict[int, float] = {}
        self.best: Verdict | None = None
        self.best_rehearsed: Rehearsed | None = None
        self.best_single: Verdict | None = None
        self.rounds = 0
        self.conditional_usd = 0.0
        self.split_usd = 0.0  # the same for pools hand in hand
        self.is_exhausted = False

    def single_engines(self) -> None:
        """Find the fewest replicas of each engine that survive alone, while they may be cheaper than the best."""
        usd, load = self.market.usd_per_hour, self.market.load
        fewest = np.maximum(np.ceil(load), 1)
        for engine in np.argsort(usd * fewest, kind="stable"):
            if self.market.offers[engine].role == "both" and self._may_serve_alone(engine):
                self._fewest(int(engine), int(fewest[engine]))

    def mixes(self) -> None:
        """Let the mix propose fleets cheaper than the best so far until there are none, or the rounds are over."""
        is_split = self.best is not None and not self._is_alike(self.best.candidate)
        for _ in range(ROUNDS_BESIDE_SPLIT if is_split else ROUNDS):
            proposal = self._proposal()
            if proposal is None:
                self.conditional_usd = math.inf
                return
            self.rounds += 1
            chosen = rehearsal.candidate(*proposal)
            verdict, rehearsed = self.attempt(chosen)
            if not verdict.survives:
                self._learn(chosen, rehearsed)

    def refine(self) -> None:
        """Replay the neighbours of the best fleet, and all cheaper fleets where they are few, until none survives."""
        effort = EFFORT_REQUESTS // (len(self.market.trace) * (1 + len(self.siblings)))
        while self.best is not None and effort > 0 and self._is_alike(self.best.candidate):
            before, spent = self.best, len(self.verdicts)
            self._first_survivor(self._neighbours(before), min(NEIGHBOURS, effort))
            effort -= len(self.verdicts) - spent
            if self.best is before:
                break
        fleets = list(itertools.islice(self._cheaper_fleets(), MOST_FLEETS + 1))
        if len(fleets) <= MOST_FLEETS:
            self.is_exhausted = self._rehearse_all(fleets, effort)

    def shrink(self) -> None:
        """Take replicas away from the best fleet, one by one, until it cannot do without any."""
        while self.best is not None and self._is_alike(self.best.candidate):
            before = self.best
            self._first_survivor(self._one_less(before), len(before.candidate.pools))
            if self.best is before:
                return

    def attempt_replicas(self, replicas: Replicas) -> bool:
        """Rehearse replicas with shares that fill pools alike, under each router; say whether they survive."""
        if replicas not in self.tried:
            self.tried[replicas] = any(self.attempt(chosen)[0].survives for chosen in self._routed(replicas))
        return self.tried[replicas]

    def _routed(self, replicas: Replicas) -> list[Candidate]:
        """Return the ways to share requests: by what pools were seen to carry, by their size, and by load."""
        shares = self._balanced_shares(replicas)
        if shares is None:
            return []
        first = rehearsal.candidate(replicas, shares)
        if len(first.pools) == 1:
            return [first]
        by_size = self._balanced_shares(replicas, lambda _, count: float(count))
        assert by_size is not None, "promises forbid nothing that they did not before"
        second = rehearsal.candidate(replicas, by_size)
        return list(dict.fromkeys([first, second, replace(first, router=ROUTERS[1])]))

    def attempt(self, chosen: Candidate) -> tuple[Verdict, Rehearsed]:
        """Rehearse a candidate and keep it if it is the cheapest survivor."""
        verdict, rehearsed = self._judge(chosen)
        self.verdicts[chosen] = verdict
        self.hardest = self.hardest if verdict.survives else verdict.broke_on
        if verdict.survives and keeps(self.rows, self._replicas(chosen)):
            if _is_cheaper(verdict, self.best):
                self.best, self.best_rehearsed = verdict, rehearsed
                self.tell(f"{describe(self.market, chosen)} survives at ${verdict.usd_per_hour:.2f}/h")
            if self._is_single_device(chosen) and _is_cheaper(verdict, self.best_single):
                self.best_single = verdict
        return verdict, rehearsed

    def _judge(self, chosen: Candidate) -> tuple[Verdict, Rehearsed]:
        """Rehearse a candidate, and what is left of it after every failure that it has to survive."""
        to_the_end = self._is_alike(chosen)  # nothing more is learned from how another fleet's run goes on
        verdict, seen = rehearsal.judge(self.market, chosen, self.siblings, self.hardest, to_the_end=to_the_end)
        if verdict.survives:
            for left in self.limits.degraded(self.market, chosen):
                if not left.pools or len(self._roles(left) & {"prefill", "decode"}) == 1:
                    return replace(verdict, strain=NOTHING_LEFT, fails="nothing is left when replicas fail"), seen
                worse, its_own = rehearsal.judge(self.market, left, self.siblings, self.hardest)
                if not worse.survives:
                    words = f"{WHEN_LEFT} {describe(self.market, left)} are left, {worse.fails}"
                    return replace(verdict, strain=worse.strain, fails=words), its_own
        return verdict, seen

    def learned_usd(self) -> float:
        """Return what, by all that was learned, no fleet that is routed like the best one costs less than."""
        assert self.best is not None, "something survived"
        roles = self._roles(self.best.candidate)
        if roles != {"both"}:
            return self.split_usd if "both" not in roles else 0.0
        return self.best.usd_per_hour if self.is_exhausted else self.conditional_usd

    def _replicas(self, chosen: Candidate) -> Replicas:
        replicas = [0] * len(self.market.offers)
        for engine, count in chosen.pools:
            replicas[engine] = count
        return tuple(replicas)

    def capacity(self, engine: int, count: int) -> float:
        """Return the load that a pool is believed to carry: its replicas, less what was seen to break one."""
        known = [
            carried * count / size
            for (other, size), carried in self.carries.items()
            if other == engine and size >= count
        ]
        return min([float(count), *known])

    def fails_alone(self) -> Bools:
        """Return which engines [engine] are certain not to survive as one replica.

        With one lane all routers are alike, so that its replay decides; with more, only too little power does.
        """
        fails = np.zeros(len(self.market.offers), bool)
        for engine, offer in enumerate(self.market.offers):
            if offer.role != "both":
                fails[engine] = True  # it needs another by its side
            elif offer.usd_per_hour < self._ceiling_usd():
                one = np.zeros(len(self.market.offers))
                one[engine] = 1
                fails[engine] = not self.windows.may_survive(one)
                if not fails[engine] and offer.priced.lanes == 1:
                    chosen = self._alone(engine, 1)
                    verdict = self.verdicts.get(chosen) or rehearsal.judge(self.market, chosen)[0]
                    fails[engine] = not verdict.survives
        return fails

    def cheaper_failure(self) -> Verdict | None:
        """Return the fleet that fails by least of those that cost less than the best; of equal ones the cheapest."""
        failed = [
            verdict for verdict in self.verdicts.values() if not verdict.survives and _is_cheaper(verdict, self.best)
        ]
        return min(failed, key=lambda verdict: (verdict.strain, verdict.usd_per_hour), default=None)

    def _may_serve_alone(self, engine: int) -> bool:
        demand = self.market.demand
        fits = bool(np.isfinite(self.market.load[engine]))
        return fits and bool((demand.lost[:, engine].sum(axis=1) <= demand.allowed).all())

    def _fewest(self, engine: int, fewest: int) -> None:
        """Find the fewest replicas of one engine that survive, if they cost less than the best fleet."""
        usd = float(self.market.usd_per_hour[engine])
        low = fewest - 1  # as good as seen to fail
        cheaper = self._most_cheaper(usd)
        most = min(self._most_allowed(engine), math.inf if cheaper is None else cheaper)
        high = fewest if math.isinf(most) else math.floor(most)
        if math.isinf(most):
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
            if verdict.strain >= strain and not verdict.fails.startswith(WHEN_LEFT):
                return high, high
            low, high, strain = high, 2 * high, verdict.strain
        return low, high

    def _alone(self, engine: int, count: int) -> Candidate:
        return Candidate(((engine, count),), ((1.0,),) * self.market.buckets)

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

    def _most_allowed(self, engine: int) -> float:
        """Return the most replicas of an engine that limits without credits for others leave."""
        mosts = [row.most / row.weights[engine] for row in self.rows if min(row.weights) >= 0 < row.weights[engine]]
        return min(mosts, default=math.inf)

    def _ceiling_usd(self) -> float:
        return math.inf if self.best is None else self.best.usd_per_hour * (1 - CHEAPER_BY)

    def _proposal(self) -> tuple[Replicas, Array] | None:
        """Return the cheapest mix of engines that might yet be cheaper than the best, and how to share the load."""
        market, ceiling = self.market, self._ceiling_usd()
        engines = [engine for engine in self.engines if self._floor_usd(engine) < ceiling]
        if not engines:
            return None
        demand = Demand(market.demand.load[engines], market.demand.lost[:, engines], market.demand.allowed)
        sizes = [mix.sizes_up_to(self._most_worth(engine)) for engine in engines]
        failed = [replicas for replicas in self._failed() if all(engine in engines for engine in replicas)]
        found = mix.cheapest_mix(
            market.usd_per_hour[engines],
            demand,
            [{n: self.capacity(engine, n) for n in counts} for engine, counts in zip(engines, sizes, strict=True)],
            below_usd_per_hour=None if math.isinf(ceiling) else ceiling,
            excluded=[tuple(replicas.get(engine, 0) for engine in engines) for replicas in failed],
            limits=[replace(row, weights=tuple(row.weights[engine] for engine in engines)) for row in self.rows],
            rough=True,
        )
        if found is None:
            return None
        self.conditional_usd = max(self.conditional_usd, found.bound_usd_per_hour)
        replicas = [0] * len(market.offers)
        for engine, count in zip(engines, found.replicas, strict=True):
            replicas[engine] = count
        shares = self._balanced_shares(tuple(replicas))
        assert shares is not None, "the mix carries every bucket"
        return tuple(replicas), shares

    def _most_worth(self, engine: int) -> int:
        """Return the most replicas of an engine worth proposing."""
        load: Array = self.market.demand.load[engine]
        enough = max(1, math.ceil(2 * float(load[np.isfinite(load)].sum())))
        most = self._most_cheaper(float(self.market.usd_per_hour[engine]))
        most = enough if most is None else min(most, enough)
        return max(1, min(most, math.floor(min(self._most_allowed(engine), most))))

    def _balanced_shares(self, replicas: Replicas, carry: Callable[[int, int], float] | None = None) -> Array | None:
        """Return the shares [engine, bucket] that fill the pools alike; None where they cannot carry every bucket.

        carry says what a pool does, by default what it was seen to.
        """
        used = [engine for engine, count in enumerate(replicas) if count]
        demand, carry = self.market.demand, carry or self.capacity
        part = Demand(demand.load[used], demand.lost[:, used], demand.allowed)
        found = mix.balanced_shares(part, [carry(engine, replicas[engine]) for engine in used])
        if found is None:
            return None
        shares = np.zeros(demand.load.shape)
        shares[used] = found
        return shares

    def _failed(self) -> Iterator[dict[int, int]]:
        """Yield the fleets seen to fail under the planned router."""
        for chosen, verdict in self.verdicts.items():
            if not verdict.survives and chosen.router == ROUTERS[0]:
                yield dict(chosen.pools)

    def _floor_usd(self, engine: int) -> float:
        """Return about the least that a mix with one replica of this engine costs if all are busy without a pause.

        The cheapest price of each bucket, less the most that the replica can save of it, plus the replica.
        """
        demand, usd = self.market.demand, self.market.usd_per_hour
        worth = np.min(demand.load * usd[:, None], axis=0)
        load = demand.load[engine]
        useful = np.flatnonzero(np.isfinite(load) & (load > 0) & (worth > 0))
        room, saved = 1.0, 0.0
        for bucket in useful[np.argsort(load[useful] / worth[useful], kind="stable")]:
            part = min(1.0, room / float(load[bucket]))
            saved, room = saved + part * float(worth[bucket]), room - part * float(load[bucket])
        return float(worth.sum()) - saved + float(usd[engine])

    def _learn(self, chosen: Candidate, rehearsed: Rehearsed) -> None:
        """Find what each pool that broke would have carried of its own requests, and cut off more than that."""
        if len(rehearsed.candidate.pools) != len(chosen.pools):
            return  # it broke when a whole pool failed: no pool of it is to blame
        for pool, fraction in rehearsed.overfull():
            engine, count = chosen.pools[pool]
            shares = np.array([row[pool] for row in chosen.shares])
            load = self.market.demand.load[engine]
            carried = float((shares[shares > 0] * load[shares > 0]).sum())
            self._cut(engine, count, min(fraction, 1 - CAUTION) * carried)

    def _cut(self, engine: int, count: int, carried: float) -> None:
        self.carries[engine, count] = min(carried, self.carries.get((engine, count), math.inf))

    def _first_survivor(self, fleets: Iterable[Replicas], most: int) -> None:
        """Rehearse fleets until one survives or so many have failed."""
        for replicas in itertools.islice(fleets, most):
            if self.attempt_replicas(replicas):
                return

    def _rehearse_all(self, fleets: list[Replicas], effort: int) -> bool:
        """Rehearse fleets, the most promising first; say whether all were, but for those that a failed one holds."""
        spent = len(self.verdicts)
        for replicas in sorted(fleets, key=self._promise, reverse=True):
            if self._cost(replicas) >= self._ceiling_usd() or self._is_in_failed(replicas):
                continue
            if len(self.verdicts) - spent >= effort:
                return False
            self.attempt_replicas(replicas)
        return True

    def _neighbours(self, best: Verdict) -> Iterator[Replicas]:
        """Yield the cheaper fleets that differ by a replica or two removed and up to MOST_ADDED added, best first."""
        base = np.array(self._replicas(best.candidate))
        found: set[Replicas] = set()
        used = [engine for engine, _ in best.candidate.pools]
        removals = [
            *itertools.combinations_with_replacement(used, 1),
            *itertools.combinations_with_replacement(used, 2),
        ]
        additions = [
            added
            for size in range(MOST_ADDED + 1)
            for added in itertools.combinations_with_replacement(self.engines, size)
        ]
        for removed in removals:
            for added in additions:
                near = base.copy()
                np.subtract.at(near, list(removed), 1)
                np.add.at(near, list(added), 1)
                is_fleet = near.min() >= 0 and near.any()
                if is_fleet and self._cost(near) < self._ceiling_usd() and keeps(self.rows, near):
                    found.add(tuple(near.tolist()))
        untried = [near for near in found if near not in self.tried and not self._is_in_failed(near)]
        hopeful = [near for near in untried if self.windows.may_survive(near)]
        yield from sorted(hopeful, key=lambda near: (-self._promise(near), near))

    def _one_less(self, best: Verdict) -> Iterator[Replicas]:
        for engine, _ in best.candidate.pools:
            fewer = list(self._replicas(best.candidate))
            fewer[engine] -= 1
            if any(fewer) and keeps(self.rows, fewer):
                yield tuple(fewer)

    def _cheaper_fleets(self) -> Iterator[Replicas]:
        """Yield all fleets of undominated engines that cost less than the best and have the power they need."""
        ceiling, usd = self._ceiling_usd(), self.market.usd_per_hour
        counts = [0] * len(self.market.offers)
        looked = itertools.count()

        def grow(place: int, cost: float) -> Iterator[Replicas]:
            if place == len(self.engines):
                if next(looked) > MOST_FLEETS:
                    yield from itertools.repeat(tuple(counts))  # too many: the caller stops counting
                if any(counts) and keeps(self.rows, counts) and self.windows.may_survive(counts):
                    yield tuple(counts)
                return
            engine = self.engines[place]
            while cost < ceiling:
                yield from grow(place + 1, cost)
                counts[engine] += 1
                cost += float(usd[engine])
            counts[engine] = 0

        return grow(0, 0.0)

    def _promise(self, replicas: Replicas) -> float:
        """Return how much of the trace its replicas serve within the promises if each is on its own: a rough guide."""
        return sum(count * self._reach(engine) for engine, count in enumerate(replicas) if count)

    def _reach(self, engine: int) -> float:
        if engine not in self.reaches:
            everyone = np.arange(len(self.market.trace))
            self.reaches[engine] = rehearsal.largest_fraction(self.market, engine, 1, self.market.trace, everyone)
        return self.reaches[engine]

    def _is_in_failed(self, replicas: Replicas) -> bool:
        """Say whether a fleet that failed holds all these replicas: fewer serve no better."""
        return any(
            not survives and all(few <= many for few, many in zip(replicas, failed, strict=True))
            for failed, survives in self.tried.items()
        )

    def _cost(self, replicas: npt.ArrayLike) -> float:
        return float(np.dot(self.market.usd_per_hour, np.asarray(replicas, np.float64)))

    def _roles(self, chosen: Candidate) -> set[str]:
        return {self.market.offers[engine].role for engine, _ in chosen.pools}

    def _is_alike(self, chosen: Candidate) -> bool:
        """Say whether all its pools both prefill and decode."""
        return self._roles(chosen) == {"both"}

    def _is_single_device(self, chosen: Candidate) -> bool:
        return len({self.market.offers[engine].device_name for engine, _ in chosen.pools}) == 1


def undominated(market: Market, limits: Sequence[Limit] = ()) -> list[int]:
    """Return the engines that no other, cautious and drafting like it, beats in price, every load and idle latency.

    Nor may the other count for more in any limit.
    """
    counted = np.array([limit.weights for limit in limits]).reshape(len(limits), len(market.offers))
    usd, demand, offers = market.usd_per_hour, market.demand, market.offers

    def beats(one: int, other: int) -> bool:
        no_worse = (
            offers[one].is_cautious == offers[other].is_cautious
            and offers[one].priced.limits.verified_tokens == offers[other].priced.limits.verified_tokens
            and usd[one] <= usd[other]
            and bool((demand.load[one] <= demand.load[other]).all())
            and bool((demand.lost[:, one] <= demand.lost[:, other]).all())
            and bool((market.alone_s[:, one] <= market.alone_s[:, other]).all())
            and bool((counted[:, one] <= counted[:, other]).all())
        )
        is_equal = no_worse and usd[one] == usd[other] and bool((demand.load[one] == demand.load[other]).all())
        return no_worse and (not is_equal or one < other)

    everyone = [engine for engine, offer in enumerate(offers) if offer.role == "both"]
    return [other for other in everyone if not any(beats(one, other) for one in everyone if one != other)]


def describe(market: Market, chosen: Candidate) -> str:
    """Return a candidate in words: its replicas and engines."""
    return " + ".join(f"{count} x {market.offers[engine].short_name}" for engine, count in chosen.pools)


def _is_cheaper(one: Verdict, other: Verdict | None) -> bool:
    return other is None or one.usd_per_hour < other.usd_per_hour * (1 - CHEAPER_BY)
