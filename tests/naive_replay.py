"""The obvious twin of the data plane: a replay told step by step, request by request."""

import math
from fractions import Fraction

import naive_tiers
import numpy as np
from naive_lane import FAR, LATE, NaiveLane
from naive_pool import NaiveShelvedPool
from naive_request import NaiveRequest


class NaiveFleet:
    """All lanes, what is still to come, and the timers: at equal times lanes go first, then timers, then arrivals."""

    def __init__(self, trace, fleet):
        self.fleet, self.lanes, self.pools, self.timers = fleet, [], [], []
        contents, content_tokens = trace.columns.get("prefix_blocks"), trace.metadata.get("block_tokens", 1)
        for pool_index, pool in enumerate(fleet.pools):
            for _ in range(pool.replicas):
                stage_free_ps = [0] * pool.engine.stages
                replica = [NaiveLane(self, pool, stage_free_ps, content_tokens) for _ in range(pool.engine.lanes)]
                self.lanes += replica
                self.pools += [pool_index] * len(replica)
                for lane in replica if pool.engine.ranks > 1 else []:
                    lane.round = replica
        self.place_tiers(trace)
        self.now_ps = 0
        self.front = [i for i, lane in enumerate(self.lanes) if lane.role != "decode"]
        self.back = [i for i, lane in enumerate(self.lanes) if lane.role == "decode"]
        priorities = trace.columns.get("priority", np.zeros(len(trace), np.int64))
        self.requests = [
            NaiveRequest(i, int(a) * 1000, t, o, contents[i].tolist() if contents else (), int(priorities[i]))
            for i, (a, t, o) in enumerate(zip(trace.arrival_ns, trace.input_tokens, trace.output_tokens, strict=True))
        ]
        self.turn = 0
        self.shares = fleet.share_matrix()
        self.credits = np.zeros(self.shares.shape)

    def place_tiers(self, trace):
        tenants, contents = trace.columns.get("tenant"), trace.columns.get("prefix_blocks")
        first_asked_by = {}
        for row in range(len(trace)) if tenants and contents else ():
            for content in contents[row].tolist():
                first_asked_by.setdefault(content, int(tenants.codes[row]))
        owners = tenants.names if tenants else (), lambda each: first_asked_by.get(each, -1)
        chains = naive_tiers.chains(self.fleet, *owners)
        for lane, index in zip(self.lanes, self.pools, strict=True):
            pool = self.fleet.pools[index]
            if pool.eviction != "lru" or pool.quotas:
                lane.pool = NaiveShelvedPool(pool.engine.limits.total_blocks, pool, *owners)
        replicas = [pool.engine.lanes for pool in self.fleet.pools for _ in range(pool.replicas)]
        lanes = iter(self.lanes)
        for count, chain in zip(replicas, chains, strict=True):
            for _ in range(count):
                lane = next(lanes)
                lane.stores, lane.fetches_outside = chain, bool(chain) and lane.fetches_outside

    def run(self):
        coming = list(self.requests)
        while True:
            lane = min(self.lanes, key=lambda lane: lane.next_ps())
            arrival_ps = coming[0].arrival_ps if coming else FAR
            timer_ps = min(self.timers)[0] if self.timers else FAR
            self.now_ps = min(lane.next_ps(), timer_ps, arrival_ps)
            if lane.next_ps() < FAR and lane.next_ps() <= min(arrival_ps, timer_ps):
                lane.next_round(lane.next_ps())
            elif self.timers and timer_ps <= arrival_ps:
                timer = min(self.timers)
                self.timers.remove(timer)
                self.go_off(*timer)
            elif coming:
                self.arrive(coming.pop(0))
            else:
                return self.requests

    def shortest(self, candidates):
        return min(candidates, key=lambda i: ((self.lanes[i].outstanding() + 1) * self.lanes[i].cost, i))

    def choose(self, request):
        router = self.fleet.router
        if router == "round-robin":
            self.turn += 1
            return self.front[(self.turn - 1) % len(self.front)]
        if router == "least-kv":
            return min(self.front, key=lambda i: self.lanes[i].kv_in_use())
        if router == "planned":
            bucket = max(b for b, edge in enumerate(self.fleet.input_edges) if request.input_tokens >= edge)
            self.credits[bucket] += self.shares[bucket]
            best = int(np.argmax(self.credits[bucket]))
            self.credits[bucket, best] -= 1.0
            return self.shortest([i for i in self.front if self.pools[i] == best])
        if router == "in-time":
            return self.in_time(request)
        if router == "prefix-aware":
            return self.prefix_aware(request)
        return self.shortest(self.front)

    def prefix_aware(self, request):
        queues = {i: self.lanes[i].outstanding() for i in self.front}
        if max(queues.values()) - min(queues.values()) > 8:
            return min(self.front, key=queues.get)
        mean = Fraction(sum(queues.values()), len(queues))
        variance = sum((queue - mean) ** 2 for queue in queues.values()) / len(queues)
        fit = [i for i in self.front if queues[i] <= mean or (queues[i] - mean) ** 2 <= variance]
        return min(fit, key=lambda i: (-self.lanes[i].matched_tokens(request), queues[i], i))

    def in_time(self, request):
        done_ps = {i: self.lanes[i].prompts_done_ps(request) for i in self.front}
        first = min(self.front, key=done_ps.get)
        if done_ps[first] - request.arrival_ps <= self.fleet.ttft_limit_s * 1e12:
            return first
        if not self.lanes[first].limits.by_priority:
            return max(self.front, key=done_ps.get)
        longer = [
            (-one.input_tokens, i, place)
            for i in self.front
            if self.lanes[i].limits.by_priority
            for place, one in enumerate(self.lanes[i].waiting)
            if one.priority < LATE and one.input_tokens > request.input_tokens
        ]
        if not longer:
            request.priority += LATE
            return first
        _, first, place = min(longer)
        self.lanes[first].waiting[place].priority += LATE
        self.lanes[first].sort_waiting()
        return first

    def arrive(self, request):
        lane = self.lanes[self.choose(request)]
        request.lane = self.lanes.index(lane)
        most_tokens = min(self.lanes[i].limits.max_context_tokens for i in [request.lane, *self.back])
        if request.input_tokens + request.output_tokens > most_tokens:
            request.status, request.finish_ps = "rejected", request.arrival_ps
            return
        if self.fleet.patience_s < math.inf:
            patience_ps = round(self.fleet.patience_s * 1e12)
            self.timers.append((request.arrival_ps + patience_ps, 2 * request.index, "give up"))
        lane.enqueue(request, request.arrival_ps)

    def hand_over(self, request, source):
        lane = self.lanes[self.shortest(self.back)]
        request.source, request.lane, request.status = source, self.lanes.index(lane), "waiting"
        request.last_chunk_ps = source.end_ps - source.start_ps
        lane.enqueue(request, source.end_ps)

    def go_off(self, now_ps, key, what):
        request = self.requests[key // 2]
        lane = self.lanes[request.lane]
        if request.status in ("finished", "cancelled"):
            return
        if what == "loaded" and request.source is None:
            lane.come_back(request, now_ps)
        elif what == "loaded":
            request.release_source(now_ps)
            request.status = "ready"
            request.blocks = request.leased
            lane.loading.remove(request)
            lane.ready.append(request)
            lane.wake(now_ps)
        elif request.status == "waiting":
            lane.waiting.remove(request)
            for block in lane.pool.run(("own", request.index)):
                lane.pool.forget(block)
            request.status, request.finish_ps = "cancelled", now_ps
            if request.source is not None:
                request.release_source(now_ps)
            lane.wake(now_ps)
        else:
            request.is_leaving = True


def replay(trace, fleet):
    """Replay with one event a step."""
    return NaiveFleet(trace, fleet).run()
