"""The fabric: transfers take what the fluid solution says, links carry no more than they can, and nothing is lost."""

from fractions import Fraction

import pytest
import simpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simulator.control.fabric import Fabric, Link, both_ways, fair_shares, node, route

SECOND_PS = 10**12
GB = 10**9


def run(links, sends, until_s=None):
    """Send (start_s, path, bytes[, operations]) and return when each arrived [s], None where not."""
    environment = simpy.Environment(initial_time=0)
    fabric = Fabric(environment, links)
    ends_s = [None] * len(sends)

    def one(place, start_s, path, size_bytes, operations=1):
        yield environment.timeout(round(start_s * SECOND_PS))
        moved = yield fabric.send(path, size_bytes, operations)
        assert moved == size_bytes
        ends_s[place] = environment.now / SECOND_PS

    for place, send in enumerate(sends):
        environment.process(one(place, *send))
    environment.run(until=None if until_s is None else round(until_s * SECOND_PS))
    return ends_s


A, B = Link("a", "b", 10.0 * GB), Link("b", "c", 2.0 * GB)
ON_A, ON_B, ON_BOTH = ("a>b",), ("b>c",), ("a>b", "b>c")


def test_one_transfer_takes_its_operations_its_latency_and_its_bytes():
    link = Link("a", "b", 1.0 * GB, latency_s=0.25, operation_s=0.01)
    assert run([link], [(0.0, ON_A, 2 * GB, 25)]) == [0.25 + 0.25 + 2.0]


def test_transfers_of_one_link_share_it_and_the_last_speeds_up():
    link = Link("a", "b", 1.0 * GB)
    # both at 0.5 GB/s until 2 s, then 2 GB alone
    assert run([link], [(0.0, ON_A, 1 * GB), (0.0, ON_A, 3 * GB)]) == [2.0, 4.0]


def test_a_late_transfer_slows_what_is_under_way():
    link = Link("a", "b", 1.0 * GB)
    # 1 s alone; three at 1/3 from 1 s: 1 GB each by 4 s; the first's last 1 GB alone by 5 s
    sends = [(0.0, ON_A, 3 * GB), (1.0, ON_A, 1 * GB), (1.0, ON_A, 1 * GB)]
    assert run([link], sends) == pytest.approx([5.0, 4.0, 4.0], abs=1e-9)


def test_four_transfers_over_two_links_follow_the_fluid_solution():
    # B gives 1 GB/s to each of its two; A's other two share the 9 GB/s that are left
    sends = [(0.0, ON_A, 9 * GB), (0.0, ON_A, 18 * GB), (0.0, ON_BOTH, 4 * GB), (0.0, ON_B, 1 * GB)]
    # at 1 s the last ends: the third gets 2 GB/s, A's two 4 GB/s each, 4.5 GB done: the first ends at 1 + 4.5 / 4;
    # from then on the second has 8 GB/s: 9 GB are done, the third (3 GB at 2 GB/s) ends at 2.5 s;
    # by then the second has 18 - 9 - 0.375 * 8 = 6 GB left, alone at 10 GB/s
    assert run([A, B], sends) == pytest.approx([2.125, 3.1, 2.5, 1.0], abs=1e-9)


def test_a_capacity_that_changes_is_followed_and_an_outage_is_waited_for():
    wan = Link("a", "b", ((0.0, 1.0 * GB), (1.0, 0.5 * GB), (2.0, 0.0), (5.0, 4.0 * GB)))
    assert run([wan], [(0.0, ON_A, 3.5 * GB)]) == [5.5]  # 1 + 0.5 + 0 + 2 GB


def test_a_link_that_never_comes_back_holds_its_transfer_for_ever():
    assert run([Link("a", "b", ((0.0, 1.0 * GB), (1.0, 0.0)))], [(0.0, ON_A, 3 * GB)]) == [None]


def test_progress_is_readable_and_a_cancelled_transfer_frees_its_share():
    environment = simpy.Environment(initial_time=0)
    fabric = Fabric(environment, [Link("a", "b", 1.0 * GB)])
    first, second = fabric.send(ON_A, 4 * GB), fabric.send(ON_A, 4 * GB)
    environment.run(until=2 * SECOND_PS)
    assert fabric.moved_bytes(first) == pytest.approx(1 * GB)
    assert (first.rate_bytes_per_s, fabric.flows("a>b"), fabric.free_bytes_per_s("a>b")) == (0.5 * GB, 2, 0.0)
    fabric.cancel(first)
    environment.run(until=second)
    assert first.value == pytest.approx(1 * GB)
    assert (second.value, environment.now) == (4 * GB, 5 * SECOND_PS)
    assert fabric.carried_bytes["a>b"] == pytest.approx(5 * GB)
    fabric.cancel(first)  # over already: nothing happens
    assert first.value == pytest.approx(1 * GB)


def test_a_transfer_cancelled_before_its_bytes_flow_moves_none():
    environment = simpy.Environment(initial_time=0)
    fabric = Fabric(environment, [Link("a", "b", 1.0 * GB, latency_s=1.0)])
    transfer = fabric.send(ON_A, 1 * GB)
    fabric.cancel(transfer)
    environment.run()
    assert (transfer.value, fabric.carried_bytes["a>b"]) == (0.0, 0.0)


def test_what_stays_where_it_is_arrives_at_once():
    assert run([A], [(0.0, (), 5 * GB), (1.0, ON_A, 0)]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda fabric: fabric.send(("a>x",), 1), r"no link 'a>x'; did you mean 'a>b'\?"),
        (lambda fabric: fabric.send(("a>b", "a>b"), 1), "passes a link twice"),
        (lambda fabric: fabric.send(ON_A, -1), "cannot send -1 bytes"),
        (lambda fabric: fabric.route("a", "zebra"), "the fabric has no 'zebra'"),
        (lambda fabric: fabric.route("c", "a"), "no links lead from c to a"),
        (lambda fabric: Link("a", "b", ((1.0, 1.0), (1.0, 2.0))), "expected times in order"),
        (lambda fabric: Link("a", "b", -1.0), "expected 0 or more"),
    ],
)
def test_what_cannot_be_is_refused_with_words(act, words):
    with pytest.raises(ValueError, match=words):
        act(Fabric(simpy.Environment(initial_time=0), [A, B]))


def test_within_a_node_data_takes_the_domain_and_between_nodes_the_adapters():
    links = [*node("n", 4, 300 * GB, 2, 50 * GB), *node("m", 4, 300 * GB, 2, 50 * GB)]
    assert route(links, "n.0", "n.3") == ("n.0>n.domain", "n.domain>n.3")
    assert route(links, "n.0", "m.3") == ("n.0>n.nic0", "n.nic0>switch", "switch>m.nic1", "m.nic1>m.3")
    # n.0 and n.1 share an adapter: 25 GB/s each
    paths = [route(links, "n.0", "m.0"), route(links, "n.1", "m.2"), route(links, "n.0", "n.2")]
    capacity = {link.name: link.bytes_per_s for link in links}
    assert fair_shares(paths, capacity) == [25 * GB, 25 * GB, 300 * GB]


def test_the_two_ways_of_a_connection_do_not_share():
    links = both_ways("a", "b", 1.0 * GB)
    assert run(links, [(0.0, ("a>b",), GB), (0.0, ("b>a",), GB)]) == [1.0, 1.0]


NAMES = ["l0", "l1", "l2", "l3"]
a_path = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)


@given(st.lists(a_path, min_size=1, max_size=8), st.lists(st.integers(1, 50), min_size=4, max_size=4))
def test_shares_are_max_min_fair(paths, capacities):
    """No link carries more than it can, and every flow has a link that is full and on which none gets more."""
    capacity = dict(zip(NAMES, map(float, capacities), strict=True))
    rates = fair_shares(paths, capacity)
    load = {link: sum(rate for rate, path in zip(rates, paths, strict=True) if link in path) for link in NAMES}
    assert all(load[link] <= capacity[link] * (1 + 1e-9) for link in NAMES)
    for rate, path in zip(rates, paths, strict=True):
        most = {
            link: max(other for other, its in zip(rates, paths, strict=True) if link in its)
            for link in path
            if load[link] >= capacity[link] * (1 - 1e-9)
        }
        assert any(rate >= share * (1 - 1e-9) for share in most.values())


def naive_ends_s(capacity, sends):
    """The twin: water rises in every flow at once until a link is full, in exact fractions, event after event."""
    left = [Fraction(size) for _, _, size in sends]
    ends, now = [None] * len(sends), Fraction(0)
    while any(end is None for end in ends):
        active = [n for n, (start, _, _) in enumerate(sends) if start <= now and ends[n] is None]
        rates = naive_shares([sends[n][1] for n in active], capacity, now)
        events = [Fraction(start) for start, _, _ in sends if start > now]
        events += [Fraction(from_s) for steps in capacity.values() for from_s, _ in steps if from_s > now]
        events += [now + left[n] / rate for n, rate in zip(active, rates, strict=True) if rate > 0]
        later = min(events)
        for n, rate in zip(active, rates, strict=True):
            left[n] -= rate * (later - now)
            if left[n] == 0:
                ends[n] = float(later)
        now = later
    return ends


def naive_shares(paths, capacity, now):
    room = {link: Fraction([size for from_s, size in steps if from_s <= now][-1]) for link, steps in capacity.items()}
    rates, rising = [Fraction(0)] * len(paths), set(range(len(paths)))
    while rising:
        users = {link: [n for n in rising if link in paths[n]] for link in room}
        rise = min(room[link] / len(users[link]) for link in room if users[link])
        for n in rising:
            rates[n] += rise
        for link, flows in users.items():
            room[link] -= rise * len(flows)
        rising -= {n for link in room if room[link] == 0 for n in users[link]}
    return rates


a_send = st.tuples(st.integers(0, 6), a_path, st.integers(1, 60))
some_steps = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 20)), max_size=3, unique_by=lambda step: step[0])


@settings(max_examples=150, deadline=None)
@example([(0, ["l0"], 1), (0, ["l0"], 1), (1, ["l1"], 1)], [1, 1, 1, 1], [(1, 0)])
@given(st.lists(a_send, min_size=1, max_size=7), st.lists(st.integers(1, 20), min_size=4, max_size=4), some_steps)
def test_the_fabric_agrees_with_its_naive_twin_and_carries_what_was_sent(sends, capacities, steps):
    capacity = {name: [(0, size)] for name, size in zip(NAMES, capacities, strict=True)}
    capacity["l0"] += [*sorted(steps), (40, 7)]  # ends above nothing, so that all transfers end
    links = [NamedLink(name, steps) for name, steps in capacity.items()]
    environment = simpy.Environment(initial_time=0)
    fabric = Fabric(environment, links)
    ends_s = {}

    def one(place, start_s, path, size_bytes):
        yield environment.timeout(start_s * SECOND_PS)
        yield fabric.send(path, size_bytes)
        ends_s[place] = environment.now / SECOND_PS

    for place, send in enumerate(sends):
        environment.process(one(place, *send))
    environment.run()
    twin = naive_ends_s(capacity, sends)
    assert [ends_s[place] for place in range(len(sends))] == pytest.approx(twin, abs=1e-9)
    for name in NAMES:
        sent = sum(size for _, path, size in sends if name in path)
        assert fabric.carried_bytes[name] == pytest.approx(sent, abs=1e-6)
        assert fabric.flows(name) == 0


class NamedLink(Link):
    """A link known by one word."""

    __slots__ = ("word",)

    def __init__(self, word, steps):
        object.__setattr__(self, "word", word)
        super().__init__(word, "", tuple((float(from_s), float(size)) for from_s, size in steps))

    @property
    def name(self):
        return self.word


def carried(links, orders, size_bytes=4 * GB, interrupt_s=None):
    """Carry bytes from a to c as links fail and are mended: (time, what, link); return when, how much, the fabric."""
    environment = simpy.Environment(initial_time=0)
    fabric = Fabric(environment, links)
    sent = fabric.carry("a", "c", size_bytes)

    def play():
        for at_s, what, link in orders:
            yield environment.timeout(round(at_s * SECOND_PS) - environment.now)
            getattr(fabric, what)(link)

    def interrupt():
        yield environment.timeout(round(interrupt_s * SECOND_PS))
        sent.interrupt()

    environment.process(play())
    if interrupt_s is not None:
        environment.process(interrupt())
    arrived_bytes = environment.run(until=sent)
    return environment.now / SECOND_PS, arrived_bytes, fabric


DIRECT, VIA = Link("a", "c", 1.0 * GB), (Link("a", "b", 0.5 * GB), Link("b", "c", 0.5 * GB))


def test_what_a_failing_link_cuts_short_goes_on_when_it_is_mended():
    end_s, arrived, fabric = carried([DIRECT], [(1.0, "fail", "a>c"), (3.0, "mend", "a>c")])
    assert (end_s, arrived, fabric.cut) == (6.0, 4 * GB, 1)
    assert fabric.carried_bytes == {"a>c": 4 * GB}  # none twice


def test_what_a_failing_link_cuts_short_takes_another_way_where_there_is_one():
    end_s, arrived, fabric = carried([DIRECT, *VIA], [(1.0, "fail", "a>c")])
    assert (end_s, arrived) == (1.0 + 3 / 0.5, 4 * GB)
    assert fabric.carried_bytes == {"a>c": 1 * GB, "a>b": 3 * GB, "b>c": 3 * GB}


def test_others_gain_what_a_cut_transfer_leaves_of_links_that_are_up():
    environment = simpy.Environment(initial_time=0)
    fabric = Fabric(environment, [A, B])
    both, alone = fabric.send(ON_BOTH, 100 * GB), fabric.send(ON_A, 18 * GB)
    environment.run(until=1 * SECOND_PS)
    fabric.fail("b>c")
    assert environment.run(until=both) == 2 * GB
    environment.run(until=alone)
    assert environment.now == 2 * SECOND_PS  # 8 GB in the first second, 10 in the next


def test_a_carrier_that_is_called_back_tells_what_has_arrived():
    assert carried([DIRECT], [], interrupt_s=1.5)[:2] == (1.5, 1.5 * GB)
    assert carried([DIRECT], [(1.0, "fail", "a>c")], interrupt_s=1.5)[:2] == (1.5, 1.0 * GB)


def test_a_link_that_fails_while_operations_are_posted_carries_nothing():
    link = Link("a", "c", 1.0 * GB, operation_s=1.0)
    end_s, _, fabric = carried([link], [(0.5, "fail", "a>c"), (2.0, "mend", "a>c")])
    assert (end_s, fabric.cut) == (2.0 + 1.0 + 4.0, 1)
