"""What a lane's memory evicts first: another rule than the least recently freed, and shares by tenant."""

from dataclasses import replace

import numpy as np
import pytest
import toys

from simulator.control.actions import Fail, Open
from simulator.control.plane import operate
from simulator.fleet import Fleet, Pool
from simulator.replay import replay
from traces.trace import Labels

PROMPT = 16  # tokens of a content block, which are four blocks


def pool(prompts, **about):
    """Return a replica whose memory holds so many prompts."""
    bounds = toys.limits(total_blocks=4 * prompts, caching=True, max_context_tokens=16 * prompts)
    return Pool(toys.engine(bounds), 1, **about)


def asked(names, owners=None):
    """Return prompts of one content block by name, one every 100 ms."""
    columns = {} if owners is None else {"tenant": Labels(np.array(owners, np.int32), ("a", "b"))}
    return toys.trace(np.arange(len(names)) * 0.1, PROMPT, 1, [[name] for name in names], **columns)


def hits(names, chosen, owners=None):
    """Return which prompts were found."""
    return replay(asked(names, owners), Fleet((chosen,))).outcome.cached_tokens > 0


def test_a_scan_flushes_lru_but_not_s3_fifo():
    """Three prompts are asked for again and again, and between them twenty that never come back."""
    scan = iter(range(100, 1000))
    warm = [name for _ in range(4) for name in (1, 2, 3)]
    names = [*warm, *(name for _ in range(10) for name in (1, 2, 3, *(next(scan) for _ in range(20))))]
    found = {rule: int(hits(names, pool(10, eviction=rule)).sum()) for rule in ("lru", "s3-fifo")}
    assert found["lru"] == 3 * 3 + 3  # while warm, and once more
    assert found["s3-fifo"] == 3 * 3 + 3 * 10


def test_what_comes_back_after_it_was_forgotten_is_kept_from_then_on():
    """S3-FIFO remembers the name of what left unread, and takes it for more than a passer-by when it comes again."""
    names = [1, *range(100, 110), 1, *range(200, 220), 1]
    assert hits(names, pool(10, eviction="s3-fifo"))[-1]
    assert not hits(names, pool(10))[-1]


def test_a_quota_is_kept_from_others():
    """Tenant a comes back to three prompts while b floods the memory with prompts of its own."""
    names, owners = [], []
    for turn in range(12):
        names += [1, 2, 3, *range(100 + 20 * turn, 120 + 20 * turn)]
        owners += [0] * 3 + [1] * 20
    assert not hits(names, pool(10), owners).any()
    assert hits(names, pool(10, quotas={"a": 0.5, "b": 0.5}), owners).sum() == 3 * 11


def test_by_one_tenant_a_quota_is_lru():
    rng = np.random.default_rng(0)
    names = rng.zipf(1.3, 500).clip(max=60)
    assert (hits(names, pool(10, quotas={"a": 1.0}), [0] * 500) == hits(names, pool(10))).all()


def test_a_lane_that_fails_forgets_content_and_names():
    def failing(plane):
        yield plane.wait(1.15)
        plane.do(Fail(0))
        plane.do(Open(0))

    names = [1, *range(100, 110), 1, 1, *range(200, 220), 1]
    fleet = Fleet((pool(10, eviction="s3-fifo"),))
    run = operate(asked(names), fleet, controllers=[failing]).run
    assert run.is_finished.all()
    assert (run.lanes["free_blocks"] == run.lanes["total_blocks"]).all()
    assert not (run.outcome.cached_tokens[[12, -1]] > 0).any()


def test_evictions_are_checked_where_they_are_made():
    with pytest.raises(ValueError, match="unknown eviction 'fifo' of pool toy; known: lru, s3-fifo"):
        Fleet((pool(10, eviction="fifo"),))
    with pytest.raises(ValueError, match="quotas of pool toy must be shares that add up to at most 1"):
        Fleet((pool(10, quotas={"a": 0.8, "b": 0.4}),))
    with pytest.raises(ValueError, match="pool toy has no prefix cache to evict from"):
        Fleet((replace(pool(10, eviction="s3-fifo"), engine=toys.engine()),))
