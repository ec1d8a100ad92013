"""The obvious twin of a lane: steps told request by request, block by block."""

from itertools import groupby

from naive_pool import NaivePool

LATE = 1 << 20  # added to the priority of a prompt that cannot be in time
FAR = 1 << 62


class NaiveLane:
    """One scheduler: vLLM v1's loop over a list of running and a list of waiting requests."""

    def __init__(self, fleet, pool, stage_free_ps, content_tokens):
        limits = pool.engine.limits
        self.limits, self.table, self.engine, self.cost = limits, pool.engine.table, 0, pool.engine.lanes / pool.speed
        self.fleet, self.role = fleet, pool.role
        self.stage_free_ps, self.content_tokens = stage_free_ps, content_tokens
        self.loading, self.ready, self.round = [], [], [self]
        self.link_free_ps, self.link = 0, fleet.fleet.link
        self.link_ps_per_token = round(pool.engine.kv_bytes_per_token / self.link.bytes_per_s * 1e12)
        self.layers = pool.engine.layers
        self.waiting, self.running = [], []
        self.end_ps, self.woken_ps, self.start_ps = None, None, None
        self.late_blocks, self.late_finishes, self.swap_ps = 0, 0, 0
        self.pool, self.reserve = NaivePool(limits.total_blocks), limits.reserve
        self.stores, self.fetch_ps = [], 0
        self.fetch_layers = self.layers if pool.fetches == "layer-wise" else 0
        self.fetches_outside, self.fetching = pool.fetches == "outside", []

    def prompts_done_ps(self, request):
        """Return when a router should think that the lane is done with a prompt, by full steps."""
        before = [one for one in self.running if not one.is_decoding()]
        before += [one for one in self.waiting if one.priority < LATE and self.limits.by_priority]
        done = [(one, one.computed + one.chunk if one in self.running else 0) for one in before] + [(request, 0)]
        most, decoding = self.limits.max_batched_tokens, sum(one.is_decoding() for one in self.running)
        tokens = sum(one.input_tokens - computed for one, computed in done)
        if not self.limits.by_priority:
            tokens += sum(one.input_tokens + one.generated for one in self.waiting)
        pairs = sum(past_pairs(one.input_tokens, most) - past_pairs(computed, most) for one, computed in done)
        step_ps = int(self.table.token_ps[0, most] + self.table.sequence_ps[0, 1] + self.table.prefill_ps[0, most])
        pair_ps = int(self.table.prefill_slope_ps[0, most]) // most
        begin_ps = request.arrival_ps if self.end_ps is None else self.end_ps
        return begin_ps + -(-tokens // max(1, most - decoding)) * step_ps + pairs * pair_ps

    def outstanding(self):
        return sum(map(len, (self.waiting, self.running, self.loading, self.ready, self.fetching)))

    def blocks_for(self, tokens):
        return -(-tokens // self.limits.block_tokens)

    def lacks(self, request, tokens):
        """Return the blocks that a running request still needs for so many tokens more."""
        return max(0, self.blocks_for(request.computed + tokens) - len(request.blocks))

    def unready(self):
        """Return the blocks that decodes of this step are yet to take."""
        return sum(self.lacks(r, self.gain(r)) for r in self.running if r.is_decoding())

    def gain(self, request):
        """Return the whole tokens that a decoding request gains in its next step."""
        return request.parts + self.limits.growth_parts >> self.limits.part_shift

    def free_blocks(self):
        return len(self.pool.queue) - self.late_blocks

    def kv_in_use(self):
        shift = self.limits.part_shift
        tokens = sum((r.computed << shift) + r.parts for r in self.running if r.is_decoding()) >> shift
        tokens += sum(r.computed + r.chunk for r in self.running if not r.is_decoding())
        return tokens / (self.limits.total_blocks * self.limits.block_tokens)

    def node_blocks(self, request, place):
        """Return the blocks that the content block at a place of a request takes, the last one perhaps fewer."""
        size = self.content_tokens
        end_tokens = min((place + 1) * size, request.input_tokens)
        return self.blocks_for(end_tokens) - self.blocks_for(place * size)

    def look_up(self, request):
        """Return (shared whole content, part of the next, own leavings), each a list of blocks."""
        shared, nodes = [], 0
        for place, content in enumerate(request.contents):
            found = self.pool.run(("shared", content))
            if not found:
                break
            if len(found) < self.node_blocks(request, place):
                return shared, nodes, found, []
            shared += found
            nodes += 1
        own = self.pool.run(("own", request.index)) if nodes == request.left_after_nodes else []
        return shared, nodes, [], own

    def matched_tokens(self, request):
        shared, _, part, _ = self.look_up(request) if self.limits.caching else ([], 0, [], [])
        return min(len([*shared, *part]) * self.limits.block_tokens, request.input_tokens)

    def admit(self, request, budget):
        """Return the request's first chunk, its cached blocks in hold; 0 where it must wait."""
        limits, shared, nodes, part, own = self.limits, [], 0, [], []
        if limits.caching and not request.swapped:
            shared, nodes, part, own = self.look_up(request)
        found = [*shared, *part, *own]
        total = request.input_tokens + request.generated
        found_tokens = min(len(found) * limits.block_tokens, total)
        reads = []
        if limits.caching and not request.swapped and not self.fetches_outside:
            reads = self.reads_below(request, nodes, found_tokens)
        found_tokens += sum(tokens for _, _, tokens in reads)
        computed = max(request.swapped, min(found_tokens, total - 1))
        chunk = min(total - computed, limits.long_prefill_tokens)
        if not limits.chunked_prefill and chunk > budget:
            return 0
        chunk = min(chunk, budget)
        need = max(0, self.blocks_for(computed + chunk) - len(found))
        queued = sum(block.users == 0 for block in found)
        if need + queued > self.free_blocks() - self.unready() - limits.watermark_blocks:
            return 0
        if limits.reserve_fall and not self.has_room(request, total - computed, queued):
            return 0
        if limits.reserves and sum(map(self.most_blocks, [*self.running, request])) > limits.total_blocks:
            return 0
        if request.swapped:
            self.swap_ps += self.swap_time_ps(request.swapped)
            request.copied, request.swapped = request.swapped if limits.swap_keeps_copies else 0, 0
        self.fetch(reads)
        for block in found:
            self.pool.hold(block)
        for block in [*part, *own]:
            self.pool.forget(block)
        for block in self.pool.run(("own", request.index)):
            self.pool.forget(block)
        request.blocks, request.computed, request.shared_nodes = found, computed, nodes
        if request.scheduled_ps is None:
            request.cached_tokens = min(found_tokens, request.input_tokens)
        return chunk

    def reads_below(self, request, nodes, from_tokens):
        """Return what is to be read of the prompt's content after so many nodes: (store, content, tokens) each."""
        reads, size = [], self.content_tokens
        for place, content in list(enumerate(request.contents))[nodes:]:
            holder = next((store for store in self.stores if store.has(content, self.start_ps)), None)
            if holder is None:
                break
            end_tokens = min((place + 1) * size, request.input_tokens)
            reads.append((holder, content, max(0, end_tokens - max(place * size, from_tokens))))
        return reads if any(tokens for _, _, tokens in reads) else []

    def fetch(self, reads):
        for store, run in groupby(reads, key=lambda read: read[0]):
            tokens = 0
            for _, content, more in run:
                store.give(content)
                tokens += more
            if tokens:
                self.fetch_ps = store.read(self.start_ps + self.fetch_ps, tokens) - self.start_ps

    def blocks_below(self, request):
        """Return the blocks of what tiers have of a prompt beyond what is cached here."""
        shared, nodes, part, own = self.look_up(request)
        found = [*shared, *part, *own]
        known = len(shared) * self.limits.block_tokens + sum(
            tokens for _, _, tokens in self.reads_below(request, nodes, len(shared) * self.limits.block_tokens)
        )
        return self.blocks_for(known) - len(shared) if known > len(found) * self.limits.block_tokens else 0

    def set_out_for(self, request, need):
        """Let the head of the queue wait outside the batch for what tiers have of it; say if there is room."""
        shared, nodes, part, own = self.look_up(request)
        queued = sum(block.users == 0 for block in [*shared, *part, *own])
        if need + queued > self.free_blocks() - self.unready() - self.limits.watermark_blocks:
            return False
        for block in shared:
            self.pool.hold(block)
        for block in self.pool.run(("own", request.index)):
            self.pool.forget(block)
        request.blocks, request.shared_nodes = shared, nodes
        request.leased = self.pool.take(need, self.write_back)
        reads = self.reads_below(request, nodes, len(shared) * self.limits.block_tokens)
        request.coming = len(reads)
        self.fetch(reads)
        self.fleet.timers.append((self.start_ps + self.fetch_ps, 2 * request.index + 1, "loaded"))
        self.fetch_ps, request.status = 0, "fetching"
        self.fetching.append(self.waiting.pop(0))
        return True

    def come_back(self, request, now_ps):
        """Keep what has come as cached content, and queue its request first."""
        leased = request.leased
        for place in reversed(range(request.shared_nodes, request.shared_nodes + request.coming)):
            key, size = ("shared", request.contents[place]), self.node_blocks(request, place)
            found = self.pool.run(key)
            if found and (len(found) == size or found[0].users):
                continue
            for block in found:
                self.pool.forget(block)
            mine, leased = leased[:size], leased[size:]
            self.pool.sizes[key] = size
            self.pool.name(mine, key)
            self.pool.give_back(mine)
        self.pool.give_back(leased)
        self.pool.give_back(request.blocks)
        request.blocks, request.leased, request.shared_nodes = [], [], 0
        self.fetching.remove(request)
        if request.is_leaving:
            request.status, request.finish_ps = "cancelled", now_ps
        else:
            request.status, request.enqueued_ps = "waiting", -1
            self.waiting.insert(0, request)
            self.sort_waiting()
        self.wake(now_ps)

    def swap_time_ps(self, tokens):
        operations = -(-self.blocks_for(tokens) // self.limits.swap_operation_blocks)
        return operations * self.limits.swap_operation_ps + tokens * self.limits.swap_ps_per_token

    def write_back(self, content, blocks):
        takers = [store for store in self.stores if not store.tier.writes_through]
        if takers:
            takers[0].write(content, blocks, self.fleet.now_ps)

    def write_through(self, request):
        for store in self.stores:
            for content in request.contents[: request.shared_nodes] if store.tier.writes_through else ():
                store.write(content, self.pool.sizes["shared", content], self.fleet.now_ps)

    def with_fetch(self, compute_ps):
        fetch_ps, self.fetch_ps = self.fetch_ps, 0
        if not self.fetch_layers:
            return compute_ps + fetch_ps
        return max(compute_ps, fetch_ps) + min(compute_ps, fetch_ps) // self.fetch_layers

    def has_room(self, request, prompt_tokens, queued):
        """Say whether a prompt and its answer fit beside the part that is kept of running requests' answers to come."""
        left = {r: min(max(0, r.output_tokens - r.generated), 4096) for r in self.running}
        kept = sum(tokens for r, tokens in left.items() if r.is_decoding()) * self.reserve >> 20
        kept += sum(tokens for r, tokens in left.items() if not r.is_decoding())
        free = (self.free_blocks() - self.unready() - queued) * self.limits.block_tokens
        answer = min(request.output_tokens - request.generated, 4096)
        return prompt_tokens + answer <= free - kept or not self.running

    def take(self, request, tokens):
        """Give a running request the blocks for so many tokens more, and make its content known."""
        request.blocks = request.blocks + self.pool.take(self.lacks(request, tokens), self.write_back)
        while self.limits.caching and request.shared_nodes < len(request.contents):
            place = request.shared_nodes
            content = request.contents[place]
            if request.computed + tokens < min((place + 1) * self.content_tokens, request.input_tokens):
                break
            if self.pool.run(("shared", content)):
                request.contents = request.contents[:place]
                break
            first = self.blocks_for(place * self.content_tokens)
            self.pool.name(request.blocks[first : first + self.node_blocks(request, place)], ("shared", content))
            self.pool.sizes["shared", content] = self.node_blocks(request, place)
            request.shared_nodes += 1

    def most_blocks(self, request):
        return self.blocks_for(request.input_tokens + request.output_tokens + self.limits.verified_tokens - 1)

    def preempt_last(self):
        """Preempt the last admitted or, by priority, the least urgent, latest that has no chunk in this step yet."""
        request = self.running[-1]
        if self.limits.by_priority:
            free = [one for one in self.running if one.chunk == 0 or one.is_decoding()]
            request = max(free, key=lambda one: (one.priority, one.index))
        if self.limits.reserve_fall:
            decodes = [one for one in reversed(self.running) if one.is_decoding()] or self.running[-1:]
            request = min(decodes, key=lambda one: (one.generated, -one.input_tokens))
        self.running.remove(request)
        others = [one for one in self.running if one.is_decoding()]
        if self.limits.reserve_fall and others:
            answered = sum(one.generated + 20 for one in others)
            self.reserve = min(1 << 20, (answered << 20) // sum(one.output_tokens for one in others))
        if self.limits.swap_ps_per_token:
            request.swapped = request.computed
            self.swap_ps += self.swap_time_ps(max(0, request.computed - request.copied))
        elif self.limits.caching:
            first = sum(self.node_blocks(request, place) for place in range(request.shared_nodes))
            own = request.blocks[first : request.computed // self.limits.block_tokens]
            self.pool.name(own, ("own", request.index))
        request.left_after_nodes = request.shared_nodes
        self.pool.give_back(request.blocks)
        request.blocks, request.shared_nodes = [], 0
        request.computed = request.chunk = request.parts = 0
        request.status = "waiting"
        request.preemptions += 1
        request.enqueued_ps = -1
        self.waiting.insert(0, request)
        self.sort_waiting()

    def begin_step(self, now_ps):
        """Form a step with what the scheduler knew when the last one began, or, if that is nothing, with all."""
        formed_ps = self.start_ps if self.limits.asynchronous and self.end_ps is not None else now_ps
        self.start_ps = now_ps
        self.form_step(formed_ps)
        if not self.running and formed_ps < now_ps:
            self.form_step(now_ps)
        self.end_ps = None
        if self.running:
            duration_ps, self.swap_ps = self.with_fetch(self.price_ps() + self.swap_ps), 0
            self.end_ps = self.through_pipeline(duration_ps) if len(self.stage_free_ps) > 1 else now_ps + duration_ps

    def enqueue(self, request, now_ps):
        self.waiting.append(request)
        self.sort_waiting()
        request.enqueued_ps = now_ps
        self.wake(now_ps)

    def sort_waiting(self):
        if self.limits.by_priority:
            self.waiting.sort(key=lambda request: (request.priority, request.index))

    def wake(self, now_ps):
        """Begin a step as the next event, unless a lane that this one steps together with is in its own."""
        if all(lane.end_ps is None for lane in self.round) and (self.waiting or self.ready):
            self.woken_ps = now_ps

    def next_ps(self):
        """Return when the lane has something to say."""
        return next((time_ps for time_ps in (self.end_ps, self.woken_ps) if time_ps is not None), FAR)

    def next_round(self, now_ps):
        """End the step of all lanes that step together, and begin the next, as long as the slowest one's."""
        for lane in self.round:
            if lane.end_ps is not None:
                lane.end_step()
        for lane in self.round:
            lane.woken_ps = None
            lane.begin_step(now_ps)
        busy = [lane for lane in self.round if lane.end_ps is not None]
        for lane in busy:
            lane.end_ps = max(other.end_ps for other in busy)

    def is_seen(self, request, formed_ps):
        return formed_ps == self.start_ps or request.enqueued_ps < formed_ps

    def join_ready(self):
        """Let requests whose KV has come take part in the decodes of the coming step."""
        while self.ready:
            request = self.ready.pop(0)
            self.running.append(request)
            request.status, request.joined_ps = "decoding", self.start_ps
            if request.is_leaving:
                self.leave(request, self.start_ps)

    def leave(self, request, now_ps):
        self.running.remove(request)
        self.pool.give_back(request.blocks)
        request.status, request.finish_ps = "cancelled", now_ps

    def load(self, request):
        """Lease blocks for a request prefilled elsewhere and send its KV on the way; say if there were enough."""
        need = self.blocks_for(request.computed)
        if need > self.free_blocks() - self.unready() - self.limits.watermark_blocks:
            return False
        source = request.source
        request.leased = self.pool.take(need, self.write_back)
        self.loading.append(self.waiting.pop(0))
        request.status = "loading"
        moving_ps = request.computed * source.link_ps_per_token
        if self.link.is_layerwise:
            moving_ps = max(moving_ps // source.layers, moving_ps - request.last_chunk_ps)
        source.link_free_ps = max(self.start_ps, source.link_free_ps) + moving_ps
        latency_ps = round(self.link.latency_s * 1e12)
        self.fleet.timers.append((source.link_free_ps + latency_ps, 2 * request.index + 1, "loaded"))
        return True

    def form_step(self, formed_ps):
        limits, preempted = self.limits, False
        self.join_ready()
        for request in self.running:
            request.chunk = 0
        if not limits.prefill_first:
            preempted = self.give_decodes()
        budget = limits.max_batched_tokens - sum(r.chunk for r in self.running)
        for request in [r for r in self.running if not r.is_decoding()]:
            if request not in self.running:
                continue
            chunk = min(request.prompt_left(), limits.long_prefill_tokens, budget)
            while request in self.running and self.lacks(request, chunk) > self.free_blocks() - self.unready():
                self.preempt_last()
                preempted = True
            if request in self.running:
                request.chunk = chunk
                self.take(request, chunk)
                budget -= chunk
        most_running = limits.max_sequences - self.late_finishes
        while not preempted and self.waiting and len(self.running) + len(self.loading) < most_running and budget > 0:
            request = self.waiting[0]
            if request.source is not None:
                if not self.is_seen(request, formed_ps) or not self.load(request):
                    break
                continue
            if not self.is_seen(request, formed_ps):
                break
            if self.fetches_outside and self.limits.caching and not request.swapped:
                need = self.blocks_below(request)
                if need and not self.set_out_for(request, need):
                    break
                if need:
                    continue
            chunk = self.admit(request, budget)
            if chunk == 0:
                break
            self.running.append(self.waiting.pop(0))
            request.status, request.chunk = "prefilling", chunk
            self.take(request, chunk)
            if request.scheduled_ps is None:
                request.scheduled_ps = formed_ps
            budget -= chunk
        if limits.prefill_first and not any(request.chunk for request in self.running):
            self.give_decodes()
        self.late_blocks = self.late_finishes = 0

    def give_decodes(self):
        """Give every decode a token, once enough were preempted for the blocks they need; say if any was."""
        preempted = False
        while any(r.is_decoding() for r in self.running) and self.unready() > self.free_blocks():
            self.preempt_last()
            preempted = True
        for request in self.running:
            request.chunk = self.limits.verified_tokens if request.is_decoding() else 0
        return preempted

    def through_pipeline(self, duration_ps):
        at_ps, stages = self.start_ps, len(self.stage_free_ps)
        for stage in range(stages):
            at_ps = max(at_ps, self.stage_free_ps[stage]) + duration_ps // stages
            self.stage_free_ps[stage] = at_ps
        return at_ps

    def price_ps(self):
        table, engine = self.table, self.engine
        decodes = [r for r in self.running if r.is_decoding() and r.chunk > 0]
        prefills = [r for r in self.running if not r.is_decoding() and r.chunk > 0]
        tokens = sum(r.chunk for r in self.running)
        price = int(table.token_ps[engine, tokens]) + int(table.sequence_ps[engine, len(decodes) + len(prefills)])
        if decodes:
            growth, shift = self.limits.growth_parts, self.limits.part_shift
            context = sum((r.computed << shift) + r.parts + growth for r in decodes)
            price += decode_ps(table, engine, 1 if prefills else 0, len(decodes), context)
        for request in prefills:
            price += prefill_ps(table, engine, request.chunk, request.computed)
        return price

    def end_step(self):
        decodes = [request for request in self.running if request.is_decoding() and request.chunk > 0]
        for request in decodes:
            self.take(request, self.gain(request))
        if decodes and self.limits.reserve_fall:
            self.reserve = max(self.limits.reserve_least, self.reserve - self.limits.reserve_fall)
        free_blocks, outstanding = len(self.pool.queue), self.outstanding()
        ended = []
        for request in list(self.running):
            gained = self.gain(request) if request in decodes else request.chunk
            if request in decodes:
                request.parts += self.limits.growth_parts - (gained << self.limits.part_shift)
            request.computed += gained
            complete = request.chunk > 0 and (request in decodes or request.prompt_left() == 0)
            request.chunk = 0
            if complete:
                if request not in decodes:
                    self.write_through(request)
                request.generated += gained if request in decodes else 1
                request.status = "decoding"
                if request.first_token_ps is None:
                    request.first_token_ps = self.end_ps
                ended.append(request)
        for request in sorted(ended, key=lambda one: (0, one.index) if one in decodes else (1, 0)):
            if request.generated >= request.output_tokens:
                request.status, request.finish_ps = "finished", self.end_ps
                self.running.remove(request)
                self.pool.give_back(request.blocks)
            elif self.role == "prefill" and not request.is_leaving:
                self.running.remove(request)
                self.fleet.hand_over(request, self)
        for request in reversed(self.running):
            if request.is_leaving:
                self.leave(request, self.end_ps)
        if self.limits.asynchronous and self.outstanding() < outstanding:
            self.late_blocks = len(self.pool.queue) - free_blocks
            self.late_finishes = outstanding - self.outstanding()


def decode_ps(table, engine, beside, sequences, context):
    shift = int(table.cell_shift[engine])
    cell = min(context // 2**shift, table.decode_ps.shape[-1] - 1)
    low = int(table.decode_ps[engine, beside, sequences, cell])
    return low + int(table.decode_slope_ps[engine, beside, sequences, cell]) * (context - cell * 2**shift)


def past_pairs(tokens, most):
    return tokens * max(0, tokens - most) // 2


def prefill_ps(table, engine, chunk, past):
    price = int(table.prefill_ps[engine, chunk]) + int(table.prefill_slope_ps[engine, chunk]) * past
    return price + int(table.window_slope_ps[engine, chunk]) * min(past, int(table.window_tokens[engine]))
