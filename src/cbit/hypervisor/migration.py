"""A launched guest moves to another machine; its memory travels sealed, and it runs at one place at most.

    source host                                           target host
                          <── PAPERS  PDH, PEK ‖ OCA ‖ CEK, ASK ‖ ARK
    SEND_START            ──> START   policy, PDH, session, regions        RECEIVE_START, ACTIVATE
    SEND_UPDATE_DATA …    ──> PACKET  where, header, ciphertext …          RECEIVE_UPDATE_DATA …
                          ──> END     how many                             all of it there, once?
                          <── READY
    SEND_FINISH           ──> GO                                           RECEIVE_FINISH
                          <── RUNS

Until SEND_FINISH a failure lets the guest run on at the source (SEND_CANCEL); after it the guest is gone from
there, whatever becomes of the message.  Both hosts see ciphertext only.

The firmware's packets say neither where they belong nor in which order they were made (sev-crypto.md §10),
so a *source* host that lies can swap two of them: that is SEV's.  What can be found out is found out: a
packet that comes twice, memory that is missing or is sent twice.

Paper: sev-api.md §8, §9; sev-crypto.md §11.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cbit.driver.errors import FirmwareError
from cbit.hypervisor.channel import Channel, ChannelError, Kind, OtherSide
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vm import Vm
from cbit.spec import buffers
from cbit.spec.address import KIB, PAGE, Gpa, Spa
from cbit.spec.certificate import CERT_SIZE, CHAIN_SIZE
from cbit.spec.command import Command
from cbit.spec.errors import CbitError, NotModelled
from cbit.spec.policy import Policy
from cbit.spec.session import PacketHeader, Session
from cbit.spec.wire import Wire, at

PIECE: Final = 16 * KIB  #: guest memory in one packet: the firmware's limit
REGIONS_MAX: Final = 64


class Start(Wire, size=0x8B0):
    """Payload of START: what RECEIVE_START needs; the regions follow, 16 bytes each."""

    policy: int = at(0x000, 4)
    regions: int = at(0x004, 4)
    pdh: bytes = at(0x008, CERT_SIZE)
    session: bytes = at(0x830, Session.SIZE)


class Place(Wire, size=0x10):
    """A region, or the place of a packet: guest-physical address and bytes."""

    gpa: int = at(0x00, 8)
    length: int = at(0x08, 8)


@dataclass(frozen=True, slots=True)
class Papers:
    """What a platform shows to whoever shall send to it.

    Attributes:
        pdh: its Diffie-Hellman certificate.
        platform: PEK ‖ OCA ‖ CEK, the CEK as the vendor signed it.
        vendor: ASK ‖ ARK.
    """

    pdh: bytes
    platform: bytes
    vendor: bytes

    @classmethod
    def of(cls, host: Host, *, cek: bytes, ask_ark: bytes) -> Papers:
        """Export them, the vendor's signed CEK certificate in the unsigned one's place."""
        exported = host.export_chain()
        return cls(exported[:CERT_SIZE], exported[CERT_SIZE : 3 * CERT_SIZE] + cek, ask_ark)

    @classmethod
    def parse(cls, data: bytes) -> Papers:
        """Read the payload of PAPERS."""
        end = CERT_SIZE + CHAIN_SIZE
        if len(data) <= end:
            raise ChannelError(
                f"the receiver's certificates have {len(data)} bytes, more than {end} are wanted"
            )
        return cls(data[:CERT_SIZE], data[CERT_SIZE:end], data[end:])

    def __bytes__(self) -> bytes:
        return self.pdh + self.platform + self.vendor


@dataclass(frozen=True, slots=True)
class Moved:
    """What a journey came to.

    Attributes:
        packets: how many.
        size: bytes of guest memory in them.
        policy: the guest's.
    """

    packets: int
    size: int
    policy: int


# ---- out ----


def send(guest: SevGuest, channel: Channel) -> Moved:
    """Move a running guest to the machine at the other end; it is SENT here afterwards.

    Raises:
        FirmwareError: the secure processor refuses; the guest runs on here.
        ChannelError: the other side refuses, or the connection fails.  The guest runs on here, unless the
            message says that it was sent already.
        NotModelled: a guest with ES: this hypervisor keeps no save areas.
    """
    if guest.policy & Policy.ES:
        raise NotModelled("a guest with ES does not move: the hypervisor keeps no save areas")
    papers = Papers.parse(channel.receive(Kind.PAPERS)[1])
    try:
        session = _send_start(guest, papers)
    except FirmwareError as refusal:
        channel.refuse(str(refusal))
        raise
    try:
        try:
            moved = _send_all(guest, channel, session)
        except OSError as error:
            channel.receive()  # it broke: was something said before?
            raise ChannelError(f"the connection broke: {error}") from None
        channel.receive(Kind.READY)
    except BaseException:
        guest._call(Command.SEND_CANCEL, buffers.GuestHandle(handle=guest.handle))
        raise
    guest._call(Command.SEND_FINISH, buffers.GuestHandle(handle=guest.handle))
    try:
        channel.send(Kind.GO)
        channel.receive(Kind.RUNS)
    except (ChannelError, OSError) as error:
        raise ChannelError(
            f"the guest was sent, and the other side did not say that it runs there: {error}"
        ) from None
    return moved


def _send_start(guest: SevGuest, papers: Papers) -> bytes:
    host = guest.vm.host
    with (
        host.lent(papers.pdh) as pdh,
        host.lent(papers.platform) as platform,
        host.lent(papers.vendor) as vendor,
        host.room(Session.SIZE) as session,
    ):
        request = buffers.SendStart(
            handle=guest.handle,
            pdh_cert_paddr=pdh,
            pdh_cert_len=len(papers.pdh),
            plat_certs_paddr=platform,
            plat_certs_len=len(papers.platform),
            amd_certs_paddr=vendor,
            amd_certs_len=len(papers.vendor),
            session_paddr=session,
            session_len=Session.SIZE,
        )
        host.ccp.call(Command.SEND_START, request)
        return host.read(session, Session.SIZE)


def _send_all(guest: SevGuest, channel: Channel, session: bytes) -> Moved:
    vm, host = guest.vm, guest.vm.host
    regions = b"".join(bytes(Place(gpa=region.gpa, length=region.size)) for region in vm.regions)
    start = Start(
        policy=guest.policy, regions=len(vm.regions), pdh=host.export_chain()[:CERT_SIZE], session=session
    )
    channel.send(Kind.START, bytes(start) + regions)
    host.flush_caches()  # what the guest stored last is read from memory
    packets = size = 0
    with host.room(PAGE) as header_at, host.room(PIECE) as data_at:
        for gpa, length in _pieces(vm):
            request = buffers.SendUpdateData(
                handle=guest.handle,
                hdr_paddr=header_at,
                hdr_len=PacketHeader.SIZE,
                guest_paddr=vm.spa(gpa, length),
                guest_len=length,
                trans_paddr=data_at,
                trans_len=length,
            )
            host.ccp.call(Command.SEND_UPDATE_DATA, request)
            packet = host.read(header_at, PacketHeader.SIZE) + host.read(data_at, length)
            channel.send(Kind.PACKET, bytes(Place(gpa=gpa, length=length)) + packet)
            packets, size = packets + 1, size + length
    channel.send(Kind.END, packets.to_bytes(8, "little"))
    return Moved(packets, size, guest.policy)


def _pieces(vm: Vm) -> Iterator[tuple[Gpa, int]]:
    for region in vm.regions:
        for start in range(0, region.size, PIECE):
            yield Gpa(region.gpa + start), min(PIECE, region.size - start)


# ---- in ----


def receive(host: Host, channel: Channel, papers: Papers) -> tuple[SevGuest, Moved]:
    """Take a guest in; it runs here when this returns.

    Raises:
        FirmwareError, CbitError: it cannot be taken in, or a packet is not what the sender's secure processor
            made; the other side was told, and nothing is left here.
        ChannelError: what comes does not keep to the protocol; likewise.
    """
    channel.send(Kind.PAPERS, bytes(papers))
    arriving = _Arriving(host)
    try:
        moved = arriving.all_of_it(channel)
        channel.send(Kind.READY)
        channel.receive(Kind.GO)
        guest = arriving.guest
        assert guest is not None
        guest._call(Command.RECEIVE_FINISH, buffers.GuestHandle(handle=guest.handle))
    except BaseException as error:
        arriving.undo()
        if isinstance(error, CbitError) and not isinstance(error, OtherSide):
            channel.refuse(str(error))
        raise
    channel.send(Kind.RUNS)
    return guest, moved


class _Arriving:
    """A guest of which a part is there."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._vm = Vm(host, Protection.SEV)
        self.guest: SevGuest | None = None
        self._missing: set[Gpa] = set()
        self._seen: set[bytes] = set()

    def undo(self) -> None:
        if self.guest is not None:
            self.guest.release()
        self._vm.destroy()

    def all_of_it(self, channel: Channel) -> Moved:
        self._start(channel.receive(Kind.START)[1])
        packets = size = 0
        with self._host.room(PAGE) as header_at, self._host.room(PIECE) as data_at:
            while True:
                kind, payload = channel.receive(Kind.PACKET, Kind.END)
                if kind is Kind.END:
                    break
                size += self._take(payload, header_at, data_at)
                packets += 1
        if int.from_bytes(payload, "little") != packets or self._missing:
            raise ChannelError(f"{len(self._missing)} pieces of the guest's memory are missing at the end")
        assert self.guest is not None
        return Moved(packets, size, self.guest.policy)

    def _start(self, payload: bytes) -> None:
        start = Start.parse(payload[: Start.SIZE], canonical=False)
        places = payload[Start.SIZE :]
        if not 0 < start.regions <= REGIONS_MAX or len(places) != Place.SIZE * start.regions:
            raise ChannelError(f"{start.regions} regions are announced, {len(places)} bytes of them came")
        if start.policy & Policy.ES:
            raise NotModelled("a guest with ES does not move: the hypervisor keeps no save areas")
        for at_ in range(0, len(places), Place.SIZE):
            place = Place.parse(places[at_ : at_ + Place.SIZE])
            try:
                region = self._vm.add_memory(Gpa(place.gpa), place.length)
            except ValueError as error:
                raise ChannelError(str(error)) from None
            self._missing |= {Gpa(region.gpa + offset) for offset in range(0, region.size, PIECE)}
        host = self._host
        asid = host.asids.take()
        try:
            with host.lent(start.pdh) as pdh, host.lent(start.session) as session:
                request = buffers.ReceiveStart(
                    policy=start.policy,
                    pdh_cert_paddr=pdh,
                    pdh_cert_len=len(start.pdh),
                    session_paddr=session,
                    session_len=len(start.session),
                )
                handle = host.ccp.call(Command.RECEIVE_START, request).handle
        except BaseException:
            host.asids.give_back(asid, dirty=False)
            raise
        guest = SevGuest(self._vm, handle, asid, start.policy)
        try:
            guest.activate()
        except BaseException:
            host.asids.give_back(asid)
            guest.decommission()
            raise
        self._vm.asid = asid
        self.guest = guest

    def _take(self, payload: bytes, header_at: Spa, data_at: Spa) -> int:
        """RECEIVE_UPDATE_DATA of one packet; return its bytes."""
        place = Place.parse(payload[: Place.SIZE])
        header = payload[Place.SIZE : Place.SIZE + PacketHeader.SIZE]
        data = payload[Place.SIZE + PacketHeader.SIZE :]
        if len(header) != PacketHeader.SIZE or len(data) != place.length or not 0 < len(data) <= PIECE:
            raise ChannelError(f"a packet of {len(payload)} bytes for {place.length:#x} at {place.gpa:#x}")
        if header in self._seen:
            raise ChannelError(f"the packet for {place.gpa:#x} came before: replayed")
        if Gpa(place.gpa) not in self._missing:
            raise ChannelError(f"memory at {place.gpa:#x} is none of the guest's, or came before")
        host, guest = self._host, self.guest
        assert guest is not None
        spa = self._vm.spa(Gpa(place.gpa), len(data))
        if not self._is_whole(place):
            raise ChannelError(f"{place.length:#x} bytes at {place.gpa:#x} are a part of a piece")
        host.write(header_at, header)
        host.write(data_at, data)
        request = buffers.ReceiveUpdateData(
            handle=guest.handle,
            hdr_paddr=header_at,
            hdr_len=len(header),
            guest_paddr=spa,
            guest_len=len(data),
            trans_paddr=data_at,
            trans_len=len(data),
        )
        host.ccp.call(Command.RECEIVE_UPDATE_DATA, request)
        self._seen.add(header)
        self._missing.discard(Gpa(place.gpa))
        return len(data)

    def _is_whole(self, place: Place) -> bool:
        region = next(region for region in self._vm.regions if place.gpa in region)
        return place.length == min(PIECE, region.gpa + region.size - place.gpa)
