"""Acts 5, 6 and 7: the image is encrypted, the owner is convinced, the secret arrives."""

from __future__ import annotations

from cbit.attacks.survey import flip_one_bit
from cbit.attacks.victim import DATA_AT, RAM_BASE, RAM_SIZE, secret_table
from cbit.cli.demo import running
from cbit.cli.demo.act import Act, Picture
from cbit.cli.demo.world import World
from cbit.cli.page_map import RANDOM, entropies
from cbit.cpu.faults import VmexitInvalid
from cbit.driver.errors import FirmwareError
from cbit.hypervisor.host import Protection
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vcpu import Vcpu
from cbit.hypervisor.vm import TOP, Vm, firmware_start
from cbit.owner.measure import expect_sev
from cbit.spec import firmware_table
from cbit.spec.address import BLOCK, MIB, PAGE, Gpa, Gva, Spa
from cbit.spec.errors import BadMeasurement
from cbit.spec.key_id import guest as guest_key_id


def launch(world: World) -> Act:
    """LAUNCH_START, ACTIVATE, LAUNCH_UPDATE_DATA: the image is encrypted where it lies."""
    act = Act(5, "Launch: the image is measured, and encrypted where it lies")
    host, image, made = world.host, world.image.data, world.session.session
    assert made is not None
    act.fact("guest firmware", f"{world.image.name}, {len(image):#x} bytes, {world.image.origin}")
    vm = Vm(host, Protection.SEV)
    region = vm.load_firmware(image)
    vm.add_memory(RAM_BASE, RAM_SIZE)
    at = vm.spa(region.gpa)
    act.fact("where it lies", f"guest-physical {region.gpa:#x}, system-physical {at:#x}")
    before = host.read(at, region.size)
    look = _readable(before)
    act.show("the hypervisor reads it, before", before[look : look + PAGE])
    try:
        SevGuest.start(vm, policy=0, godh=bytes(made.godh), session=bytes(made.blob))
    except FirmwareError as refusal:
        act.attempt(
            "hypervisor starts with policy 0x0, which allows debugging", succeeded=False, answer=refusal
        )
    policy = world.tenant.policy
    world.guest = guest = SevGuest.start(vm, policy=policy, godh=bytes(made.godh), session=bytes(made.blob))
    act.fact("LAUNCH_START, ACTIVATE", f"firmware handle {guest.handle}, ASID {guest.asid}")
    guest.update(firmware_start(image), len(image))
    after = host.read(at, region.size)
    act.show("the hypervisor reads the same bytes, after", after[look : look + PAGE])
    act.items.append(Picture("the image in DRAM, one character a page", entropies(before), entropies(after)))
    try:
        Vcpu(vm).run()
    except VmexitInvalid as refusal:
        act.attempt("VMRUN before LAUNCH_FINISH", succeeded=False, answer=refusal)
    act.who_sees = (
        "The hypervisor wrote the image and now reads ciphertext. Only this ASID's key gives the image back."
    )
    return act


def _readable(image: bytes) -> int:
    """Offset with the most letters behind it, so that there is something to recognise."""
    structured = [page * PAGE for page, bits in enumerate(entropies(image)) if 0 < bits < RANDOM - 1]
    places = [at for page in structured for at in range(page, page + PAGE, BLOCK) if at + PAGE <= len(image)]
    return max(places, key=lambda at: _letters(image[at : at + BLOCK]), default=0)


def _letters(data: bytes) -> int:
    return sum(chr(byte).isalpha() for byte in data if byte < 0x7F)


def receipt(world: World) -> Act:
    """LAUNCH_MEASURE, the owner's comparison, the sealed secret."""
    act = Act(6, "The launch receipt, and the secret that is sealed for this launch alone")
    guest = world.guest
    act.fact("owner: digest of its own copy of the image", expect_sev(world.tenant.image).digest.hex())
    taken = guest.measure()
    act.fact("platform: HMAC over digest, policy, version", taken.measure.hex())
    world.trusted = world.tenant.check(world.session, taken)
    act.attempt("owner computes the same HMAC and compares", succeeded=True, answer="this image, this policy")
    altered = expect_sev(flip_one_bit(world.tenant.image))
    try:
        world.session.check(taken.blob, altered, api=taken.api, build=taken.build)
    except BadMeasurement as refusal:
        act.attempt("the same with one bit of the image changed", succeeded=False, answer=refusal)
    act.fact("where the secret goes", _area(world))
    plaintext = secret_table(world.secret, world.message_key)
    header, payload = world.trusted.seal(plaintext, entropy=world.entropy)
    try:
        guest.inject(world.place, header, flip_one_bit(payload))
    except FirmwareError as refusal:
        act.attempt("hypervisor changes one bit of the sealed secret", succeeded=False, answer=refusal)
    guest.inject(world.place, header, payload)
    guest.finish()
    where = Gpa(world.place + DATA_AT)
    act.show("the secret's first bytes in DRAM", world.host.read(guest.vm.spa(where), 16))
    with Vcpu(guest.vm).run() as view:
        act.show("the same, as the guest reads them", view.read(Gva(where), 16))
    _search_everywhere(act, world)
    act.who_sees = (
        "The secret exists at the owner's, in the secure processor for a moment, and in the guest's private "
        "memory."
    )
    return act


def _search_everywhere(act: Act, world: World) -> None:
    """Look for the secret in all of DRAM; the lab shows that the search can find it."""
    machine, size = world.machine, world.machine.memory_size
    where = f"{size // MIB} MiB of DRAM"
    act.fact("WBINVD before the dump", f"{world.host.flush_caches()} pages written back")
    dump = machine.probe.read(Spa(0), size)
    act.search("somebody searches a dump of DRAM for the secret", found=world.secret in dump, where=where)
    # Positive control, which only the lab has: without it, a search that finds nothing would prove nothing.
    opened = machine.controller.read(Spa(0), size, guest_key_id(world.guest.asid))
    act.search("control: the same search, through the guest's key", found=world.secret in opened, where=where)


def _area(world: World) -> str:
    area = firmware_table.parse(world.image.data).secret_area
    if area:
        return f"{area.base:#x}, {area.size:#x} bytes: announced by the image"
    return f"{world.place:#x}, named by the owner: the image announces no place (0/0)"


def run_guest(world: World) -> Act:
    """The firmware as its own CPU sees it; then the built-in guest executes, if this computer can."""
    if world.executes:
        act = Act(7, "Run: a guest executes, in memory that only it can read")
        _view(act, world)
        act.fact(
            "does it execute?",
            "no: other people's firmware is launched and looked into; cbit's own guest does",
        )
        running.run_guest(act, world)
        return act
    act = Act(7, "Run: the guest's view of its memory (this image is not executed)")
    _view(act, world)
    act.who_sees = f"The image was launched, not executed: {world.no_engine}."
    return act


def _view(act: Act, world: World) -> None:
    """What the guest's CPU would see: a reference model walks and decrypts."""
    image, start = world.image.data, firmware_start(world.image.data)
    look = _readable(image)
    with Vcpu(world.guest.vm).run() as view:
        text = view.read(Gva(start + look), min(PAGE, len(image) - look))
        fetched = view.fetch(Gva(TOP - 16), 16)
    act.fact("VMRUN", f"accepted for ASID {world.guest.asid}; both levels of page tables are walked")
    act.show("the guest reads its image", text)
    act.show("its CPU fetches at the reset vector", fetched)
    act.fact("are these the image's last 16 bytes?", "yes" if fetched == image[-16:] else "no")
