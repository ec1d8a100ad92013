"""The obvious twin of a lane's memory: blocks in a queue, taken from its head, or evicted by another rule."""

from naive_tiers import NaiveEntry, unread


class NaiveBlock:
    def __init__(self):
        self.key, self.users = None, 0


class NaivePool:
    """Blocks as vLLM keeps them: free ones in a queue, taken from its head, each still known by its content."""

    def __init__(self, total):
        self.queue, self.known, self.sizes = [NaiveBlock() for _ in range(total)], {}, {}

    def take(self, count, evicted):
        """Take free blocks; tell of each content when the first block of it goes."""
        taken, self.queue = self.queue[:count], self.queue[count:]
        for block in taken:
            if block.key is not None and self.sizes.get(block.key[:-1]) == block.key[-1] + 1:
                evicted(block.key[1], block.key[-1] + 1)
            self.forget(block)
            block.users = 1
        return taken

    def forget(self, block):
        if block.key is not None:
            del self.known[block.key]
            block.key = None

    def hold(self, block):
        if block.users == 0:
            self.queue.remove(block)
        block.users += 1

    def give_back(self, blocks):
        for block in reversed(blocks):
            block.users -= 1
            if block.users == 0:
                self.queue.append(block)

    def name(self, blocks, key):
        for place, block in enumerate(blocks):
            block.key = (*key, place)
            self.known[block.key] = block

    def run(self, key):
        """Return the known blocks of a key from its first on."""
        found = []
        while (*key, len(found)) in self.known:
            found.append(self.known[*key, len(found)])
        return found


class NaiveShelvedPool(NaivePool):
    """Blocks without content are taken first, then those of the content that a rule names, its last block first."""

    def __init__(self, total, pool, tenants, tenant_of):
        super().__init__(total)
        self.total, self.scans = total, pool.eviction == "s3-fifo"
        self.tenant_of = tenant_of if pool.quotas else lambda content: -1
        self.quota = {-1: 0} | {i: round(pool.quotas.get(name, 0) * total) for i, name in enumerate(tenants)}
        self.entries, self.ghosts = {}, {owner: {} for owner in self.quota}
        self.free = {}  # entries by key, in the order in which they came free

    def owner(self, key):
        return self.tenant_of(key[1]) if key[0] == "shared" else -1

    def take(self, count, evicted):
        taken = []
        for _ in range(count):
            block = next((block for block in self.queue if block.key is None), None) or self.next_out(evicted)
            self.queue.remove(block)
            block.users = 1
            taken.append(block)
        return taken

    def next_out(self, evicted):
        """Take the last block of what the rule evicts next out of its content."""
        kept = {owner: {} for owner in self.quota}
        for key, entry in self.free.items():
            kept[self.owner(key)][key] = entry
        held = {owner: sum(entry.blocks for entry in kept[owner].values()) for owner in kept}
        owner = max((one for one in kept if held[one]), key=lambda one: held[one] - self.quota[one])
        key = unread(kept[owner]) if self.scans else next(iter(kept[owner]))
        others = {other: entry for other, entry in self.free.items() if other not in kept[owner]}
        self.free = others | kept[owner]
        entry = self.free[key]
        if entry.blocks == self.sizes.get(key):
            evicted(key[1], entry.blocks)
        block = self.known[*key, entry.blocks - 1]
        self.forget(block)
        if entry.blocks == 0 and entry.is_small and key[0] == "shared":
            ghosts = self.ghosts[owner]
            ghosts[key] = self.sizes[key]
            while sum(ghosts.values()) > self.total:
                del ghosts[next(iter(ghosts))]
        return block

    def forget(self, block):
        if block.key is not None:
            key = block.key[:-1]
            self.entries[key].blocks -= 1
            if self.entries[key].blocks == 0:
                self.free.pop(key, None)
        super().forget(block)

    def hold(self, block):
        super().hold(block)
        if block.key is not None:
            self.free.pop(block.key[:-1], None)
            self.entries[block.key[:-1]].reads = min(3, self.entries[block.key[:-1]].reads + (block.key[-1] == 0))

    def give_back(self, blocks):
        super().give_back(blocks)
        for block in reversed(blocks):
            if block.users == 0 and block.key is not None:
                self.free.setdefault(block.key[:-1], self.entries[block.key[:-1]])

    def name(self, blocks, key):
        super().name(blocks, key)
        entry = self.entries[key] = NaiveEntry(len(blocks), 0)
        entry.is_small = self.scans and self.ghosts[self.owner(key)].pop(key, None) is None
