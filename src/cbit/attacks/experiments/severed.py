"""E5, A6, A7: the hypervisor chooses which page the victim's service reads."""

from __future__ import annotations

import operator

from cbit.attacks.experiments.correspondent import with_letters
from cbit.attacks.lab.attack import attack
from cbit.attacks.lab.guest import HLT, NPF
from cbit.attacks.lab.hands import Hands
from cbit.attacks.lab.log import Field, Figure, Log
from cbit.attacks.lab.outcome import SUCCEEDS, Mode, stopped_by, succeeds
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.lab.tools import Thwarted, gpa_of
from cbit.attacks.power import Power
from cbit.cpu.engine.control_block import Exit
from cbit.guest.builtin.image import image
from cbit.guest.builtin.interface import SHARED, SHOWN, Request
from cbit.spec.address import PAGE
from cbit.spec.secret_table import TABLE

FIRST, SECOND = 4, 5  #: pages of the guest's image, which it shows to whoever asks
_FETCH, _WALK = 1 << 4, 1 << 33


def server(stand: Stand) -> Scene:
    """Start the built-in guest: what it shows are pages of its image and nothing else."""
    scene, guest = with_letters(stand)
    planted, targets = scene, guest
    if stand.variant == "other-guest":
        planted, targets = with_letters(stand)
    own = tuple(gpa for gpa in targets.pages if gpa not in SHARED)
    ours, serve = scene.planted and planted.planted, scene.serves and planted.serves
    facts = Facts({"targets": tuple(map(targets.spa, own)), "image": image()})
    return Scene(
        planted.secrets,
        facts,
        guest,
        planted=ours,
        serves=serve,
        measure=lambda loot: _pages_right([targets.peek(gpa, PAGE) for gpa in own], loot),
    )


def _pages_right(held: list[bytes], loot: bytes) -> list[Figure]:
    """How many pages of the loot's end are what the victim holds there."""
    served = loot[-PAGE * len(held) :]
    pages = [served[at : at + PAGE] for at in range(0, len(served), PAGE)]
    right = sum(map(operator.eq, held, pages))
    return [
        Figure(
            "pages that come out right, of all that the victim has for itself",
            right,
            f"of {len(held)}",
            published="all of it (2 GB)",
            source="SEVered (attacks.md A6; the size is from memory there)",
            difference="all here as well, of a smaller guest",
        ),
        Figure(
            "right bytes for each request",
            right * PAGE // max(len(pages), 1),
            "bytes",
            published="derived: the size of the resource",
            source="SEVered (attacks.md A6)",
            difference="the resource is one page here",
        ),
    ]


def _touched(hands: Hands, log: Log, number: Request, *arguments: int) -> set[int]:
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

    pages, asked = hands.tables.pages(), " ".join([number.name, *map(str, arguments)])
    hands.tables.unmap(*pages)
    hands.service.put(number, *arguments)
    hands.victim.until(HLT, handle=note)
    hands.victim.skip(1)
    for gpa in pages:
        hands.tables.home(gpa)
    log.step(
        f"request {asked}: data faults on {', '.join(f'{gpa:#x}' for gpa in sorted(touched))}",
        picture=_map(pages, touched),
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
    defences={
        "other-guest": stopped_by(
            "another guest's key: its pages are served as garbage",
            shown="none of the public image's is right",
        )
    },
    victim=server,
)
def severed(hands: Hands, facts: Facts, log: Log) -> bytes:
    """Find the page that a service serves, then let the nested tables put every other page in its place.

    1. Unmap everything, request a page of the victim's public image, note which pages fault as data; likewise
       another one.  What is touched for the first alone is the first.
    2. Map the guest address of that page onto each page of the victim's memory in turn, and request it again.
       The ciphertext stays where it lies, so the tweak is right; the key is the victim's, so it decrypts.
    3. Begin with the pages that the victim touches while it opens a letter: its key is on one of them.

    The victim's own code reads the page and sends it out.
    """
    first, second = (_touched(hands, log, Request.SHOW, page) for page in (FIRST, SECOND))
    served = sorted(first - second)
    if len(served) != 1:
        raise Thwarted(f"{len(served)} pages could be the one that is served")
    log.step(f"the served page is {served[0]:#x}")

    def ask(spa: int) -> bytes:
        hands.tables.map(served[0], spa)
        hands.service.ask(Request.SHOW, FIRST)
        return hands.service.shared(SHOWN, PAGE)

    suspects = sorted(_touched(hands, log, Request.OPEN) - set(SHARED) - set(served))
    pages = [ask(hands.tables.spa(gpa)) for gpa in suspects]
    keys_page = next((n for n, page in enumerate(pages, 1) if TABLE.bytes_le in page), 0)
    log.step(f"{len(pages)} pages that it used for a letter; number {keys_page} begins the secret table")
    before = hands.victim.exits
    pages += [ask(spa) for spa in facts.numbers("targets")]
    exits = hands.victim.exits - before
    hands.tables.home(served[0])
    log.step(f"{len(pages)} requests, one page of the victim's memory each", pages[-1])
    public = facts.data("image")
    right = sum(public[at : at + PAGE] in pages for at in range(0, len(public), PAGE))
    if not right:
        log.obstacle = "every page is served, and none of the public image's is right: the key is another"
    log.figure(
        "requests until the keys are served",
        keys_page,
        published="only few pages are extracted",
        source="Extracting secrets (attacks.md A7)",
        difference="a number here; none is published",
    )
    log.figure("pages of the public image that come out right", right, f"of {len(public) // PAGE}")
    log.figure("exits for each page", exits / len(facts.numbers("targets")))
    return b"".join(pages)
