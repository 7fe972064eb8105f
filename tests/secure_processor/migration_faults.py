"""SEND and RECEIVE: requests that succeed, and what can be wrong with them, in the paper's order.

Paper: sev-api.md §8, §9; sev-crypto.md §2.5, §3 (the receiver's chain).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from cbit.crypto import sev_cert
from cbit.machine.manufacture import Root, make_root
from cbit.spec import buffers
from cbit.spec.address import MIB
from cbit.spec.certificate import CERT_SIZE, UNUSED_SLOT, Algo, SevCert, Usage
from cbit.spec.command import Command as C
from cbit.spec.policy import Policy
from cbit.spec.states import GuestState
from cbit.spec.status import Status as S
from secure_processor.faults import (
    IDLE,
    INACTIVE,
    NO_GUEST,
    UNINIT,
    Fault,
    Scene,
    Scenes,
    bad_addresses,
    fields,
    force,
    spoiled,
)
from secure_processor.import_faults import STRANGER, Organisation
from secure_processor.launch_faults import StartScene, start_faults
from secure_processor.migrations import (
    Papers,
    receive_update,
    receiving,
    send_start,
    send_update,
    sending,
    take,
)
from secure_processor.worlds import MEMORY, TMR, World, flipped

ROOT = 0x340  # one certificate of a 2048-bit root

# ---- SEND_START --------------------------------------------------------------------------------------------


class SendScene(Scene):
    """SEND_START to this very platform, of a guest whose policy wants every proof."""

    def __init__(self, world: World) -> None:
        handle = world.init(es=True).launch(Policy.SEV | Policy.DOMAIN)
        super().__init__(world, send_start(world, handle, Papers.of(world)))

    def cert(self, name: str) -> SevCert:
        return SevCert.parse(self.world.desk.read(self._at(name), CERT_SIZE), canonical=False)

    def present(self, name: str, cert: SevCert) -> None:
        self.world.desk.write(self._at(name), bytes(cert))

    def _at(self, name: str) -> int:
        if name == "pdh":
            return int(self.get("pdh_cert_paddr"))
        return int(self.get("plat_certs_paddr")) + ("pek", "oca", "cek").index(name) * CERT_SIZE


def cert(name: str, what: str, status: S, change: Callable[[World, SevCert], SevCert]) -> Fault:
    def spoil(scene: Scene) -> None:
        assert isinstance(scene, SendScene)
        scene.present(name, change(scene.world, scene.cert(name)))

    return spoiled(f"{name} {what}", status, spoil, name)


def root(name: str, status: S, at: int, touches: str) -> Fault:
    return spoiled(name, status, lambda s: s.alter(s.get("amd_certs_paddr") + at, 0), touches)


@functools.cache
def another_vendor() -> Root:
    return make_root(2048)


def another_root(scene: Scene) -> None:
    """Bring a root with a chain of its own, all signatures good."""
    assert isinstance(scene, SendScene)
    made = another_vendor()
    scene.world.desk.write(scene.get("amd_certs_paddr"), bytes(made.ask) + bytes(made.ark))
    cek = sev_cert.without_signatures(scene.cert("cek"))
    scene.present("cek", sev_cert.sign_by_ask(cek, signer=made.ask_key))


def another_key(world: World, cek: SevCert) -> SevCert:
    return cek.replace(pubkey=world.firmware.platform.identity.pek_cert.pubkey)


def pdh_that_signs(world: World, pdh: SevCert) -> SevCert:
    """Let the platform's PEK call its PDH an ECDSA key."""
    identity = world.firmware.platform.identity
    changed = pdh.replace(pubkey_algo=Algo.ECDSA_SHA256)
    return sev_cert.sign(changed, slot=1, signer=identity.pek_key, usage=Usage.PEK)


def another_domain(scene: Scene) -> None:
    """The receiver is a platform of the same root and another owner."""
    assert isinstance(scene, SendScene)
    org = Organisation()
    scene.present("pek", org.sign(scene.cert("pek")))
    scene.present("oca", org.oca)


def want(bits: int) -> Callable[[Scene], None]:
    def spoil(scene: Scene) -> None:
        scene.world.firmware.platform.guests[scene.get("handle")].policy |= bits

    return spoil


SEND_START = (
    UNINIT,
    IDLE,
    NO_GUEST,
    fields("session length 0", S.INVALID_LENGTH, session_len=0),
    fields("session short", S.INVALID_LENGTH, session_len=0x7F),
    fields("session long", S.INVALID_LENGTH, session_len=0x81),
    spoiled("on its way already", S.INVALID_GUEST_STATE, force(GuestState.SUPDATE), "guest"),
    spoiled("NOSEND", S.POLICY_FAILURE, want(Policy.NOSEND), "guest"),
    fields("chain short", S.INVALID_LENGTH, plat_certs_len=0x186B),
    fields("no chain", S.INVALID_LENGTH, plat_certs_len=0),
    fields("PDH long", S.INVALID_LENGTH, pdh_cert_len=0x825),
    fields("AMD certificates short", S.INVALID_LENGTH, amd_certs_len=0x67F),
    fields("AMD certificates of mixed sizes", S.INVALID_LENGTH, amd_certs_len=0x880),
    *bad_addresses("pdh_cert_paddr", es=True),
    *bad_addresses("plat_certs_paddr", es=True),
    *bad_addresses("amd_certs_paddr", es=True),
    root("ARK altered", S.BAD_SIGNATURE, ROOT + 0x240, "ark"),
    root("ARK of another key id", S.INVALID_CERTIFICATE, ROOT + 0x04, "ark"),
    root("ARK of another version", S.INVALID_CERTIFICATE, ROOT, "ark"),
    root("ARK of another usage", S.INVALID_CERTIFICATE, ROOT + 0x24, "ark"),
    spoiled("another root", S.INVALID_CERTIFICATE, another_root, "ark ask cek"),
    root("ASK altered", S.BAD_SIGNATURE, 0x240, "ask"),
    root("ASK certified by another", S.INVALID_CERTIFICATE, 0x14, "ask"),
    cert("cek", "not signed", S.INVALID_CERTIFICATE, lambda w, c: sev_cert.without_signatures(c)),
    cert("cek", "signature altered", S.BAD_SIGNATURE, lambda w, c: c.replace(sig1=flipped(c.sig1, 9))),
    cert("cek", "of another chip", S.BAD_SIGNATURE, another_key),
    cert("pek", "endorsement altered", S.BAD_SIGNATURE, lambda w, c: c.replace(sig2=flipped(c.sig2, 9))),
    cert(
        "pek",
        "not endorsed",
        S.INVALID_CERTIFICATE,
        lambda w, c: sev_cert.with_slot(c, 2, UNUSED_SLOT),
    ),
    cert("pdh", "signature altered", S.BAD_SIGNATURE, lambda w, c: c.replace(sig1=flipped(c.sig1, 9))),
    cert("pdh", "not signed", S.INVALID_CERTIFICATE, lambda w, c: sev_cert.without_signatures(c)),
    cert(
        "pdh",
        "signed by a stranger",
        S.BAD_SIGNATURE,
        lambda w, c: sev_cert.sign(c, slot=1, signer=STRANGER, usage=Usage.PEK),
    ),
    spoiled("firmware too old", S.POLICY_FAILURE, want(18 << 24), "version"),
    cert("oca", "signature altered", S.BAD_SIGNATURE, lambda w, c: c.replace(sig1=flipped(c.sig1, 9))),
    cert("oca", "not signed", S.INVALID_CERTIFICATE, lambda w, c: sev_cert.without_signatures(c)),
    cert("oca", "of a stranger", S.BAD_SIGNATURE, lambda w, c: Organisation().oca),
    spoiled("another domain", S.POLICY_FAILURE, another_domain, "oca pek"),
    cert("pdh", "that signs", S.INVALID_CERTIFICATE, pdh_that_signs),
    *bad_addresses("session_paddr", es=True),
)


# ---- the rest of the way out -------------------------------------------------------------------------------


def send_update_data(world: World) -> Scene:
    handle = sending(world.init(es=True)).handle
    return Scene(world, send_update(world, handle, world.desk.room(64), 64))


def guest_addresses() -> tuple[Fault, ...]:
    return (
        fields("GUEST_PADDR leaves DRAM", S.INVALID_ADDRESS, guest_paddr=MEMORY - 16),
        fields("GUEST_PADDR reaches the TMR", S.INVALID_ADDRESS, guest_paddr=TMR - 16),
    )


def end(command: C) -> Callable[[Scene], object]:
    return lambda scene: scene.world.desk.do(command, buffers.GuestHandle(handle=scene.get("handle")))


SENT = spoiled("sent", S.INVALID_GUEST_STATE, end(C.SEND_FINISH), "state")
CANCELLED = spoiled("cancelled", S.INVALID_GUEST_STATE, end(C.SEND_CANCEL), "state")
SEND_UPDATE_DATA = (
    UNINIT,
    IDLE,
    fields("header length 0", S.INVALID_LENGTH, hdr_len=0),
    fields("header short", S.INVALID_LENGTH, hdr_len=0x33),
    NO_GUEST,
    SENT,
    CANCELLED,
    INACTIVE,
    fields("nothing", S.INVALID_LENGTH, guest_len=0),
    fields("too long", S.INVALID_LENGTH, guest_len=0x5010, trans_len=0x5010),
    fields("not a multiple of 16", S.INVALID_LENGTH, guest_len=24),
    fields("no room for the packet", S.INVALID_LENGTH, trans_len=0),
    fields("too little room for the packet", S.INVALID_LENGTH, trans_len=48),
    fields("GUEST_PADDR not on 16", S.INVALID_ADDRESS, guest_paddr=2 * MIB + 8),
    *guest_addresses(),
    *bad_addresses("hdr_paddr", es=True),
    *bad_addresses("trans_paddr", es=True),
)


def sending_guest(world: World) -> Scene:
    return Scene(world, buffers.GuestHandle(handle=sending(world.init()).handle))


# ---- in ----------------------------------------------------------------------------------------------------


class ReceiveScene(StartScene):
    """RECEIVE_START with a sender in the owner's place."""

    layout = buffers.ReceiveStart
    cert_field = "pdh_cert"


def receive_update_data(world: World) -> Scene:
    journey = sending(world.init(es=True))
    packet = take(world, journey.handle, world.desk.room(64), 64)
    return Scene(world, receive_update(world, receiving(world, journey), packet))


def receiving_guest(world: World) -> Scene:
    return Scene(world, buffers.GuestHandle(handle=receiving(world, sending(world.init()))))


def altered(name: str, status: S, field: str, bit: int, touches: str) -> Fault:
    return spoiled(name, status, lambda s: s.alter(s.get(field), bit), touches)


RECEIVED = spoiled("received", S.INVALID_GUEST_STATE, end(C.RECEIVE_FINISH), "state")
RECEIVE_UPDATE_DATA = (
    UNINIT,
    IDLE,
    NO_GUEST,
    RECEIVED,
    INACTIVE,
    fields("nothing", S.INVALID_LENGTH, guest_len=0, trans_len=0),
    fields("too long", S.INVALID_LENGTH, guest_len=0x5010, trans_len=0x5010),
    fields("not a multiple of 16", S.INVALID_LENGTH, guest_len=24, trans_len=24),
    fields("lengths differ", S.INVALID_LENGTH, guest_len=48),
    fields("header short", S.INVALID_LENGTH, hdr_len=0x33),
    fields("GUEST_PADDR not on 16", S.INVALID_ADDRESS, guest_paddr=2 * MIB + 8),
    *guest_addresses(),
    *bad_addresses("hdr_paddr", es=True),
    *bad_addresses("trans_paddr", es=True),
    altered("compressed", S.UNSUPPORTED, "hdr_paddr", 0, "flags"),
    altered("another flag", S.BAD_MEASUREMENT, "hdr_paddr", 1, "flag"),
    altered("IV altered", S.BAD_MEASUREMENT, "hdr_paddr", 4 * 8, "iv"),
    altered("MAC altered", S.BAD_MEASUREMENT, "hdr_paddr", 0x14 * 8, "mac"),
    altered("payload altered", S.BAD_MEASUREMENT, "trans_paddr", 63 * 8 + 7, "data"),
    fields("payload short", S.BAD_MEASUREMENT, guest_len=48, trans_len=48),
)

SCENES: Scenes = {
    C.SEND_START: (SendScene, SEND_START),
    C.SEND_UPDATE_DATA: (send_update_data, SEND_UPDATE_DATA),
    C.SEND_FINISH: (sending_guest, (UNINIT, IDLE, NO_GUEST, CANCELLED)),
    C.SEND_CANCEL: (sending_guest, (UNINIT, IDLE, NO_GUEST, SENT)),
    C.RECEIVE_START: (ReceiveScene, start_faults("pdh_cert")),
    C.RECEIVE_UPDATE_DATA: (receive_update_data, RECEIVE_UPDATE_DATA),
    C.RECEIVE_FINISH: (receiving_guest, (UNINIT, IDLE, NO_GUEST, RECEIVED)),
}
