"""The built-in guest as a victim: what its owner measures, and what an adversary looks for in it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools

import pytest

from cbit.attacks.experiments import ALL
from cbit.attacks.experiments.code_injection import LOOP, ROUTINE
from cbit.attacks.experiments.correspondent import with_letters
from cbit.attacks.experiments.faked_cpuid import FAKED
from cbit.attacks.experiments.launch_permutation import POP_RAX, SWITCH_STACK, _Layout
from cbit.attacks.experiments.registers import LOAD, STORE
from cbit.attacks.lab.built_in import KERNEL
from cbit.attacks.lab.guest import CPUID, HLT, NPF, Crashed, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.outcome import Mode
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Setup, Stand, Workshop
from cbit.attacks.lab.tools import Registers, Runner, Tables, Thwarted, gpa_of
from cbit.attacks.launch import launch
from cbit.attacks.power import Power
from cbit.attacks.tenant import expect_memory
from cbit.cpu.engine.control_block import Exit
from cbit.crypto.entropy import SeededEntropy
from cbit.guest.builtin.image import image
from cbit.guest.builtin.interface import IMAGE, MEMORY, SHOWN, Request
from cbit.hypervisor.host import Protection
from cbit.hypervisor.vm import Vm
from cbit.owner.errors import Unmeasurable
from cbit.owner.measure import expect_sev
from cbit.spec.address import BLOCK, MIB, PAGE
from cbit.spec.errors import BadMeasurement
from cbit.spec.policy import Policy


@pytest.fixture
def stand(workshop: Workshop) -> Stand:
    return Stand(workshop, Setup(), mode=Mode.SEV, variant="", seed=1, parameters={})


def _hands(stand: Stand, scene: Scene) -> Hands:
    return Hands(stand.host, scene, frozenset({Power.CLIENT}), own_sev=True)


def test_it_answers_its_client(stand: Stand) -> None:
    scene, guest = with_letters(stand)
    service = _hands(stand, scene).service
    assert [25] == service.ask(Request.COMPUTE, 100).answers
    assert 0 == service.ask(Request.SHOW, 3).status
    assert image()[3 * PAGE : 4 * PAGE] == service.shared(SHOWN, PAGE)
    service.ask(Request.END)
    guest.vm.tables.unmap(guest.vm.regions[0].gpa)  # whatever it needs next is gone
    guest.cpu.flush()
    with pytest.raises(Crashed, match="NPF"):
        service.ask(Request.WHO)


def test_a_small_program_has_no_service(stand: Stand) -> None:
    scene = Scene((b"secret",), Facts({}), stand.guest(Program("again: hlt; jmp again"), secret=bytes(16)))
    with pytest.raises(Thwarted, match="not the built-in guest"):
        _hands(stand, scene).service  # noqa: B018  # asking for it is the attempt


def test_what_an_adversary_looks_for_is_in_the_public_image_once() -> None:
    for code in (LOAD, STORE, ROUTINE):
        assert 1 == image().count(code), code.hex()
    assert 0 == image().index(ROUTINE) % BLOCK == (len(ROUTINE) - BLOCK) % BLOCK
    assert -len(ROUTINE) - len(LOOP) == int.from_bytes(LOOP[1:], "little", signed=True)


def test_its_kernel_is_measured_with_it(stand: Stand) -> None:
    kernel = bytes(range(256)) * 16
    stand.built_in(bytes(BLOCK), kernel=kernel).sev.end()  # type: ignore[union-attr]  # the mode is SEV
    changed = [(IMAGE, image()), (KERNEL, kernel[:-1] + b"!")]
    with pytest.raises(BadMeasurement):
        stand.built_in(bytes(BLOCK), kernel=kernel, pieces=changed)


def test_memory_that_is_no_firmware_image_has_a_digest_of_its_own() -> None:
    program = Program("hlt").image(c_bit=39)
    assert bytes(16) == program[-16:]  # nothing is at a reset vector
    with pytest.raises(Unmeasurable, match="no firmware image"):
        expect_sev(program)
    assert hashlib.sha256(program).digest() == expect_memory(program).digest
    assert expect_sev(image()).digest == expect_memory(image()).digest


def test_blocks_change_places_and_the_digest_does_not() -> None:
    kernel = SeededEntropy("a small kernel").draw(4 * MIB)
    layout = _Layout(image(), kernel)
    target = IMAGE + image().index(ROUTINE) + BLOCK
    layout.begin_block(target, SWITCH_STACK)
    where = layout.anywhere(POP_RAX)
    pieces = layout.pieces()
    assert image() + kernel == b"".join(data for _, data in pieces)
    assert expect_sev(image() + kernel).digest == expect_sev(b"".join(data for _, data in pieces)).digest
    placed = sorted((at, at + len(data)) for at, data in pieces)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(placed))  # nothing twice
    assert len(image() + kernel) == sum(end - start for start, end in placed)  # and nothing missing
    memory = dict(pieces)
    assert memory[target].startswith(SWITCH_STACK)
    assert POP_RAX in memory[where & -BLOCK]
    with pytest.raises(Thwarted, match="no block begins with"):
        layout.begin_block(target, bytes.fromhex("0102030405060708"))
    with pytest.raises(Thwarted, match="is nowhere"):
        layout.anywhere(bytes.fromhex("0102030405060708"))


def test_an_owner_who_wants_addresses_gives_nothing_for_another_layout(stand: Stand) -> None:
    kernel = SeededEntropy("two pages").draw(2 * PAGE)
    honest = stand.built_in(bytes(BLOCK), kernel=kernel, addresses=True)
    assert kernel == honest.peek(KERNEL, len(kernel))
    honest.end()
    in_pieces = [(IMAGE, image()), (KERNEL, kernel[:PAGE]), (KERNEL + PAGE, kernel[PAGE:])]
    stand.built_in(bytes(BLOCK), kernel=kernel, pieces=in_pieces, addresses=True).end()
    for moved in (
        [(IMAGE, image()), (KERNEL + PAGE, kernel[:PAGE]), (KERNEL, kernel[PAGE:])],
        [(IMAGE, image()), (KERNEL + BLOCK, kernel[:BLOCK]), (KERNEL, kernel[BLOCK : 2 * BLOCK]),
         (KERNEL + 2 * BLOCK, kernel[2 * BLOCK :])],
        [(IMAGE, image()), (MEMORY, kernel)],
    ):  # fmt: skip
        assert image() + kernel == b"".join(data for _, data in moved)  # plain SEV's digest is the same
        with pytest.raises(BadMeasurement, match="a digest that covers addresses is not the owner's"):
            stand.built_in(bytes(BLOCK), kernel=kernel, pieces=moved, addresses=True)


def test_where_nobody_covers_addresses_such_an_owner_gives_nothing_at_all(stand: Stand) -> None:
    guest = stand.built_in(bytes(BLOCK))
    guest.end()
    vm = Vm(stand.host, Protection.SEV)
    vm.load_firmware(image())
    tenant = dataclasses.replace(stand._tenant(Policy.NODBG), image=image(), layout=((IMAGE, image()),))
    with pytest.raises(BadMeasurement, match="covers addresses"):
        launch(vm, [(IMAGE, image())], b"", 0, tenant=tenant, entropy=stand.entropy)


def test_told_a_wrong_c_bit_it_ends_before_it_says_a_word(stand: Stand) -> None:
    guest = stand.built_in(bytes(BLOCK))
    runner, registers, tables = Runner(guest.cpu, guest.emulate), Registers(guest.cpu), Tables(guest)
    strange: set[int] = set()

    def lie(exit: Exit) -> bool:
        if exit.code == CPUID and registers["rax"] == 0x8000_001F:
            guest.emulate(exit)
            registers["rbx"] = registers["rbx"] & ~63 | FAKED
            return True
        gpa = gpa_of(exit.info_2) & -PAGE
        if exit.code != NPF or not gpa >> FAKED:
            return False
        strange.add(gpa)
        tables.map(gpa, guest.spa(gpa & ~(1 << FAKED)))
        return True

    with pytest.raises(Crashed, match="SHUTDOWN"):
        runner.until(HLT, handle=lie)
    assert strange, "it used the bit"
    assert [] == guest.small.console.lines


def test_each_attack_says_what_its_victim_is() -> None:
    for attack in ALL:
        assert attack.victim.startswith(("Start ", "Launch ", "Hand ", "Boot ", "There is no victim")), attack
    ours = ("Start the built-in", "Start two built-in", "Launch the built-in", "Hand the host the built-in")
    against_it = [attack.name for attack in ALL if attack.victim.startswith(ours)]
    assert "severed" in against_it
    assert 14 == len(against_it), "LIMITATIONS and the lab's page say how many"
