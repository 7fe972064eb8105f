"""E3, A3: one flipped bit of ciphertext in a signing key gives the key away."""

from __future__ import annotations

import math

from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.guest import SECRET, SHARED, VIEW, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import AGREES, Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.lab.tools import Client, Thwarted
from cbit.attacks.power import Power
from cbit.crypto.entropy import Entropy
from cbit.spec.address import PAGE

E = 65537
_SOURCE = "Buhren et al. (attacks.md A3)"
_PATIENCE = 16  # faults
_FIELDS = ("p", "q", "dp", "dq", "qinv")  # sixteen bytes each, from the secret's address on

#: RSA with the Chinese remainder theorem.  The primes have 63 bits, what one division instruction holds; the
#: attack does not care how long they are.
SIGNER = f"""
again:
    hlt
    mov r12, [{VIEW + SHARED + 8:#x}]  # message, low and high half
    mov r13, [{VIEW + SHARED + 16:#x}]
    mov r14, [{SECRET:#x}]             # p
    mov r15, [{SECRET + 16:#x}]        # q
    mov rbx, r14
    call reduce
    mov r9, [{SECRET + 32:#x}]         # dp
    call power
    mov r10, rax                       # sp
    mov rbx, r15
    call reduce
    mov r9, [{SECRET + 48:#x}]         # dq
    call power
    mov r11, rax                       # sq
    xor edx, edx                       # h = qinv (sp - sq) mod p
    div r14
    mov rax, r10
    sub rax, rdx
    jnc positive
    add rax, r14
positive:
    mul qword ptr [{SECRET + 64:#x}]
    div r14
    mov rax, rdx
    mul r15                            # s = sq + h q
    add rax, r11
    adc rdx, 0
    mov rsi, rax
    mov rdi, rdx
    @verify@
    mov [{VIEW + SHARED + PAGE:#x}], rsi
    mov [{VIEW + SHARED + PAGE + 8:#x}], rdi
    jmp again
reduce:                                # r8 = (r13:r12) mod rbx
    mov rax, r13
    xor edx, edx
    div rbx
    mov rax, r12
    div rbx
    mov r8, rdx
    ret
power:                                 # rax = r8 ^ r9 mod rbx
    mov ecx, 1
next:
    test r9, r9
    jz done
    test r9, 1
    jz square
    mov rax, rcx
    mul r8
    div rbx
    mov rcx, rdx
square:
    mov rax, r8
    mul r8
    div rbx
    mov r8, rdx
    shr r9, 1
    jmp next
done:
    mov rax, rcx
    ret
is_right:                              # flags as for "equal": s ^ e = m mod rbx
    call reduce
    mov r11, r8
    xchg r12, rsi
    xchg r13, rdi
    call reduce
    xchg r12, rsi
    xchg r13, rdi
    mov r9, {E}
    call power
    cmp rax, r11
    ret
refuse:
    xor eax, eax
    mov [{VIEW + SHARED + PAGE:#x}], rax
    mov [{VIEW + SHARED + PAGE + 8:#x}], rax
    jmp again
"""
#: Raise the whole signature to the public exponent, and compare with the message modulo both primes, before
#: anything goes out: a fault in any of the five numbers shows in the one or the other.
VERIFY = """
    mov rbx, r14
    call is_right
    jne refuse
    mov rbx, r15
    call is_right
    jne refuse
"""


def _prime(entropy: Entropy) -> int:
    while True:
        candidate = int.from_bytes(entropy.draw(8), "little") >> 1 | 1 << 62 | 1
        if candidate % E != 1 and all(pow(base, candidate - 1, candidate) == 1 for base in (2, 3, 5, 7, 11)):
            return candidate


def signer(stand: Stand) -> Scene:
    """Start a small program that signs what it is asked to; the built-in guest has no key to sign with."""
    p, q = _prime(stand.entropy), _prime(stand.entropy)
    key = {"p": p, "q": q, "dp": pow(E, -1, p - 1), "dq": pow(E, -1, q - 1), "qinv": pow(q, -1, p)}
    sealed = b"".join(key[name].to_bytes(16, "little") for name in _FIELDS)
    source = SIGNER.replace("@verify@", VERIFY if stand.variant == "verify" else "")
    guest = stand.guest(Program(source), secret=sealed)
    guest.until_idle()
    secrets = tuple(prime.to_bytes(8, "little") for prime in (p, q))
    facts = Facts({"modulus": (p * q).to_bytes(16, "little"), "dp_at": SECRET + 32})
    planted = guest.peek(SECRET, len(sealed)) == sealed
    asked = 0x1234_5678
    signed = int.from_bytes(Client(guest).ask(asked.to_bytes(16, "little"), 16), "little")
    return Scene(secrets, facts, guest, planted=planted, serves=pow(signed, E, p * q) == asked)


@attack(
    title="A fault in encrypted memory",
    experiment="E3",
    paper="Buhren et al., CODASPY 2017 (attacks.md A3); memory-encryption.md §1 rule 3",
    holds={Power.DMA, Power.FLUSH_CACHES, Power.CLIENT},
    expect={
        Mode.NONE: SUCCEEDS,
        Mode.SME: SUCCEEDS,
        Mode.SEV: succeeds("no integrity: a flipped bit of ciphertext garbles its block, unnoticed"),
        Mode.SEV_ES: SUCCEEDS,
        Mode.SEV_SNP: stopped_by("the RMP, if the IOMMU checks it for the device's write"),
    },
    defences={
        "verify": stopped_by(
            "the signer verifies the whole signature, modulo both primes, before it answers: none that is"
            " faulty leaves, whichever of its five numbers was hit",
            shown="the victim noticed, and answered with nothing",
        )
    },
    victim=signer,
)
def bit_flip(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Flip one bit of the ciphertext of dP while the victim signs; factor the modulus with the faulty result.

    The engine decrypts the altered block to sixteen bytes of garbage.  The half signature modulo p is wrong,
    the other half is right: gcd(s^e - m, N) is q.  Neither plaintext nor key is needed.
    """
    modulus = int.from_bytes(facts.data("modulus"), "little")
    message = 0x0123_4567_89AB_CDEF_0011_2233_4455_6677 % modulus
    request = message.to_bytes(16, "little")
    good = int.from_bytes(hands.client.ask(request, 16), "little")
    log.step("a signature of the victim's", good.to_bytes(16, "little"))
    if pow(good, E, modulus) != message:
        raise Thwarted("the victim does not sign")
    at = hands.device.spa(facts.number("dp_at"))
    hands.caches.write_back()
    before = hands.device.read_plain(at, 16)
    log.step("the block of dP as the device reads it", before)
    q, signatures = 1, 0
    while q in (1, modulus):  # a fault that garbles both halves alike, or none, says nothing
        block = bytearray(hands.device.read_plain(at, 16))
        block[signatures % 16] ^= 1
        hands.device.write(at, bytes(block))
        faulty = int.from_bytes(hands.client.ask(request, 16), "little")
        signatures += 1
        log.step("one bit flipped by DMA; the victim signs again", faulty.to_bytes(16, "little"))
        if faulty == 0:
            raise Thwarted("the victim noticed, and answered with nothing")
        if signatures == _PATIENCE:
            raise Thwarted(f"{signatures} altered blocks, and no signature gives a factor")
        q = math.gcd(pow(faulty, E, modulus) - message, modulus)
        hands.caches.write_back()
    p = modulus // q
    log.step(f"gcd(s^e - m, N) = {q:#x}")
    log.figure(
        "faulty signatures needed",
        signatures,
        published="one, for RSA-CRT",
        source=_SOURCE,
        difference="they agree, unless a fault leaves the half signature as it was",
    )
    changed = int.from_bytes(before, "little") ^ int.from_bytes(hands.device.read_plain(at, 16), "little")
    log.figure(
        "bits of ciphertext flipped", changed.bit_count(), published="one", source=_SOURCE, difference=AGREES
    )
    return p.to_bytes(16, "little") + q.to_bytes(16, "little")
