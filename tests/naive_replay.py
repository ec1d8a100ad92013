"""The obvious twin of the data plane: a replay told step by step, request by request."""


class NaiveRequest:
    def __init__(self, index, arrival_ps, input_tokens, output_tokens):
        self.index, self.arrival_ps = index, arrival_ps
        self.input_tokens, self.output_tokens = max(1, int(input_tokens)), max(1, int(output_tokens))
        self.generated, self.computed, self.chunk, self.preemptions = 0, 0, 0, 0
        self.first_token_ps = self.finish_ps = self.scheduled_ps = None
        self.status, self.lane = "waiting", None

    def prompt_left(self):
        return self.input_tokens + max(0, self.generated) - self.computed

    def is_decoding(self):
        return self.status == "decoding"

    def blocks(self, block_tokens, more=0):
        return -(-(self.computed + more) // block_tokens)


class NaiveLane:
    """One scheduler: vLLM v1's loop over a list of running and a list of waiting requests."""

    def __init__(self, limits, table, engine, cost, stage_free_ps):
        self.limits, self.table, self.engine, self.cost = limits, table, engine, cost
        self.stage_free_ps = stage_free_ps
        self.waiting, self.running = [], []
        self.end_ps, self.start_ps = None, None
        self.late_blocks, self.late_finishes = 0, 0

    def outstanding(self):
        return len(self.waiting) + len(self.running)

    def free_blocks(self):
        used = sum(r.blocks(self.limits.block_tokens, r.chunk) for r in self.running)
        return self.limits.total_blocks - used - self.late_blocks

    def kv_in_use(self):
        tokens = sum(r.computed + (r.chunk if not r.is_decoding() else 0) for r in self.running)
        return tokens / (self.limits.total_blocks * self.limits.block_tokens)

    def preempt_last(self):
        request = self.running.pop()
        request.computed = request.chunk = 0
        request.status = "waiting"
        request.preemptions += 1
        self.waiting.insert(0, request)

    def begin_step(self, now_ps):
        """Form a step with what the scheduler knew when the last one began, or, if that is nothing, with all."""
        formed_ps = self.start_ps if self.limits.asynchronous and self.end_ps is not None else now_ps
        self.start_ps = now_ps
        self.form_step(formed_ps)
        if not self.running and formed_ps < now_ps:
            self.form_step(now_ps)
        self.end_ps = now_ps + self.price_ps() if self.running else None
        if self.running and len(self.stage_free_ps) > 1:
            self.end_ps = self.through_pipeline(self.price_ps())

    def is_seen(self, request, formed_ps):
        return formed_ps == self.start_ps or request.arrival_ps < formed_ps or request.preemptions > 0

    def form_step(self, formed_ps):
        limits, block, preempted = self.limits, self.limits.block_tokens, False
        for request in self.running:
            request.chunk = 0
        for request in [r for r in self.running if r.is_decoding()]:
            while request in self.running and self.free_blocks() < request.blocks(block, 1) - request.blocks(block):
                self.preempt_last()
                preempted = True
            if request in self.running:
                request.chunk = 1
        budget = limits.max_batched_tokens - sum(r.chunk for r in self.running)
        for request in [r for r in self.running if not r.is_decoding()]:
            if request not in self.running:
                continue
            chunk = min(request.prompt_left(), limits.long_prefill_tokens, budget)
            while request in self.running and self.free_blocks() < request.blocks(block, chunk) - request.blocks(block):
                self.preempt_last()
                preempted = True
            if request in self.running:
                request.chunk = chunk
                budget -= chunk
        most_running = limits.max_sequences - self.late_finishes
        while not preempted and self.waiting and len(self.running) < most_running and budget > 0:
            request = self.waiting[0]
            if not self.is_seen(request, formed_ps):
                break
            chunk = min(request.prompt_left(), limits.long_prefill_tokens)
            if not limits.chunked_prefill and chunk > budget:
                break
            chunk = min(chunk, budget)
            if -(-chunk // block) > self.free_blocks() - limits.watermark_blocks:
                break
            self.running.append(self.waiting.pop(0))
            request.status, request.chunk = "prefilling", chunk
            if request.scheduled_ps is None:
                request.scheduled_ps = formed_ps
            budget -= chunk
        self.late_blocks = self.late_finishes = 0

    def through_pipeline(self, duration_ps):
        at_ps, stages = self.start_ps, len(self.stage_free_ps)
        for stage in range(stages):
            at_ps = max(at_ps, self.stage_free_ps[stage]) + duration_ps // stages
            self.stage_free_ps[stage] = at_ps
        return at_ps

    def price_ps(self):
        table, engine = self.table, self.engine
        decodes = [r for r in self.running if r.is_decoding()]
        prefills = [r for r in self.running if not r.is_decoding() and r.chunk > 0]
        tokens = sum(r.chunk for r in self.running)
        price = int(table.token_ps[engine, tokens]) + int(table.sequence_ps[engine, len(decodes) + len(prefills)])
        if decodes:
            context = sum(r.computed + 1 for r in decodes)
            price += decode_ps(table, engine, 1 if prefills else 0, len(decodes), context)
        for request in prefills:
            price += prefill_ps(table, engine, request.chunk, request.computed)
        return price

    def end_step(self):
        for request in list(self.running):
            was_decoding = request.is_decoding()
            request.computed += request.chunk
            complete = request.chunk > 0 and (was_decoding or request.prompt_left() == 0)
            request.chunk = 0
            if complete:
                request.generated += 1
                request.status = "decoding"
                if request.first_token_ps is None:
                    request.first_token_ps = self.end_ps
                if request.generated >= request.output_tokens:
                    request.status, request.finish_ps = "finished", self.end_ps
                    self.running.remove(request)
                    if self.limits.asynchronous:
                        self.late_blocks += request.blocks(self.limits.block_tokens)
                        self.late_finishes += 1


def decode_ps(table, engine, beside, sequences, context):
    shift = int(table.cell_shift[engine])
    cell = context // 2**shift
    low = int(table.decode_ps[engine, beside, sequences, cell])
    return low + int(table.decode_slope_ps[engine, beside, sequences, cell]) * (context - cell * 2**shift)


def prefill_ps(table, engine, chunk, past):
    price = int(table.prefill_ps[engine, chunk]) + int(table.prefill_slope_ps[engine, chunk]) * past
    return price + int(table.window_slope_ps[engine, chunk]) * min(past, int(table.window_tokens[engine]))


def replay(trace, fleet):
    """Replay with one event a step; at equal times lanes go before arrivals, lower lanes first."""
    lanes, pools = [], []
    for pool_index, pool in enumerate(fleet.pools):
        for _ in range(pool.replicas):
            stage_free_ps = [0] * pool.engine.stages
            for _ in range(pool.engine.lanes):
                cost = pool.engine.lanes / pool.speed
                lanes.append(NaiveLane(pool.engine.limits, pool.engine.table, 0, cost, stage_free_ps))
                pools.append(pool_index)
    requests = [
        NaiveRequest(i, int(a) * 1000, t, o)
        for i, (a, t, o) in enumerate(zip(trace.arrival_ns, trace.input_tokens, trace.output_tokens, strict=True))
    ]
    coming, turn = list(requests), 0
    credits = [[0.0] * len(fleet.pools) for _ in fleet.input_edges]
    shares = fleet.share_matrix()
    while True:
        busy = [lane for lane in lanes if lane.end_ps is not None]
        lane = min(busy, key=lambda lane: lane.end_ps) if busy else None
        if lane is not None and (not coming or lane.end_ps <= coming[0].arrival_ps):
            now_ps = lane.end_ps
            lane.end_step()
            lane.begin_step(now_ps)
            continue
        if not coming:
            break
        request = coming.pop(0)
        candidates = list(range(len(lanes)))
        if fleet.router == "round-robin":
            candidates, turn = [turn], (turn + 1) % len(lanes)
        elif fleet.router == "least-kv":
            candidates = [min(candidates, key=lambda i: lanes[i].kv_in_use())]
        elif fleet.router == "planned":
            bucket = max(b for b, edge in enumerate(fleet.input_edges) if request.input_tokens >= edge)
            for pool in range(len(fleet.pools)):
                credits[bucket][pool] += shares[bucket][pool]
            best = max(range(len(fleet.pools)), key=lambda pool: (credits[bucket][pool], -pool))
            credits[bucket][best] -= 1.0
            candidates = [i for i in candidates if pools[i] == best]
        chosen = min(candidates, key=lambda i: ((lanes[i].outstanding() + 1) * lanes[i].cost, i))
        lane = lanes[chosen]
        request.lane = chosen
        if request.input_tokens + request.output_tokens > lane.limits.max_context_tokens:
            request.status, request.finish_ps = "rejected", request.arrival_ps
            continue
        lane.waiting.append(request)
        if lane.end_ps is None:
            lane.begin_step(request.arrival_ps)
    return requests
