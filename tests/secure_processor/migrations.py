"""Two platforms and what goes between them: certificates, a session, packets."""

from __future__ import annotations

from dataclasses import dataclass

from cbit.spec import buffers
from cbit.spec.certificate import CERT_SIZE
from cbit.spec.command import Command
from secure_processor.worlds import FIRST, World


@dataclass(frozen=True)
class Papers:
    """What a platform shows to whoever shall send to it: PDH; PEK, OCA, CEK; ASK, ARK."""

    pdh: bytes
    chain: bytes
    amd: bytes

    @classmethod
    def of(cls, world: World) -> Papers:
        """As PDH_CERT_EXPORT gives them, with the vendor's signed CEK certificate put in."""
        pdh, chain = world.export()
        cek = (world.state.certs / "cek.cert").read_bytes()
        return cls(pdh, chain[: 2 * CERT_SIZE] + cek, (world.state.certs / "ask_ark.cert").read_bytes())


@dataclass(frozen=True)
class Packet:
    """One piece of guest memory on its way."""

    header: bytes
    data: bytes


def send_start(world: World, handle: int, papers: Papers) -> buffers.SendStart:
    """A good SEND_START with everything that any policy asks for."""

    def put(data: bytes) -> int:
        return world.desk.put(data or bytes(1))

    return buffers.SendStart(
        handle=handle,
        pdh_cert_paddr=put(papers.pdh),
        pdh_cert_len=len(papers.pdh),
        plat_certs_paddr=put(papers.chain),
        plat_certs_len=len(papers.chain),
        amd_certs_paddr=put(papers.amd),
        amd_certs_len=len(papers.amd),
        session_paddr=world.desk.room(0x80),
        session_len=0x80,
    )


@dataclass(frozen=True)
class Journey:
    """A guest in SUPDATE and what its receiver needs to begin."""

    handle: int
    policy: int
    pdh: bytes
    session: bytes


def leave(world: World, handle: int, papers: Papers) -> Journey:
    """SEND_START of a running guest to the platform of these papers."""
    after = world.desk.ccp.call(Command.SEND_START, send_start(world, handle, papers))
    session = world.desk.read(after.session_paddr, 0x80)
    return Journey(handle, after.policy, world.export()[0], session)


def sending(world: World, policy: int = 0, *, asid: int = FIRST) -> Journey:
    """Launch a guest and send it to this platform itself."""
    return leave(world, world.launch(policy, asid=asid), Papers.of(world))


def receiving(world: World, journey: Journey, *, asid: int = FIRST + 1) -> int:
    """RECEIVE_START and ACTIVATE."""
    handle = world.desk.ccp.call(Command.RECEIVE_START, receive_start(world, journey)).handle
    world.activate(handle, asid)
    return handle


def send_update(world: World, handle: int, at: int, length: int) -> buffers.SendUpdateData:
    """A good SEND_UPDATE_DATA."""
    return buffers.SendUpdateData(
        handle=handle,
        hdr_paddr=world.desk.room(0x34),
        hdr_len=0x34,
        guest_paddr=at,
        guest_len=length,
        trans_paddr=world.desk.room(length),
        trans_len=length,
    )


def take(world: World, handle: int, at: int, length: int) -> Packet:
    """SEND_UPDATE_DATA; return the packet."""
    asked = send_update(world, handle, at, length)
    world.desk.do(Command.SEND_UPDATE_DATA, asked)
    return Packet(world.desk.read(asked.hdr_paddr, 0x34), world.desk.read(asked.trans_paddr, length))


def receive_start(world: World, journey: Journey) -> buffers.ReceiveStart:
    """A good RECEIVE_START."""
    return buffers.ReceiveStart(
        policy=journey.policy,
        pdh_cert_paddr=world.desk.put(journey.pdh),
        pdh_cert_len=len(journey.pdh),
        session_paddr=world.desk.put(journey.session),
        session_len=len(journey.session),
    )


def receive_update(world: World, handle: int, packet: Packet) -> buffers.ReceiveUpdateData:
    """A RECEIVE_UPDATE_DATA of a packet into fresh memory."""
    return buffers.ReceiveUpdateData(
        handle=handle,
        hdr_paddr=world.desk.put(packet.header),
        hdr_len=len(packet.header),
        guest_paddr=world.desk.room(len(packet.data)),
        guest_len=len(packet.data),
        trans_paddr=world.desk.put(packet.data),
        trans_len=len(packet.data),
    )
