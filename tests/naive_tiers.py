"""The obvious twin of the tiers: dictionaries of content, in the order of its coming."""

from itertools import pairwise


class NaiveEntry:
    def __init__(self, blocks, ready_ps):
        self.blocks, self.ready_ps, self.reads, self.is_small = blocks, ready_ps, 0, False


class NaiveStore:
    """One store: entries of each tenant from the oldest to the newest, and the names of what left unread."""

    def __init__(self, tier, pool, tenants, tenant_of):
        engine, self.tier, self.below = pool.engine, tier, None
        self.block_tokens, self.tenant_of = engine.limits.block_tokens, tenant_of if tier.quotas else lambda content: -1
        self.capacity = int(tier.capacity_bytes / (engine.kv_bytes_per_token * self.block_tokens))
        pipe = (tier.total_bytes_per_s or float("inf")) if tier.is_shared else tier.bytes_per_s
        self.token_ps = round(engine.kv_bytes_per_token / min(pipe, tier.bytes_per_s) * 1e12)
        self.pipe_ps = round(engine.kv_bytes_per_token / pipe * 1e12)
        self.latency_ps, self.operation_ps = round(tier.latency_s * 1e12), round(tier.operation_s * 1e12)
        self.owners = [-1, *range(len(tenants))] if tier.quotas else [-1]
        self.quota = {-1: 0} | {i: round(tier.quotas.get(name, 0) * self.capacity) for i, name in enumerate(tenants)}
        self.kept = {owner: {} for owner in self.owners}
        self.ghosts = {owner: {} for owner in self.owners}
        self.read_free_ps = self.write_free_ps = 0

    def held(self, owner):
        return sum(entry.blocks for entry in self.kept[owner].values())

    def entry(self, content):
        return self.kept[self.tenant_of(content)].get(content)

    def has(self, content, now_ps):
        entry = self.entry(content)
        return entry is not None and entry.ready_ps <= now_ps

    def passing(self, free_ps, begin_ps, tokens):
        """Return when the store is free again after a transfer, and when that has ended."""
        blocks = -(-tokens // self.block_tokens)
        operations = -(-blocks // self.tier.operation_blocks)
        begin_ps = max(begin_ps, free_ps)
        busy_ps = tokens * self.pipe_ps + (0 if self.tier.is_shared else operations * self.operation_ps)
        return begin_ps + busy_ps, begin_ps + operations * self.operation_ps + tokens * self.token_ps + self.latency_ps

    def read(self, begin_ps, tokens):
        self.read_free_ps, end_ps = self.passing(self.read_free_ps, begin_ps, tokens)
        return end_ps

    def give(self, content):
        if self.tier.moves_up:
            del self.kept[self.tenant_of(content)][content]
        else:
            self.touch(content)

    def touch(self, content):
        entries = self.kept[self.tenant_of(content)]
        if self.tier.eviction == "lru":
            entries[content] = entries.pop(content)
        elif self.tier.eviction == "s3-fifo":
            entries[content].reads = min(3, entries[content].reads + 1)

    def put(self, content, blocks, now_ps):
        owner = self.tenant_of(content)
        if self.entry(content) is not None:
            if self.tier.eviction == "lru":
                self.touch(content)
            return
        self.write_free_ps, ready_ps = self.passing(self.write_free_ps, now_ps, blocks * self.block_tokens)
        entry = self.kept[owner][content] = NaiveEntry(blocks, ready_ps)
        entry.is_small = self.tier.eviction == "s3-fifo" and content not in self.ghosts[owner]
        self.ghosts[owner].pop(content, None)

    def write(self, content, blocks, now_ps):
        self.put(content, blocks, now_ps)
        store = self
        while store is not None:
            while sum(map(store.held, store.owners)) > store.capacity:
                store.evict(now_ps)
            store = store.below

    def evict(self, now_ps):
        owner = max((one for one in self.owners if self.kept[one]), key=lambda one: self.held(one) - self.quota[one])
        content = unread(self.kept[owner]) if self.tier.eviction == "s3-fifo" else next(iter(self.kept[owner]))
        entry = self.kept[owner].pop(content)
        if self.below is not None:
            self.below.put(content, entry.blocks, now_ps)
        if entry.is_small:
            ghosts = self.ghosts[owner]
            ghosts[content] = entry.blocks
            while 10 * sum(ghosts.values()) > 9 * self.held(owner):
                del ghosts[next(iter(ghosts))]


def unread(entries):
    """Return what S3-FIFO evicts of entries in order."""
    while True:
        small = [content for content, entry in entries.items() if entry.is_small]
        main = [content for content, entry in entries.items() if not entry.is_small]
        if 10 * sum(entries[each].blocks for each in small) >= sum(entry.blocks for entry in entries.values()):
            entry = entries[small[0]]
            if entry.reads <= 1:
                return small[0]
            entry.reads, entry.is_small = 0, False
            entries[small[0]] = entries.pop(small[0])
        else:
            entry = entries[main[0]]
            if entry.reads == 0:
                return main[0]
            entry.reads -= 1
            entries[main[0]] = entries.pop(main[0])


def chains(fleet, tenants, tenant_of):
    """Return each replica's stores of each pool, the nearest first."""
    found = []
    for pool in fleet.pools:
        shared = {tier.name: NaiveStore(tier, pool, tenants, tenant_of) for tier in pool.tiers if tier.is_shared}
        for _ in range(pool.replicas):
            chain = [shared.get(tier.name) or NaiveStore(tier, pool, tenants, tenant_of) for tier in pool.tiers]
            for store, below in pairwise(chain):
                store.below = below
            found.append(chain)
    return found
