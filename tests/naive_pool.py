"""The obvious twin of a lane's memory: blocks in a queue, taken from its head."""


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
