"""The launch commands: requests that succeed, and what can be wrong with them, in the paper's order.

Paper: sev-api.md §7, the "Order:" lines; sev-crypto.md §7.4.
"""

from __future__ import annotations

from typing import Any

from cbit.crypto import ec, packet, session, sev_cert
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.session import TransportKeys
from cbit.spec import buffers
from cbit.spec.address import MIB
from cbit.spec.certificate import SevCert
from cbit.spec.command import Command as C
from cbit.spec.session import CONTEXT_SECRET, Session
from cbit.spec.states import GuestState
from cbit.spec.status import Status as S
from cbit.spec.wire import Wire
from secure_processor.faults import (
    ASEG,
    IDLE,
    INACTIVE,
    NO_GUEST,
    NOBODY,
    UNINIT,
    Fault,
    Scene,
    Scenes,
    bad_addresses,
    fields,
    finish_secretly,
    measured,
    secret_guest,
    spoiled,
)
from secure_processor.worlds import MEMORY, TMR, World


class StartScene(Scene):
    """LAUNCH_START with an owner: policy and session can be changed together."""

    layout: type[Wire] = buffers.LaunchStart
    cert_field = "dh_cert"

    def __init__(self, world: World) -> None:
        world.init()
        made, self.keys = world.owner(policy=1)
        own = ec.random_key(SeededEntropy("peer"))
        self.cert = made.godh.replace(pubkey=bytes(ec.encode_public(own.public_key())))
        pdh = SevCert.parse(world.export()[0])
        self._z = ec.shared_secret(own, sev_cert.public_key(pdh))
        super().__init__(
            world,
            self.layout(
                **{
                    "policy": 1,
                    f"{self.cert_field}_paddr": world.desk.put(bytes(self.cert)),
                    f"{self.cert_field}_len": 0x824,
                    "session_paddr": world.desk.put(bytes(self._wrap(1))),
                    "session_len": 0x80,
                }
            ),
        )

    def _wrap(self, policy: int) -> Session:
        return session.wrap(self.keys, z=self._z, policy=policy, nonce=bytes(16), wrap_iv=bytes(16))

    def ask(self, bits: int) -> None:
        """Ask for further policy bits, and let the owner agree."""
        policy = self.get("policy") | bits
        self.set(policy=policy)
        self.world.desk.write(self.get("session_paddr"), bytes(self._wrap(policy)))

    def present(self, **changes: Any) -> None:
        self.cert = self.cert.replace(**changes)
        self.world.desk.write(self.get(f"{self.cert_field}_paddr"), bytes(self.cert))


def cert_fault(name: str, **changes: Any) -> Fault:
    def spoil(scene: Scene) -> None:
        assert isinstance(scene, StartScene)
        scene.present(**changes)

    return spoiled(name, S.INVALID_CERTIFICATE, spoil, "cert")


def policy_fault(name: str, status: S, bits: int, touches: str) -> Fault:
    def spoil(scene: Scene) -> None:
        assert isinstance(scene, StartScene)
        scene.ask(bits)

    return spoiled(name, status, spoil, touches)


def share(scene: Scene, *, policy: int) -> None:
    """Name another guest, of this policy, to share with."""
    other = scene.world.start()
    scene.world.firmware.platform.guests[other].policy = policy
    scene.set(handle=other)


def share_under_noks(scene: Scene) -> None:
    assert isinstance(scene, StartScene)
    scene.ask(2)
    share(scene, policy=scene.get("policy"))


def use_all_handles(scene: Scene) -> None:
    guests = scene.world.firmware.platform.guests
    one = scene.world.start()
    for handle in range(1, 1025):
        guests.setdefault(handle, guests[one])


def start_faults(cert: str) -> tuple[Fault, ...]:
    """What can be wrong with LAUNCH_START and RECEIVE_START, whose fields differ by name."""
    return (
        UNINIT,
        fields("session short", S.INVALID_LENGTH, session_len=0x7F),
        fields("session long", S.INVALID_LENGTH, session_len=0x81),
        *bad_addresses("session_paddr"),
        fields("certificate short", S.INVALID_LENGTH, (), **{f"{cert}_len": 0x823}),
        fields("certificate long", S.INVALID_LENGTH, (), **{f"{cert}_len": 0x825}),
        *bad_addresses(f"{cert}_paddr"),
        cert_fault("certificate version 2", version=2),
        cert_fault("certificate of a PEK", pubkey_usage=0x1002),
        cert_fault("certificate of an ECDSA key", pubkey_algo=0x002),
        cert_fault("certificate of an unknown algorithm", pubkey_algo=0x999),
        cert_fault(
            "a point that is not on the curve", pubkey=b"\x02\0\0\0" + b"\x07" * 47 + bytes(0x400 - 47)
        ),
        cert_fault("curve 1", pubkey=b"\x01\0\0\0" + bytes(0x400)),
        spoiled(
            "WRAP_TK altered", S.BAD_MEASUREMENT, lambda s: s.alter(s.get("session_paddr"), 0x10 * 8), "wrap"
        ),
        spoiled("NONCE altered", S.BAD_MEASUREMENT, lambda s: s.alter(s.get("session_paddr"), 0), "nonce"),
        spoiled(
            "WRAP_MAC altered", S.BAD_MEASUREMENT, lambda s: s.alter(s.get("session_paddr"), 0x40 * 8), "mac"
        ),
        spoiled(
            "WRAP_IV altered", S.BAD_MEASUREMENT, lambda s: s.alter(s.get("session_paddr"), 0x30 * 8), "iv"
        ),
        spoiled(
            "POLICY_MAC altered",
            S.BAD_MEASUREMENT,
            lambda s: s.alter(s.get("session_paddr"), 0x60 * 8),
            "pmac",
        ),
        spoiled("another policy", S.BAD_MEASUREMENT, lambda s: s.set(policy=s.get("policy") ^ 8), "policy"),
        policy_fault("minor version too new", S.POLICY_FAILURE, 18 << 24, "version"),
        policy_fault("major version too new", S.POLICY_FAILURE, 1 << 16, "version"),
        policy_fault("lowest reserved bit", S.POLICY_FAILURE, 1 << 6, "reserved"),
        policy_fault("highest reserved bit", S.POLICY_FAILURE, 1 << 15, "reserved"),
        fields("guest to share with not there", S.INVALID_GUEST, handle=NOBODY),
        fields("handle beyond the last", S.INVALID_GUEST, handle=1025),
        spoiled(
            "policies differ", S.POLICY_FAILURE, lambda s: share(s, policy=s.get("policy") ^ 8), "handle"
        ),
        spoiled("NOKS", S.POLICY_FAILURE, share_under_noks, "handle"),
        spoiled("all handles in use", S.RESOURCE_LIMIT, use_all_handles, "handle"),
        policy_fault("ES without ES", S.UNSUPPORTED, 4, "es"),
    )


def launch_update_data(world: World) -> Scene:
    handle = world.init(es=True).launch(state=GuestState.LUPDATE)
    return Scene(world, buffers.LaunchUpdateData(handle=handle, paddr=world.desk.put(b"data" * 8), length=32))


def launch_measure(world: World) -> Scene:
    handle = world.init(es=True).launch(state=GuestState.LUPDATE)
    return Scene(
        world, buffers.LaunchMeasure(handle=handle, measure_paddr=world.desk.room(0x30), measure_len=0x30)
    )


def launch_secret(world: World) -> Scene:
    handle = world.init(es=True).launch(state=GuestState.LSECRET)
    return Scene(world, world.secret(handle, b"sixteen bytes ok" * 2))


def compress(scene: Scene) -> None:
    """Seal again with FLAGS.COMPRESSED, which the MAC covers."""
    world, desk = scene.world, scene.world.desk
    keys = TransportKeys.parse(bytes(32))
    header = packet.seal(keys, bytes(32), context=CONTEXT_SECRET, iv=bytes(16))[0].replace(flags=1)
    data = desk.read(scene.get("trans_paddr"), 32)
    measure = world.firmware.platform.guests[scene.get("handle")].measure
    mac = packet.packet_mac(
        keys, context=CONTEXT_SECRET, header=header, data=data, guest_len=32, measure=measure
    )
    desk.write(scene.get("hdr_paddr"), bytes(header.replace(mac=mac)))


LAUNCH_UPDATE_DATA = (
    UNINIT,
    IDLE,
    NO_GUEST,
    spoiled("measured", S.INVALID_GUEST_STATE, measured, "state"),
    INACTIVE,
    fields("PADDR not on 16", S.INVALID_ADDRESS, paddr=2 * MIB + 8),
    fields("length 0", S.INVALID_LENGTH, length=0),
    fields("length not a multiple of 16", S.INVALID_LENGTH, length=24),
    fields("PADDR leaves DRAM", S.INVALID_ADDRESS, paddr=MEMORY - 16),
    fields("PADDR reaches ASEG", S.INVALID_ADDRESS, paddr=ASEG - 16),
    fields("PADDR reaches the TMR", S.INVALID_ADDRESS, paddr=TMR - 16),
)
LAUNCH_MEASURE = (
    UNINIT,
    IDLE,
    NO_GUEST,
    spoiled("measured before", S.INVALID_GUEST_STATE, measured, "state"),
    fields("length 0", S.INVALID_LENGTH, measure_len=0),
    fields("length short", S.INVALID_LENGTH, measure_len=0x2F),
    *bad_addresses("measure_paddr", es=True),
)
LAUNCH_SECRET = (
    UNINIT,
    IDLE,
    NO_GUEST,
    fields("GUEST_PADDR not on 16", S.INVALID_ADDRESS, guest_paddr=2 * MIB + 8),
    fields("header short", S.INVALID_LENGTH, hdr_len=0x33),
    fields("header long", S.INVALID_LENGTH, hdr_len=0x35),
    fields("nothing", S.INVALID_LENGTH, guest_len=0, trans_len=0),
    fields("not a multiple of 16", S.INVALID_LENGTH, guest_len=24, trans_len=24),
    fields("too long", S.INVALID_LENGTH, guest_len=0x5010, trans_len=0x5010),
    fields("lengths differ", S.INVALID_LENGTH, trans_len=48),
    spoiled("finished", S.INVALID_GUEST_STATE, finish_secretly, "state"),
    INACTIVE,
    *bad_addresses("hdr_paddr", es=True),
    *bad_addresses("trans_paddr", es=True),
    fields("GUEST_PADDR leaves DRAM", S.INVALID_ADDRESS, guest_paddr=MEMORY - 16),
    fields("GUEST_PADDR reaches the TMR", S.INVALID_ADDRESS, guest_paddr=TMR - 16),
    spoiled("header altered", S.BAD_MEASUREMENT, lambda s: s.alter(s.get("hdr_paddr"), 4 * 8), "iv"),
    spoiled("MAC altered", S.BAD_MEASUREMENT, lambda s: s.alter(s.get("hdr_paddr"), 0x14 * 8), "mac"),
    spoiled(
        "payload altered", S.BAD_MEASUREMENT, lambda s: s.alter(s.get("trans_paddr"), 31 * 8 + 7), "data"
    ),
    spoiled("compressed", S.UNSUPPORTED, compress),
)

SCENES: Scenes = {
    C.LAUNCH_START: (StartScene, start_faults("dh_cert")),
    C.LAUNCH_UPDATE_DATA: (launch_update_data, LAUNCH_UPDATE_DATA),
    C.LAUNCH_MEASURE: (launch_measure, LAUNCH_MEASURE),
    C.LAUNCH_SECRET: (launch_secret, LAUNCH_SECRET),
    C.LAUNCH_FINISH: (
        secret_guest,
        (UNINIT, IDLE, NO_GUEST, spoiled("finished", S.INVALID_GUEST_STATE, finish_secretly, "state")),
    ),
}
