"""The story of the machine, act by act.  Every value comes from what ran.

Acts 1, 2, 3 … are DESIGN.md's story lines.  An act works on the world that the acts before it left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from cbit.attacks.survey import flip_one_bit
from cbit.attacks.tenant import Tenant
from cbit.attacks.victim import RAM_BASE, RAM_SIZE
from cbit.cli.demo.act import Act, Picture
from cbit.cli.demo.firmware import Image
from cbit.cli.page_map import entropies
from cbit.cpu.faults import VmexitInvalid
from cbit.crypto import ec, sev_cert
from cbit.crypto.entropy import Entropy
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.host import Host, Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import Region, Vm
from cbit.machine.board import Machine, Options
from cbit.machine.manufacture import SVN, load_vendor_key
from cbit.machine.state_folder import StateFolder
from cbit.owner import secret as secrets
from cbit.owner.errors import Untrusted
from cbit.owner.measure import expect_sev
from cbit.owner.session import Measuring, Trusted
from cbit.owner.verify.verdict import describe_root, inspect, verify_chain
from cbit.secure_processor.boot import MachineOff
from cbit.secure_processor.image import BiosSettings, ImageHeader, sign_image, x86_boot_image
from cbit.secure_processor.nv_store import replace_file
from cbit.spec import buffers, firmware_table
from cbit.spec.address import GIB, MIB, PAGE, Gpa, Gva, Spa
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import CERT_SIZE, Algo, SevCert, Usage
from cbit.spec.command import Command
from cbit.spec.errors import BadMeasurement
from cbit.spec.key_id import guest as guest_key_id
from cbit.spec.policy import GuestPolicy, Policy
from cbit.spec.secret_table import DISK_PASSPHRASE
from cbit.spec.states import PlatformState

MEMORY: Final = 64 * MIB
PLAIN_PAGE: Final = (b"The host's page: nothing in it is secret, and everything in it is readable. " * 60)[
    :PAGE
]


@dataclass(slots=True)
class World:
    """What the acts share.

    Attributes:
        state: the manufactured machine.
        image: the guest firmware.
        secret: what the guest owner wants in its guest and nowhere else.
        secret_gpa: where, if the image announces no place.
        entropy: everybody's randomness.
    """

    state: StateFolder
    image: Image
    secret: bytes
    secret_gpa: Gpa
    entropy: Entropy
    machine: Machine = field(init=False)
    host: Host = field(init=False)
    tenant: Tenant = field(init=False)
    session: Measuring = field(init=False)
    trusted: Trusted = field(init=False)
    guest: SevGuest = field(init=False)
    firmware: Region = field(init=False)
    place: Gpa = field(init=False)

    def new_machine(self, memory: int = MEMORY) -> Machine:
        """Build the machine of the state folder, powered off."""
        return Machine(self.state, Options(memory_size=memory, entropy=self.entropy))

    def new_host(self, memory: int = MEMORY // 2) -> Host:
        """Boot a machine and initialise its platform."""
        machine = self.new_machine(memory)
        machine.power_on()
        host = Host(machine)
        host.initialise()
        return host


def power_on(world: World) -> Act:
    """Signed firmware, or no machine at all."""
    act = Act(1, "Power on: the secure processor runs only what its fuses accept")
    world.machine = machine = world.new_machine()
    good = world.state.read("spi/sev_firmware.bin")
    stranger = ec.random_key(world.entropy)
    vendor = load_vendor_key(world.state.read("manufacturer/vendor.pem"))
    old = ImageHeader.parse(good[: ImageHeader.SIZE]).replace(svn=SVN - 1)
    body_at = ImageHeader.SIZE
    body = good[body_at : body_at + old.body_size]
    for name, image in (
        ("one bit changed", good[:body_at] + bytes([good[body_at] ^ 1]) + good[body_at + 1 :]),
        ("cut short", good[:-100]),
        ("signed by a stranger", sign_image(old.replace(svn=SVN), body, stranger)),
        ("older than the fused floor", sign_image(old, body, vendor)),
    ):
        _try_boot(act, world, name, image)
    replace_file(world.state.path / "spi" / "sev_firmware.bin", good)
    booted = machine.power_on()
    act.attempt(
        "the vendor's firmware", succeeded=True, answer="accepted, then the x86 boot image: cores released"
    )
    act.fact(
        "processor", f"{machine.profile.name}, C-bit {machine.profile.features.c_bit}, engine {machine.mode}"
    )
    act.fact("firmware", f"API {booted.api}, build {booted.build}, {len(booted.implements)} commands")
    act.fact(
        "SME key",
        f"drawn, in its slot; fingerprint {machine.host_key_fingerprint}, the key itself is nowhere",
    )
    act.who_sees = "Keys live in the memory controller's slots. No register, command or program returns one."
    return act


def _try_boot(act: Act, world: World, name: str, image: bytes) -> None:
    replace_file(world.state.path / "spi" / "sev_firmware.bin", image)
    try:
        world.machine.power_on()
    except MachineOff as refusal:
        act.attempt(f"firmware {name}", succeeded=False, answer=f"the machine stays off: {refusal}")
    else:
        act.attempt(f"firmware {name}", succeeded=True, answer="it runs")


def sme(world: World) -> Act:
    """The host marks pages; DRAM holds ciphertext; the reset changes the key."""
    act = Act(2, "SME: the host marks pages with the C-bit")
    machine, host = world.machine, Host(world.machine)
    clear, marked = host.frames.take_page(), host.frames.take_page()
    host.write(clear, PLAIN_PAGE)
    host.write(marked, PLAIN_PAGE, c=True)
    act.fact("WBINVD", f"{machine.wbinvd_on_all_cores()} pages written back from the caches to DRAM")
    act.show("the page with C=0, on the DRAM bus", machine.probe.read(clear, PAGE))
    act.show("the same text with C=1, on the DRAM bus", machine.probe.read(marked, PAGE))
    act.show("the host through its C=1 mapping", host.read(marked, PAGE, c=True))
    c_bit = machine.profile.features.c_bit
    device = machine.dma_port()
    act.show("a device, C-bit not driven", device.read(marked, PAGE))
    act.show("a device that drives the C-bit", device.read(marked | 1 << c_bit, PAGE))
    before = machine.probe.read(marked, PAGE)
    fingerprint = machine.host_key_fingerprint
    machine.reset()
    act.fact("reset", f"SME key {fingerprint} is gone, {machine.host_key_fingerprint} is drawn")
    act.fact("DRAM over the reset", "unchanged" if machine.probe.read(marked, PAGE) == before else "changed")
    act.show("C=1 after the reset", Host(machine).read(marked, PAGE, c=True))
    _tsme(act, world)
    act.who_sees = (
        "SME stops who holds the memory in hand: bus probe, cold boot. It does not stop who stands above the engine: "
        "an administrator with a C=1 mapping, or a device that drives the C-bit."
    )
    return act


def _tsme(act: Act, world: World) -> None:
    """TSME: the BIOS turns it on and the OS need not know."""
    path = world.state.path / "spi" / "x86_boot.bin"
    usual = world.state.read("spi/x86_boot.bin")
    vendor = load_vendor_key(world.state.read("manufacturer/vendor.pem"))
    replace_file(path, x86_boot_image(vendor, BiosSettings(tsme=1), svn=SVN))
    world.machine.reset()
    host = Host(world.machine)
    page = host.frames.take_page()
    host.write(page, PLAIN_PAGE)
    world.machine.wbinvd_on_all_cores()
    act.show("TSME: a page written with C=0, on the DRAM bus", world.machine.probe.read(page, PAGE))
    replace_file(path, usual)
    world.machine.reset()


def platform(world: World) -> Act:
    """INIT, the certificate chain, and who owns the platform."""
    act = Act(3, "SEV platform: INIT and the certificate chain")
    world.host = host = Host(world.machine)
    host.initialise()
    act.fact("platform", _status(host))
    ark = AmdCert.parse(world.state.read("certs/ark.cert"))
    world.tenant = Tenant(
        image=world.image.data,
        policy=int(Policy.NODBG),
        vendor_certs=(world.state.read("certs/cek.cert"), world.state.read("certs/ask_ark.cert")),
        trust=ark,
    )
    chain = world.tenant.chain(host.export_chain())
    try:
        verify_chain(chain)
    except Untrusted as refusal:
        act.attempt("verify, trusting AMD's roots only", succeeded=False, answer=refusal)
    inspection = inspect(chain, trust=[ark])
    for signature in inspection.signatures:
        act.fact("signature", signature)
    act.fact("root", describe_root(inspection.root))
    act.fact("owner", inspection.ownership)
    _take_ownership(act, world)
    act.who_sees = (
        "Certificates are public. The private halves are in the secure processor, sealed in its NV store."
    )
    return act


def _take_ownership(act: Act, world: World) -> None:
    """An organisation signs the platform's PEK with its own OCA and imports both."""
    host, organisation = world.host, ec.random_key(world.entropy)
    with host.room(CERT_SIZE) as page:
        host.ccp.call(Command.PEK_CSR, buffers.PekCsr(paddr=page, length=CERT_SIZE))
        csr = SevCert.parse(host.read(page, CERT_SIZE))
    api = world.machine.profile.api
    unsigned = sev_cert.build(usage=Usage.OCA, algo=Algo.ECDSA_SHA256, key=organisation.public_key(), api=api)
    oca = sev_cert.sign(unsigned, slot=1, signer=organisation, usage=Usage.OCA)
    pek = sev_cert.sign(csr, slot=1, signer=organisation, usage=Usage.OCA)
    with host.lent(bytes(pek)) as pek_at, host.lent(bytes(oca)) as oca_at:
        request = buffers.PekCertImport(
            pek_paddr=pek_at, pek_len=CERT_SIZE, oca_paddr=oca_at, oca_len=CERT_SIZE
        )
        host.ccp.call(Command.PEK_CERT_IMPORT, request)
    world.tenant.verify(host.export_chain())
    act.attempt(
        "an organisation takes ownership (PEK_CSR, PEK_CERT_IMPORT)", succeeded=True, answer=_status(host)
    )


def _status(host: Host) -> str:
    status = host.status()
    owner = "an organisation" if status.owner & 1 else "itself"
    return f"state {PlatformState(status.state).name}, API {status.api_major}.{status.api_minor} build {status.build}, owned by {owner}"


def session(world: World) -> Act:
    """The owner's session: carried by the hypervisor, opened by the secure processor."""
    act = Act(4, "The guest owner makes a session for this secure processor")
    world.session = world.tenant.open_session(world.host.export_chain(), world.entropy)
    assert world.session.session is not None
    blob = bytes(world.session.session.blob)
    act.fact("policy", GuestPolicy.parse(world.tenant.policy))
    keys = world.session.keys
    act.fact("fingerprints", f"TEK {keys.tek.fingerprint()}, TIK {keys.tik.fingerprint()}")
    act.show("launch_blob.bin, as the hypervisor carries it", blob)
    carried = blob + bytes(world.session.session.godh)
    leaked = any(key.material() in carried for key in (keys.tek, keys.tik))
    act.attempt(
        "hypervisor looks for TEK or TIK in what it carries",
        succeeded=leaked,
        answer=f"{len(carried)} bytes searched",
    )
    act.who_sees = (
        "Owner and secure processor share TEK and TIK. The hypervisor carries them and cannot read them."
    )
    return act


def launch(world: World) -> Act:
    """LAUNCH_START, ACTIVATE, LAUNCH_UPDATE_DATA: the image is encrypted where it lies."""
    act = Act(5, "Launch: the image is measured and encrypted in place")
    host, made = world.host, world.session.session
    assert made is not None
    act.fact("firmware", f"{world.image.name}: {len(world.image.data):#x} bytes, {world.image.origin}")
    vm = Vm(host, Protection.SEV)
    world.firmware = region = vm.load_firmware(world.image.data)
    vm.add_memory(RAM_BASE, RAM_SIZE)
    at, size = vm.spa(region.gpa), region.size
    act.fact("place", f"guest-physical {region.gpa:#x}, system-physical {at:#x}")
    host.machine.wbinvd_on_all_cores()
    before = host.read(at, size)
    page = _busiest(before)
    act.show("the hypervisor reads, before", before[page : page + PAGE])
    try:
        SevGuest.start(vm, policy=0, godh=bytes(made.godh), session=bytes(made.blob))
    except FirmwareError as refusal:
        act.attempt(
            "hypervisor launches with policy 0x0 (debugging allowed)", succeeded=False, answer=refusal
        )
    policy = world.tenant.policy
    world.guest = SevGuest.start(vm, policy=policy, godh=bytes(made.godh), session=bytes(made.blob))
    act.fact("LAUNCH_START, ACTIVATE", f"handle {world.guest.handle}, ASID {world.guest.asid}")
    world.guest.update(region.gpa, size)
    after = host.read(at, size)
    act.show("the hypervisor reads the same place, after", after[page : page + PAGE])
    act.items.append(Picture("the image in DRAM, one character a page", entropies(before), entropies(after)))
    try:
        Vcpu(vm, asid=world.guest.asid, sev=True).run()
    except VmexitInvalid as refusal:
        act.attempt("VMRUN before LAUNCH_FINISH", succeeded=False, answer=refusal)
    act.who_sees = (
        "The hypervisor wrote the image and now reads ciphertext. Only this ASID's key gives the image back."
    )
    return act


def _busiest(image: bytes) -> int:
    """Offset of the first page with structure in it, so that there is something to look at."""
    for offset, bits in enumerate(entropies(image)):
        if 2 < bits < 6:
            return offset * PAGE
    return 0


def receipt(world: World) -> Act:
    """LAUNCH_MEASURE, the owner's comparison, the sealed secret."""
    act = Act(6, "The launch receipt, and the secret that is sealed for it")
    expected = expect_sev(world.tenant.image)
    act.fact("owner expects digest", expected.digest.hex())
    taken = world.guest.measure()
    act.fact("platform measured", taken.measure.hex())
    world.trusted = world.tenant.check(world.session, taken)
    act.attempt(
        "owner compares with its own copy of the image",
        succeeded=True,
        answer="it is the same image and policy",
    )
    altered = expect_sev(flip_one_bit(world.tenant.image))
    try:
        world.session.check(taken.blob, altered, api=taken.api, build=taken.build)
    except BadMeasurement as refusal:
        act.attempt("the same check with one bit of the image changed", succeeded=False, answer=refusal)
    area = firmware_table.parse(world.image.data).secret_area
    world.place = Gpa(area.base) if area else world.secret_gpa
    act.fact("secret area", _area(area, world.place))
    plaintext = secrets.table_of([(DISK_PASSPHRASE, world.secret)])
    header, payload = world.trusted.seal(plaintext, entropy=world.entropy)
    try:
        world.guest.inject(world.place, header, flip_one_bit(payload))
    except FirmwareError as refusal:
        act.attempt("hypervisor changes one bit of the sealed packet", succeeded=False, answer=refusal)
    world.guest.inject(world.place, header, payload)
    world.guest.finish()
    spa = world.guest.vm.spa(world.place)
    act.show("the secret in DRAM", world.host.read(spa, len(plaintext)))
    with Vcpu(world.guest.vm, asid=world.guest.asid, sev=True).run() as view:
        seen = view.read(Gva(world.place), len(plaintext))
    act.show("the secret as the guest reads it", seen)
    _search_everywhere(act, world)
    act.who_sees = "The secret exists at the owner's, in the secure processor for a moment, and in the guest's private memory."
    return act


def _search_everywhere(act: Act, world: World) -> None:
    """Look for the secret in all of DRAM; the lab shows that the search can find it."""
    machine, size = world.machine, world.machine.memory_size
    act.fact("WBINVD before the dump", f"{machine.wbinvd_on_all_cores()} pages written back")
    dump = machine.probe.read(Spa(0), size)
    searched = f"{size // MIB} MiB searched"
    act.attempt("search a dump of DRAM for the secret", succeeded=world.secret in dump, answer=searched)
    # Positive control: without it, a search that finds nothing would prove nothing.  Only the lab has this power.
    opened = machine.controller.read(Spa(0), size, guest_key_id(world.guest.asid))
    act.attempt(
        "the same search through the guest's key slot", succeeded=world.secret in opened, answer=searched
    )


def _area(area: firmware_table.Area, place: Gpa) -> str:
    if area:
        return f"announced by the image: {area.base:#x}, {area.size:#x} bytes"
    return f"the image announces none (0/0): injected at {place:#x}, which the owner named"


def run_guest(world: World) -> Act:
    """What the guest's CPU would see: this version walks and decrypts, and executes nothing."""
    act = Act(7, "Run: not in this version")
    page = _busiest(world.image.data)
    with Vcpu(world.guest.vm, asid=world.guest.asid, sev=True).run() as view:
        text = view.read(Gva(world.firmware.gpa + page), PAGE)
        fetched = view.fetch(Gva(4 * GIB - 16), 16)
    act.fact(
        "VMRUN",
        f"accepted for ASID {world.guest.asid}; both levels of page tables are walked, nothing is executed",
    )
    act.show("the guest reads its image, paging off", text)
    act.show("the guest's CPU fetches at the reset vector", fetched)
    act.fact("is it the image's last 16 bytes?", "yes" if fetched == world.image.data[-16:] else "no")
    act.who_sees = "The image was launched, not executed: execution of guests comes with the CPU engine."
    return act


ACTS: Final[tuple[Callable[[World], Act], ...]] = (
    power_on,
    sme,
    platform,
    session,
    launch,
    receipt,
    run_guest,
)


def acts() -> Iterator[Callable[[World], Act]]:
    """All acts, in order."""
    from cbit.cli.demo.guests import many_guests, the_end

    yield from (*ACTS, many_guests, the_end)
