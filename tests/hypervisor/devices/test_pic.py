"""The 8259A pair by its data sheet, and against a plain model that thinks in sets and lists."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cbit.hypervisor.devices.pic import CASCADE, Interrupts
from cbit.hypervisor.devices.ports import Ports
from hypervisor.devices.worlds import Desk

EOI = 0x20


def a_desk(*, icw4: int = 1) -> Desk:
    desk = Desk()
    desk.start_pics(icw4=icw4)
    return desk


def test_before_its_start_it_interrupts_nobody() -> None:
    desk = Desk()
    desk.chipset.interrupts.set_line(4, high=True)
    assert not desk.chipset.interrupts.pending


@pytest.mark.parametrize(
    ("line", "vector"), [(0, 0x20), (1, 0x21), (7, 0x27), (8, 0x28), (11, 0x2B), (15, 0x2F)]
)
def test_each_line_has_its_vector(line: int, vector: int) -> None:
    interrupts = a_desk().chipset.interrupts
    interrupts.set_line(line, high=True)
    assert interrupts.pending
    assert vector == interrupts.acknowledge()
    assert not interrupts.pending
    assert 0 == interrupts.spurious


def test_vectors_are_where_icw2_puts_them() -> None:
    desk = Desk()
    desk.start_pics(first=0x57, second=0xF0)  # the low three bits are the line's
    desk.chipset.interrupts.set_line(3, high=True)
    assert 0x53 == desk.chipset.interrupts.acknowledge()


def test_while_it_is_initialised_it_interrupts_nobody() -> None:
    desk = a_desk()
    desk.out(0x20, 0x11)
    desk.chipset.interrupts.set_line(4, high=True)
    for icw in (0x20, 4, 1):
        assert not desk.chipset.interrupts.pending
        desk.out(0x21, icw)
    assert desk.chipset.interrupts.pending


def test_initialising_forgets_edges_mask_and_service() -> None:
    desk = a_desk()
    desk.chipset.interrupts.set_line(4, high=True)
    desk.chipset.interrupts.acknowledge()
    desk.chipset.interrupts.set_line(5, high=True)
    desk.out(0x21, 0x55)
    desk.out(0x20, 0x11)
    desk.out(0x21, 0x20, 4, 1)
    assert 0 == desk.inb(0x21)
    for what in (0x0A, 0x0B):  # IRR, ISR
        desk.out(0x20, what)
        assert 0 == desk.inb(0x20)


@pytest.mark.parametrize(
    ("icw1", "icws"), [(0x10, (0x20, 4)), (0x11, (0x20, 4, 1)), (0x12, (0x20,)), (0x13, (0x20, 1))]
)
def test_icw1_says_how_many_words_follow(icw1: int, icws: tuple[int, ...]) -> None:
    desk = Desk()
    desk.out(0x20, icw1)
    desk.out(0x21, *icws)
    desk.out(0x21, 0xA5)  # the next one is the mask
    assert 0xA5 == desk.inb(0x21)


def test_an_edge_is_one_request_and_a_level_many() -> None:
    desk = a_desk()
    interrupts = desk.chipset.interrupts
    desk.out(0x4D1, 0x02)  # line 9
    for line in (5, 9):
        interrupts.set_line(line, high=True)
    assert 0x29 == interrupts.acknowledge()
    desk.out(0xA0, EOI)
    desk.out(0x20, EOI)
    assert 0x29 == interrupts.acknowledge()  # still high
    interrupts.set_line(9, high=False)
    desk.out(0xA0, EOI)
    desk.out(0x20, EOI)
    assert 0x25 == interrupts.acknowledge()
    desk.out(0x20, EOI)
    assert not interrupts.pending  # high, and no new edge


def test_some_lines_are_always_edges() -> None:
    desk = a_desk()
    desk.out(0x4D0, 0xFF)
    desk.out(0x4D1, 0xFF)
    assert (0xF8, 0xDE) == (desk.inb(0x4D0), desk.inb(0x4D1))


def test_a_request_that_goes_away_is_spurious() -> None:
    desk = a_desk()
    interrupts = desk.chipset.interrupts
    interrupts.set_line(4, high=True)
    interrupts.set_line(4, high=False)
    assert not interrupts.pending
    assert 0x27 == interrupts.acknowledge()
    assert 1 == interrupts.spurious
    desk.out(0x20, 0x0B)
    assert 0 == desk.inb(0x20)  # which is how software tells


def test_on_the_second_chip_it_is_number_15_and_the_cascade_is_in_service() -> None:
    desk = a_desk()
    interrupts = desk.chipset.interrupts
    interrupts.set_line(12, high=True)
    desk.chipset.interrupts.second.imr = (
        0xFF  # masked between request and acknowledgement, unseen by the first
    )
    assert 0x2F == interrupts.acknowledge()
    desk.out(0x20, 0x0B)
    desk.out(0xA0, 0x0B)
    assert (1 << CASCADE, 0) == (desk.inb(0x20), desk.inb(0xA0))


def test_a_higher_line_interrupts_a_lower_and_not_the_other_way() -> None:
    desk = a_desk()
    interrupts = desk.chipset.interrupts
    interrupts.set_line(4, high=True)
    interrupts.acknowledge()
    interrupts.set_line(6, high=True)
    assert not interrupts.pending
    interrupts.set_line(10, high=True)  # the second chip stands at line 2
    assert 0x2A == interrupts.acknowledge()
    interrupts.set_line(9, high=True)
    assert not interrupts.pending  # the first chip serves line 2 already
    desk.out(0x20, EOI)
    assert interrupts.pending


def test_special_fully_nested_mode_lets_the_second_chip_nest() -> None:
    desk = Desk()
    desk.start_pics(icw4=0x11)
    interrupts = desk.chipset.interrupts
    interrupts.set_line(10, high=True)
    interrupts.acknowledge()
    interrupts.set_line(9, high=True)
    assert 0x29 == interrupts.acknowledge()
    interrupts.set_line(4, high=True)
    assert not interrupts.pending  # a lower line waits all the same


def test_automatic_end_of_interrupt() -> None:
    desk = a_desk(icw4=3)
    interrupts = desk.chipset.interrupts
    interrupts.set_line(4, high=True)
    assert 0x24 == interrupts.acknowledge()
    interrupts.set_line(6, high=True)
    assert 0x26 == interrupts.acknowledge()
    desk.out(0x20, 0x0B)
    assert 0 == desk.inb(0x20)


def test_automatic_end_of_interrupt_can_rotate() -> None:
    desk = a_desk(icw4=3)
    interrupts = desk.chipset.interrupts
    desk.out(0x20, 0x80)
    for expected, lines in ((0x23, [3]), (0x25, [3, 5]), (0x20, [0]), (0x23, [])):
        for line in lines:
            interrupts.pulse(line)
        assert expected == interrupts.acknowledge()
    desk.out(0x20, 0x00)  # the order stays: 3 is the lowest
    for line in (3, 4):
        interrupts.pulse(line)
    assert 0x24 == interrupts.acknowledge()


def test_ends_of_interrupt() -> None:
    desk = a_desk()
    interrupts = desk.chipset.interrupts
    for line in (6, 4):
        interrupts.set_line(line, high=True)
        interrupts.acknowledge()
    desk.out(0x20, 0x0B, 0x66)  # specific, line 6
    assert 1 << 4 == desk.inb(0x20)
    desk.out(0x20, EOI)
    assert 0 == desk.inb(0x20)
    desk.out(0x20, EOI)  # nothing is in service
    assert 0 == desk.inb(0x20)


@pytest.mark.parametrize("command", [0xC3, 0xA0])
def test_rotation(command: int) -> None:
    desk = a_desk()
    interrupts = desk.chipset.interrupts
    if command == 0xA0:
        interrupts.set_line(3, high=True)
        interrupts.acknowledge()
    desk.out(0x20, command)  # line 3 is the lowest now: 0xC3 sets it, 0xA0 ends and rotates
    for line in (1, 4):
        interrupts.set_line(line, high=True)
    assert 0x24 == interrupts.acknowledge()


def test_special_mask_mode_lets_lower_lines_through() -> None:
    desk = a_desk()
    interrupts = desk.chipset.interrupts
    interrupts.set_line(3, high=True)
    interrupts.acknowledge()
    interrupts.set_line(6, high=True)
    desk.out(0x21, 0x08)
    assert not interrupts.pending
    desk.out(0x20, 0x68)
    assert interrupts.pending
    desk.out(0x20, 0x48)
    assert not interrupts.pending


def test_polling_acknowledges() -> None:
    desk = a_desk()
    desk.chipset.interrupts.set_line(5, high=True)
    desk.out(0x20, 0x0C)
    assert 0x85 == desk.inb(0x20)
    assert not desk.chipset.interrupts.pending
    desk.out(0x20, 0x0C)
    assert 0 == desk.inb(0x20)
    desk.out(0x20, 0x0B)
    assert 1 << 5 == desk.inb(0x20)
    desk.chipset.interrupts.set_line(0, high=True)
    desk.out(0x20, 0x0C)
    assert 0x80 == desk.inb(0x21)  # the poll word comes at either port
    assert 0 == desk.inb(0x21)


def test_in_special_mask_mode_a_plain_end_leaves_masked_lines_alone() -> None:
    desk = a_desk()
    interrupts = desk.chipset.interrupts
    for line in (6, 3):
        interrupts.set_line(line, high=True)
        interrupts.acknowledge()
    desk.out(0x21, 0x08)
    desk.out(0x20, 0x68, 0x20, 0x0B)
    assert 1 << 3 == desk.inb(0x20)


class PlainChip:
    """One chip, told as a list of priorities and sets of lines."""

    def __init__(self, *, levels: set[int]) -> None:
        self.order = list(range(8))  # highest first
        self.levels = levels
        self.high: set[int] = set()
        self.edges: set[int] = set()
        self.masked: set[int] = set()
        self.serving: set[int] = set()

    def wire(self, line: int, *, high: bool) -> None:
        if high and line not in self.high:
            self.edges.add(line)
        if high:
            self.high.add(line)
        else:
            self.high.discard(line)
            self.edges.discard(line)

    def requests(self) -> set[int]:
        return {line for line in range(8) if line in (self.high if line in self.levels else self.edges)}

    def best(self) -> int | None:
        served = [self.order.index(line) for line in self.serving]
        asking = [self.order.index(line) for line in self.requests() - self.masked]
        if not asking or (served and min(served) <= min(asking)):
            return None
        return self.order[min(asking)]

    def take(self) -> int:
        line = self.best()
        if line is None:
            return 7
        self.edges.discard(line)
        self.serving.add(line)
        return line

    def end(self, line: int | None = None, *, rotate: bool = False) -> None:
        if line is None:
            line = min(self.serving, key=self.order.index, default=None)
        if line is None:
            return
        self.serving.discard(line)
        if rotate:
            while self.order[-1] != line:
                self.order.append(self.order.pop(0))


class PicAgainstPlainModel(RuleBasedStateMachine):
    """Whatever lines, masks, acknowledgements and ends come in whatever order, both say the same."""

    @initialize(levels=st.sets(st.integers(3, 15)))
    def start(self, levels: set[int]) -> None:
        self.ports = Ports()
        self.interrupts = Interrupts()
        self.interrupts.attach(self.ports)
        for base, vector, wires in ((0x20, 0x20, 4), (0xA0, 0x28, 2)):
            self.ports.write(base, 1, 0x11)
            for icw in (vector, wires, 1):
                self.ports.write(base + 1, 1, icw)
        allowed = {line for line in levels if line not in (8, 13)}
        bits = sum(1 << line for line in allowed)
        self.ports.write(0x4D0, 2, bits)
        self.first = PlainChip(levels={line for line in allowed if line < 8})
        self.second = PlainChip(levels={line - 8 for line in allowed if line >= 8})

    def chip(self, index: int) -> PlainChip:
        return (self.first, self.second)[index]

    def settle(self) -> None:
        self.first.wire(CASCADE, high=self.second.best() is not None)

    @rule(line=st.sampled_from([line for line in range(16) if line != CASCADE]), high=st.booleans())
    def drive(self, line: int, high: bool) -> None:  # a rule's arguments are keywords
        self.interrupts.set_line(line, high=high)
        self.chip(line >> 3).wire(line & 7, high=high)
        self.settle()

    @rule(index=st.integers(0, 1), mask=st.integers(0, 255))
    def mask(self, index: int, mask: int) -> None:
        self.ports.write((0x21, 0xA1)[index], 1, mask)
        self.chip(index).masked = {line for line in range(8) if mask >> line & 1}
        self.settle()

    @rule(index=st.integers(0, 1), rotate=st.booleans(), line=st.none() | st.integers(0, 7))
    def end(self, index: int, rotate: bool, line: int | None) -> None:  # as above
        command = 0x20 | rotate << 7 | (0 if line is None else 0x40 | line)
        self.ports.write((0x20, 0xA0)[index], 1, command)
        self.chip(index).end(line, rotate=rotate)
        self.settle()

    @precondition(lambda self: self.interrupts.pending)
    @rule()
    def acknowledge(self) -> None:
        line = self.first.take()
        expected = 0x20 + line
        if line == CASCADE:
            expected = 0x28 + self.second.take()
            self.first.wire(CASCADE, high=False)
        self.settle()
        assert expected == self.interrupts.acknowledge()

    @invariant()
    def both_say_the_same(self) -> None:
        assert self.interrupts.pending is (self.first.best() is not None)
        for base, chip in ((0x20, self.first), (0xA0, self.second)):
            for what, lines in ((0x0A, chip.requests()), (0x0B, chip.serving)):
                self.ports.write(base, 1, what)
                assert sum(1 << line for line in lines) == self.ports.read(base, 1)


TestPicAgainstPlainModel = PicAgainstPlainModel.TestCase
TestPicAgainstPlainModel.settings = settings(stateful_step_count=40)
