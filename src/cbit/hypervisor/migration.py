"""A launched guest moves to another machine; its memory travels sealed, and it runs at one place at most.

    source host                                           target host
                          <── PAPERS  PDH, PEK ‖ OCA ‖ CEK, ASK ‖ ARK
    SEND_START            ──> START   policy, PDH, session, regions        RECEIVE_START, ACTIVATE
    SEND_UPDATE_DATA …    ──> PACKET  where, header, ciphertext …          RECEIVE_UPDATE_DATA …
                          ──> SHARED  where, a page that is not private …
                          ──> STATE   processor and devices, if it ran
                          ──> END     how many                             all of it there, once?
                          <── READY
    SEND_FINISH           ──> GO                                           RECEIVE_FINISH
                          <── RUNS

Until SEND_FINISH a failure lets the guest run on at the source (SEND_CANCEL); after it the guest is gone from
there, whatever becomes of the message.  Both hosts see ciphertext only, of private memory; the registers of a
guest that ran are the hypervisors' to carry, for plain SEV does not protect them (``running_state``).

The firmware's packets say neither where they belong nor in which order they were made (sev-crypto.md §10),
so a *source* host that lies can swap two of them: that is SEV's.  What can be found out is found out: a
packet that comes twice, memory that is missing or is sent twice.

Paper: sev-api.md §8, §9; sev-crypto.md §11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
SHARED_MAX: Final = 1024

#: Makes whatever is to run out of a guest whose memory is there, and its state; refuses by raising.
Settle = Callable[[SevGuest, bytes], None]


class Start(Wire, size=0x8B0):
    """Payload of START: what RECEIVE_START needs; regions and shared ranges follow, 16 bytes each."""

    policy: int = at(0x000, 4)
    regions: int = at(0x004, 2)
    shared: int = at(0x006, 2)
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
        shared: pages that were carried as they are.
        ran: whether the state of processor and devices was carried too.
    """

    packets: int
    size: int
    policy: int
    shared: int = 0
    ran: bool = False


# ---- out ----


def send(guest: SevGuest, channel: Channel, *, state: bytes = b"", shared: Sequence[range] = ()) -> Moved:
    """Move a guest, which stands still, to the machine at the other end; it is SENT here afterwards.

    Args:
        guest: it.
        channel: to the other hypervisor.
        state: what it is beside its memory, if it ran.
        shared: guest-physical addresses of pages that it shares with everybody: whole pages.

    Raises:
        ValueError: what is shared is no whole pages of its memory.
        FirmwareError: the secure processor refuses; the guest runs on here.
        ChannelError: the other side refuses, or the connection fails.  The guest runs on here, unless the
            message says that it was sent already.
        NotModelled: a guest with ES: this hypervisor keeps no save areas.
    """
    if guest.policy & Policy.ES:
        raise NotModelled("a guest with ES does not move: the hypervisor keeps no save areas")
    for pages in shared:
        if not len(pages) or pages.start % PAGE or pages.stop % PAGE or pages.step != 1:
            raise ValueError(f"shared memory is whole pages, not {pages}")
        guest.vm.spa(Gpa(pages.start), len(pages))
    papers = Papers.parse(channel.receive(Kind.PAPERS)[1])
    try:
        session = _send_start(guest, papers)
    except FirmwareError as refusal:
        channel.refuse(str(refusal))
        raise
    try:
        try:
            moved = _send_all(guest, channel, session, state, shared)
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


def _send_all(
    guest: SevGuest, channel: Channel, session: bytes, state: bytes, shared: Sequence[range]
) -> Moved:
    vm, host = guest.vm, guest.vm.host
    places = [Place(gpa=region.gpa, length=region.size) for region in vm.regions]
    places += [Place(gpa=pages.start, length=len(pages)) for pages in shared]
    start = Start(
        policy=guest.policy,
        regions=len(vm.regions),
        shared=len(shared),
        pdh=host.export_chain()[:CERT_SIZE],
        session=session,
    )
    channel.send(Kind.START, bytes(start) + b"".join(map(bytes, places)))
    host.flush_caches()  # what the guest stored last is read from memory
    packets = size = pages_shared = 0
    with host.room(PAGE) as header_at, host.room(PIECE) as data_at:
        for gpa, length, private in _pieces(vm, shared):
            if not private:
                page = host.read(vm.spa(gpa, length), length)
                channel.send(Kind.SHARED, bytes(Place(gpa=gpa, length=length)) + page)
                pages_shared += 1
                continue
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
    if state:
        channel.send(Kind.STATE, state)
    channel.send(Kind.END, packets.to_bytes(8, "little"))
    return Moved(packets, size, guest.policy, pages_shared, ran=bool(state))


def _pieces(vm: Vm, shared: Sequence[range]) -> Iterator[tuple[Gpa, int, bool]]:
    """Cut memory into what travels at a time: (address, bytes, whether it is private).

    A piece that has a shared page in it goes page by page.
    """
    pages = {page for range_ in shared for page in range(range_.start, range_.stop, PAGE)}
    for region in vm.regions:
        for start in range(region.gpa, region.gpa + region.size, PIECE):
            end = min(start + PIECE, region.gpa + region.size)
            within = range(start, end, PAGE)
            if pages.isdisjoint(within):
                yield Gpa(start), end - start, True
            else:
                yield from ((Gpa(page), PAGE, page not in pages) for page in within)


# ---- in ----


def receive(
    host: Host, channel: Channel, papers: Papers, *, settle: Settle | None = None
) -> tuple[SevGuest, Moved]:
    """Take a guest in; it may run here when this returns.

    Args:
        host: where.
        channel: to the other hypervisor.
        papers: what this platform is.
        settle: takes the state of a guest that ran, before the source gives it up.

    Raises:
        FirmwareError, CbitError: it cannot be taken in, or a packet is not what the sender's secure processor
            made; the other side was told, and nothing is left here.
        ChannelError: what comes does not keep to the protocol; likewise.
    """
    channel.send(Kind.PAPERS, bytes(papers))
    arriving = _Arriving(host)
    try:
        moved = arriving.all_of_it(channel, settle)
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
        self._missing: dict[Gpa, tuple[int, bool]] = {}
        self._seen: set[bytes] = set()

    def undo(self) -> None:
        if self.guest is not None:
            self.guest.release()
        self._vm.destroy()

    def all_of_it(self, channel: Channel, settle: Settle | None) -> Moved:
        self._start(channel.receive(Kind.START)[1])
        packets = size = shared = 0
        state = b""
        with self._host.room(PAGE) as header_at, self._host.room(PIECE) as data_at:
            while True:
                kind, payload = channel.receive(Kind.PACKET, Kind.SHARED, Kind.STATE, Kind.END)
                if kind is Kind.END:
                    break
                if kind is Kind.STATE:
                    if state or not payload:
                        raise ChannelError("the state of the processor came before, or is empty")
                    state = payload
                elif kind is Kind.SHARED:
                    self._take_shared(payload)
                    shared += 1
                else:
                    size += self._take(payload, header_at, data_at)
                    packets += 1
        if int.from_bytes(payload, "little") != packets or self._missing:
            raise ChannelError(f"{len(self._missing)} pieces of the guest's memory are missing at the end")
        assert self.guest is not None
        if state and settle is None:
            raise ChannelError("the guest ran, and nobody here takes it over")
        if state and settle is not None:
            settle(self.guest, state)
        return Moved(packets, size, self.guest.policy, shared, ran=bool(state))

    def _start(self, payload: bytes) -> None:
        start = Start.parse(payload[: Start.SIZE], canonical=False)
        places = payload[Start.SIZE :]
        announced = start.regions + start.shared
        if (
            not 0 < start.regions <= REGIONS_MAX
            or start.shared > SHARED_MAX
            or len(places) != Place.SIZE * announced
        ):
            raise ChannelError(
                f"{start.regions} regions and {start.shared} shared ranges are announced, "
                f"{len(places)} bytes of them came"
            )
        if start.policy & Policy.ES:
            raise NotModelled("a guest with ES does not move: the hypervisor keeps no save areas")
        every = [Place.parse(places[at_ : at_ + Place.SIZE]) for at_ in range(0, len(places), Place.SIZE)]
        for place in every[: start.regions]:
            try:
                self._vm.add_memory(Gpa(place.gpa), place.length)
            except ValueError as error:
                raise ChannelError(str(error)) from None
        self._expect(every[start.regions :])
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

    def _expect(self, shared: Sequence[Place]) -> None:
        """Know what has to come, as the sender cuts it."""
        for place in shared:
            if place.gpa % PAGE or place.length % PAGE or not place.length:
                raise ChannelError(f"{place.length:#x} bytes at {place.gpa:#x} are shared: no whole pages")
            self._vm.spa(Gpa(place.gpa), place.length)
        pieces = _pieces(self._vm, [range(place.gpa, place.gpa + place.length) for place in shared])
        self._missing = {gpa: (length, private) for gpa, length, private in pieces}

    def _place(self, place: Place, *, private: bool) -> Spa:
        """Say where something goes that is due."""
        due = self._missing.get(Gpa(place.gpa))
        if due is None:
            raise ChannelError(f"memory at {place.gpa:#x} is none of the guest's, or came before")
        if due != (place.length, private):
            raise ChannelError(f"{place.length:#x} bytes at {place.gpa:#x} are a part of a piece")
        return self._vm.spa(Gpa(place.gpa), place.length)

    def _take_shared(self, payload: bytes) -> None:
        """Take a page that is everybody's."""
        place, data = Place.parse(payload[: Place.SIZE]), payload[Place.SIZE :]
        if len(data) != place.length:
            raise ChannelError(f"{len(data)} bytes for {place.length:#x} shared ones at {place.gpa:#x}")
        self._place(place, private=False)
        self._vm.load(Gpa(place.gpa), data)
        del self._missing[Gpa(place.gpa)]

    def _take(self, payload: bytes, header_at: Spa, data_at: Spa) -> int:
        """RECEIVE_UPDATE_DATA of one packet; return its bytes."""
        place = Place.parse(payload[: Place.SIZE])
        header = payload[Place.SIZE : Place.SIZE + PacketHeader.SIZE]
        data = payload[Place.SIZE + PacketHeader.SIZE :]
        if len(header) != PacketHeader.SIZE or len(data) != place.length or not 0 < len(data) <= PIECE:
            raise ChannelError(f"a packet of {len(payload)} bytes for {place.length:#x} at {place.gpa:#x}")
        if header in self._seen:
            raise ChannelError(f"the packet for {place.gpa:#x} came before: replayed")
        spa = self._place(place, private=True)
        host, guest = self._host, self.guest
        assert guest is not None
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
        del self._missing[Gpa(place.gpa)]
        return len(data)
