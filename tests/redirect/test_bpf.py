"""The filter decides as its table says, held against a small machine that runs it."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.redirect import bpf, opens
from cbit.redirect.bpf import ALLOW, NOTIFY, Rule, assemble, disassemble, instructions
from cbit.redirect.door import filter_program
from cbit.redirect.files import SEV_ISSUE_CMD, Kvm, sev_files
from cbit.redirect.linux import ARCHITECTURE, AT_EMPTY_PATH, Call

I386 = 0x40000003
X32 = 0x40000000
FILES = sev_files(kvm=Kvm.HOST, guest=True)


def decide(program: bytes, number: int, *arguments: int, architecture: int = ARCHITECTURE) -> int:
    """Run the filter as the kernel's machine would."""
    words = [word & (1 << 64) - 1 for word in (*arguments, *[0] * (6 - len(arguments)))]
    record = struct.pack("<IIQ6Q", number, architecture, 0, *words)
    code = instructions(program)
    accumulator = place = 0
    while True:
        one = code[place]
        place += 1
        if one.code == bpf.RETURN:
            return one.k
        if one.code == bpf.LOAD:
            (accumulator,) = struct.unpack_from("<I", record, one.k)
        elif one.code == bpf.AND:
            accumulator &= one.k
        else:
            holds = accumulator == one.k if one.code == bpf.EQUAL else bool(accumulator & one.k)
            place += one.jt if holds else one.jf


def expected(rules: list[Rule], number: int, arguments: tuple[int, ...]) -> int:
    """The table, read by a person."""
    for rule in rules:
        if rule.number == number:
            low = arguments[rule.argument] & 0xFFFFFFFF
            if rule.values or rule.types:
                return NOTIFY if low in rule.values or low >> 8 & 0xFF in rule.types else ALLOW
            return ALLOW if low & rule.unless else NOTIFY
    return ALLOW


words = st.integers(0, (1 << 64) - 1)
types = st.lists(st.sampled_from([0, 0x53, 0xFF]), unique=True, max_size=2).map(tuple)
values = st.lists(st.sampled_from([0, 1, SEV_ISSUE_CMD, 0xFFFFFFFF]), unique=True, max_size=4).map(tuple)
rules = st.lists(
    st.builds(
        lambda n, a, v, t: Rule(n, argument=a, values=v, types=t),
        st.integers(0, 20),
        st.integers(0, 5),
        values,
        types,
    )
    | st.builds(
        lambda n, a, u: Rule(n, argument=a, unless=u),
        st.integers(0, 20),
        st.integers(0, 5),
        st.integers(0, 7),
    ),
    unique_by=lambda rule: rule.number,
    max_size=12,
)


@given(rules, st.integers(0, 21), st.tuples(*[words | st.sampled_from([0, 1, SEV_ISSUE_CMD])] * 6))
def test_the_program_decides_as_the_table_reads(
    table: list[Rule], number: int, arguments: tuple[int, ...]
) -> None:
    assert expected(table, number, arguments) == decide(assemble(table), number, *arguments)


@pytest.mark.parametrize("request_number", FILES.requests)
@pytest.mark.parametrize("high", [0, 0xFFFFFFFF], ids=["plain", "sign-extended"])
def test_our_requests_are_notified_whatever_their_high_word(request_number: int, high: int) -> None:
    program = filter_program(FILES, in_namespace=True)
    assert NOTIFY == decide(program, Call.IOCTL, 3, high << 32 | request_number, 0x1000)
    assert ALLOW == decide(program, Call.IOCTL, 3, high << 32 | request_number ^ 1 << 31, 0x1000)


def test_every_request_of_a_kvm_of_ours_is_notified_and_the_filter_stays_short() -> None:
    """An ioctl that is none of ours passes every comparison: there are as many as with the host's KVM."""
    program = filter_program(sev_files(kvm=Kvm.SUPPLIED), in_namespace=True)
    assert {NOTIFY} == {decide(program, Call.IOCTL, 3, size << 16 | 0xAE00 | 0x5F, 0) for size in range(99)}
    assert {ALLOW} == {
        decide(program, Call.IOCTL, 3, other << 8 | 0x60, 0) for other in range(256) if other != 0xAE
    }
    assert len(instructions(program)) <= len(instructions(filter_program(FILES, in_namespace=True)))


@pytest.mark.parametrize("architecture", [I386, 0])
def test_callers_of_another_architecture_pass(architecture: int) -> None:
    program = filter_program(FILES, in_namespace=False)
    assert ALLOW == decide(program, Call.IOCTL, 3, SEV_ISSUE_CMD, architecture=architecture)
    assert ALLOW == decide(program, X32 | Call.IOCTL, 3, SEV_ISSUE_CMD)


def test_in_a_namespace_no_open_is_notified() -> None:
    program = filter_program(FILES, in_namespace=True)
    assert {ALLOW} == {decide(program, number) for number in range(500) if number != Call.IOCTL}


@pytest.mark.parametrize("number", opens.CALLS, ids=lambda number: Call(number).name)
def test_without_one_every_call_that_names_a_path_is(number: int) -> None:
    assert NOTIFY == decide(filter_program(FILES, in_namespace=False), number)


@pytest.mark.parametrize(("number", "flags"), [(Call.NEWFSTATAT, 3), (Call.STATX, 2)])
def test_the_fstat_of_a_descriptor_passes(number: int, flags: int) -> None:
    arguments = [0] * 6
    arguments[flags] = AT_EMPTY_PATH
    assert ALLOW == decide(filter_program(FILES, in_namespace=False), number, *arguments)


def test_the_disassembly_reads_as_the_table() -> None:
    requests = Rule(16, argument=1, values=(0xC0105300,), types=(0xAE,))
    table = [requests, Rule(2), Rule(262, argument=3, unless=0x1000)]
    assert [
        "0: load architecture",
        "1: if == 0xc000003e goto 2 else 6",
        "2: load number",
        "3: if == 0x10 goto 7 else 4",
        "4: if == 0x2 goto 16 else 5",
        "5: if == 0x106 goto 12 else 6",
        "6: return allow",
        "7: load argument 1, low word",
        "8: if == 0xc0105300 goto 16 else 9",
        "9: keep & 0xff00",
        "10: if == 0xae00 goto 16 else 11",
        "11: return allow",
        "12: load argument 3, low word",
        "13: if & 0x1000 goto 15 else 14",
        "14: return notify",
        "15: return allow",
        "16: return notify",
    ] == list(disassemble(assemble(table)))


def test_two_rules_for_one_call_are_refused() -> None:
    with pytest.raises(ValueError, match="two rules"):
        assemble([Rule(1), Rule(1, argument=1, values=(3,))])


def test_a_rule_narrows_in_one_way() -> None:
    for narrow in (Rule(1, values=(1,)), Rule(1, types=(1,))):
        with pytest.raises(ValueError, match="not by both"):
            replace(narrow, unless=1)


def test_a_jump_too_far_is_refused_and_the_furthest_is_not() -> None:
    fits = assemble([Rule(1, argument=1, values=tuple(range(253)))])
    assert NOTIFY == decide(fits, 1, 0, 0)
    assert ALLOW == decide(fits, 1, 0, 253)
    with pytest.raises(ValueError, match="at most 255"):
        assemble([Rule(1, argument=1, values=tuple(range(300)))])
