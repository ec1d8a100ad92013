"""A request as the obvious twin of the data plane keeps it."""


class NaiveRequest:
    def __init__(self, index, arrival_ps, input_tokens, output_tokens, contents=(), priority=0):
        self.index, self.arrival_ps = index, arrival_ps
        self.input_tokens, self.output_tokens = max(1, int(input_tokens)), max(1, int(output_tokens))
        self.generated, self.computed, self.chunk, self.preemptions = 0, 0, 0, 0
        self.first_token_ps = self.finish_ps = self.scheduled_ps = self.joined_ps = None
        self.status, self.lane, self.cached_tokens = "waiting", None, 0
        self.contents, self.blocks, self.shared_nodes, self.left_after_nodes = list(contents), [], 0, 0
        self.enqueued_ps, self.source, self.is_leaving = None, None, False
        self.priority, self.swapped, self.copied = priority, 0, 0
        self.parts = 0  # of a token, computed beyond the whole ones since its decoding began

    def release_source(self, now_ps):
        """Give back the blocks on the lane that prefilled this request, and wake that lane if it waits for blocks."""
        source, self.source = self.source, None
        source.pool.give_back(self.blocks)
        self.blocks, self.shared_nodes, self.contents = [], 0, []
        if source.end_ps is None and source.waiting:
            source.wake(now_ps)

    def prompt_left(self):
        return self.input_tokens + max(0, self.generated) - self.computed

    def is_decoding(self):
        return self.status == "decoding"
