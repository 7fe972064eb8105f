"""/dev/sev: what each command does; what a refusal says (errno, error field, reason) and leaves as it was."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbit.crypto import sev_cert
from cbit.driver.sev_ioctl import ALLOCATION_MAX, ROWS, Opening
from cbit.driver.sev_structs import (
    BLOB_MAX,
    SEV_ISSUE_CMD,
    IssueCmd,
    SevCommand,
    UserGetId,
    UserGetId2,
    UserPdhCertExport,
    UserPekCertImport,
    UserPekCsr,
    UserStatus,
)
from cbit.owner.verify.chain import chain_of
from cbit.spec.certificate import CERT_SIZE, CHAIN_SIZE, SevCert
from cbit.spec.command import Command
from cbit.spec.status import Status
from driver.conftest import BASE, BLOB_A, BLOB_B, SIZE, UNTOUCHED, Caller, a_device
from secure_processor.import_faults import Organisation
from secure_processor.worlds import FIRST, Chips, World, flipped

C = SevCommand
OWNED, ES = 1 << 0, 1 << 8
EXPORT = UserPdhCertExport(pdh_address=BLOB_A, pdh_len=CERT_SIZE, chain_address=BLOB_B, chain_len=CHAIN_SIZE)
CSR = UserPekCsr(address=BLOB_A, length=CERT_SIZE)
IMPORT = UserPekCertImport(pek_address=BLOB_A, pek_len=1, oca_address=BLOB_B, oca_len=1)
REQUESTS = {C.PEK_CSR: CSR, C.PDH_CERT_EXPORT: EXPORT, C.GET_ID2: UserGetId2(address=BLOB_A, length=64)}
WRITERS = [command for command in C if ROWS[command].write]


def status(caller: Caller) -> UserStatus:
    said, error, answer = caller.give(C.PLATFORM_STATUS, UserStatus())
    assert ("ok", Status.SUCCESS) == (said, error)
    return answer


def export(caller: Caller) -> bytes:
    assert ("ok", Status.SUCCESS, EXPORT) == caller.give(C.PDH_CERT_EXPORT, EXPORT)
    return caller.read(BLOB_A, CERT_SIZE) + caller.read(BLOB_B, CHAIN_SIZE)


def take_over(caller: Caller, organisation: Organisation) -> tuple[SevCert, UserPekCertImport]:
    """Let the organisation sign the CSR, and lay the import out; returns the signed PEK too."""
    assert ("ok", Status.SUCCESS, CSR) == caller.give(C.PEK_CSR, CSR)
    pek = organisation.sign(SevCert.parse(caller.read(BLOB_A, CERT_SIZE)))
    caller.write(BLOB_A, bytes(pek))
    caller.write(BLOB_B, bytes(organisation.oca))
    return pek, UserPekCertImport(
        pek_address=BLOB_A, pek_len=CERT_SIZE, oca_address=BLOB_B, oca_len=CERT_SIZE
    )


# what each command does


def test_status_is_told_before_and_after_init(caller: Caller, world: World) -> None:
    there = world.desk.platform()
    before = status(caller)
    assert (there.api_major, there.api_minor, there.build) == (
        before.api_major,
        before.api_minor,
        before.build,
    )
    assert (0, 0, 0) == (before.state, before.flags, before.guest_count)
    export(caller)
    assert before.replace(state=1, flags=ES) == status(caller)
    world.start()
    assert before.replace(state=2, flags=ES, guest_count=1) == status(caller)


def test_without_a_trusted_region_init_leaves_es_off(world: World) -> None:
    caller = Caller(a_device(world, es=False))
    export(caller)
    assert (1, 0) == (status(caller).state, status(caller).flags)


@pytest.mark.parametrize("command", [C.PEK_GEN, C.PEK_CSR, C.PDH_GEN, C.PDH_CERT_EXPORT])
def test_a_command_that_needs_it_initialises_the_platform_and_cleans_the_asids(
    caller: Caller, world: World, command: SevCommand
) -> None:
    with world.trace.recorded() as events:
        if command in REQUESTS:
            assert ("ok", 0) == caller.give(command, REQUESTS[command])[:2]
        else:
            assert ("ok", 0) == caller.issue(command)
    firmware = [event.what for event in events if event.part == "secure_processor"]
    init, flush = firmware.index("INIT"), firmware.index("DF_FLUSH")
    assert init < flush < len(firmware) - 1
    assert 1 == status(caller).state
    with world.trace.recorded() as events:
        export(caller)
    world.activate(world.start(), FIRST)  # DFFLUSH_REQUIRED while the ASID is dirty
    assert "INIT" not in [event.what for event in events]


def test_an_exported_chain_hangs_together(caller: Caller, world: World) -> None:
    chain = chain_of(export(caller), source="exported", ca=[world.folder / "certs/ask_ark.cert"])
    pdh, pek, oca = (piece.sev() for piece in (chain.pdh, chain.pek, chain.oca))
    sev_cert.verify(oca, oca)
    sev_cert.verify(pek, oca)
    sev_cert.verify(pdh, pek)
    with pytest.raises(Exception, match="signature"):
        sev_cert.verify(SevCert.parse(flipped(bytes(pdh), 8 * 0x20), canonical=False), pek)


def test_pdh_gen_makes_another_pdh_and_pek_gen_another_identity(caller: Caller) -> None:
    first = export(caller)
    assert ("ok", 0) == caller.issue(C.PDH_GEN)
    second = export(caller)
    assert first[:CERT_SIZE] != second[:CERT_SIZE]
    assert first[CERT_SIZE:] == second[CERT_SIZE:]
    assert ("ok", 0) == caller.issue(C.PEK_GEN)
    third = export(caller)
    assert second[CERT_SIZE : 2 * CERT_SIZE] != third[CERT_SIZE : 2 * CERT_SIZE]
    assert second[-CERT_SIZE:] == third[-CERT_SIZE:], "the chip's own certificate stays"


def test_an_organisation_takes_the_platform_over_and_a_reset_gives_it_back(
    caller: Caller, world: World
) -> None:
    organisation = Organisation()
    pek, request = take_over(caller, organisation)
    assert sev_cert.without_signatures(pek) != pek
    assert ("ok", 0) == caller.give(C.PEK_CERT_IMPORT, request)[:2]
    assert ES | OWNED == status(caller).flags
    owned = export(caller)
    assert bytes(organisation.oca) == owned[2 * CERT_SIZE : 3 * CERT_SIZE]
    assert ("EIO", Status.ALREADY_OWNED) == caller.give(C.PEK_CERT_IMPORT, request)[:2]
    assert ("ok", 0) == caller.issue(C.FACTORY_RESET)
    assert (0, 0) == (status(caller).state, status(caller).flags)
    assert owned[:-CERT_SIZE] != export(caller)[:-CERT_SIZE]
    assert ES == status(caller).flags


def test_factory_reset_needs_no_init(caller: Caller, world: World) -> None:
    with world.trace.recorded() as events:
        assert ("ok", 0) == caller.issue(C.FACTORY_RESET)
    assert "SHUTDOWN" not in [event.what for event in events]
    assert 0 == status(caller).state


def test_the_chips_id_is_the_same_by_both_commands(caller: Caller, world: World) -> None:
    caller.write(BLOB_B, bytes(UserGetId(socket2=b"\xcd" * 64)))
    assert ("ok", 0) == caller.issue(C.GET_ID, BLOB_B)
    both = UserGetId.parse(caller.read(BLOB_B, UserGetId.SIZE))
    assert b"\xcd" * 64 == both.socket2, "there is no second socket"
    asked = UserGetId2(address=BLOB_A, length=BLOB_MAX)
    assert ("ok", 0, asked.replace(length=64)) == caller.give(C.GET_ID2, asked)
    assert both.socket1 == caller.read(BLOB_A, 64) == world.state.fuses().chip_id()
    assert bytes([UNTOUCHED]) == caller.read(BLOB_A + 64, 1)
    assert 0 == status(caller).state, "an id needs no INIT"


# what is asked for and what is too short


@pytest.mark.parametrize("length", [0, 1, CERT_SIZE - 1])
@pytest.mark.parametrize("address", [0, BLOB_A])
def test_a_csr_says_how_long_it_is(caller: Caller, refused: list[str], address: int, length: int) -> None:
    said = caller.give(C.PEK_CSR, UserPekCsr(address=address, length=length))
    assert ("EIO", Status.INVALID_LENGTH, UserPekCsr(address=address, length=CERT_SIZE)) == said
    assert bytes([UNTOUCHED]) * CERT_SIZE == caller.read(BLOB_A, CERT_SIZE)
    assert refused[-1].startswith("PEK_CSR: INVALID_LENGTH (0x0004): length ")


@pytest.mark.parametrize(
    "changes",
    [
        {"pdh_address": 0},
        {"pdh_len": 0},
        {"pdh_len": CERT_SIZE - 1},
        {"chain_address": 0},
        {"chain_len": 0},
        {"chain_len": CHAIN_SIZE - 1},
        {"pdh_address": 0, "pdh_len": 0, "chain_address": 0, "chain_len": 0},
    ],
)
def test_an_export_says_how_long_it_is(caller: Caller, changes: dict[str, int]) -> None:
    asked = EXPORT.replace(**changes)
    said = caller.give(C.PDH_CERT_EXPORT, asked)
    assert ("EIO", Status.INVALID_LENGTH) == said[:2]
    assert asked.replace(pdh_len=CERT_SIZE, chain_len=CHAIN_SIZE) == said[2]
    assert bytes([UNTOUCHED]) == caller.read(BLOB_A, 1) == caller.read(BLOB_B, 1)


@pytest.mark.parametrize("length", [0, 63])
@pytest.mark.parametrize("address", [0, BLOB_A])
def test_an_id_says_how_long_it_is(caller: Caller, address: int, length: int) -> None:
    said = caller.give(C.GET_ID2, UserGetId2(address=address, length=length))
    assert ("EIO", Status.INVALID_LENGTH, UserGetId2(address=address, length=64)) == said


@pytest.mark.parametrize(
    ("command", "request_", "name"),
    [
        (C.PEK_CSR, CSR.replace(length=BLOB_MAX + 1), "EFAULT"),
        (C.GET_ID2, UserGetId2(address=BLOB_A, length=ALLOCATION_MAX + 1), "ENOMEM"),
        (C.PEK_CERT_IMPORT, IMPORT.replace(pek_len=BLOB_MAX + 1), "EINVAL"),
        (C.PEK_CERT_IMPORT, IMPORT.replace(pek_address=0), "EINVAL"),
        (C.PEK_CERT_IMPORT, IMPORT.replace(oca_len=0), "EINVAL"),
    ],
)
def test_what_is_too_long_or_missing_never_reaches_the_firmware(
    caller: Caller, refused: list[str], command: SevCommand, request_: UserPekCsr, name: str
) -> None:
    assert (name, UNTOUCHED, request_) == caller.give(command, request_)
    assert refused[0].startswith(f"{command.name}: ")
    assert 0 == status(caller).state, "nothing was initialised for it"


@pytest.mark.parametrize("long", [{"pdh_len": BLOB_MAX + 1}, {"chain_len": 0xFFFFFFFF}], ids=str)
def test_an_export_that_is_too_long_is_refused_after_init(
    caller: Caller, refused: list[str], long: dict[str, int]
) -> None:
    """sev-dev.c: INIT comes before the caller's structure is read, so the error field is INIT's."""
    asked = EXPORT.replace(**long)
    assert ("EFAULT", Status.SUCCESS, asked) == caller.give(C.PDH_CERT_EXPORT, asked)
    assert refused[0].startswith("PDH_CERT_EXPORT: length ")
    assert 1 == status(caller).state
    assert ("EFAULT", UNTOUCHED, asked) == caller.give(C.PDH_CERT_EXPORT, asked)


@pytest.mark.parametrize("missing", ["pdh_address", "pdh_len", "chain_address"])
@pytest.mark.parametrize("length", [BLOB_MAX + 1, 0xFFFFFFFF])
def test_an_export_that_asks_for_lengths_has_no_limit(caller: Caller, missing: str, length: int) -> None:
    """sev-dev.c: without either address or the PDH's length nothing is copied, whatever else is said."""
    asked = EXPORT.replace(pdh_len=length, chain_len=length).replace(**{missing: 0})
    lengths = asked.replace(pdh_len=CERT_SIZE, chain_len=CHAIN_SIZE)
    assert ("EIO", Status.INVALID_LENGTH, lengths) == caller.give(C.PDH_CERT_EXPORT, asked)


def test_the_limit_itself_is_allowed(caller: Caller) -> None:
    asked = CSR.replace(length=BLOB_MAX)
    assert ("ok", 0, CSR) == caller.give(C.PEK_CSR, asked)
    longest = UserGetId2(address=BLOB_A, length=ALLOCATION_MAX)  # an id has no limit of its own
    assert ("ok", 0, longest.replace(length=64)) == caller.give(C.GET_ID2, longest)


# what is refused


@pytest.mark.parametrize("command", [13, 14, 99, 1 << 31, 0xFFFFFFFF])
def test_a_command_out_of_range(caller: Caller, refused: list[str], command: int) -> None:
    assert ("EINVAL", UNTOUCHED) == caller.issue(command)
    assert [f"SEV_ISSUE_CMD: command {command} is out of range"] == refused


def test_another_request_is_not_for_this_device(caller: Caller) -> None:
    with pytest.raises(OSError, match="not SEV_ISSUE_CMD") as refusal:
        caller.device.ioctl(caller.opening, SEV_ISSUE_CMD + 1, BASE, caller)
    assert errno.ENOTTY == refusal.value.errno


@pytest.mark.parametrize("command", WRITERS)
def test_who_may_not_write_may_not_change_the_platform(
    world: World, refused: list[str], command: SevCommand
) -> None:
    before = world.snapshot()
    caller = Caller(a_device(world), writable=False)
    assert ("EPERM", UNTOUCHED) == caller.issue(command, BASE + 0x100)
    assert [f"{command.name}: the device is not open for writing"] == refused
    assert before == world.snapshot()


def test_the_commands_for_writers_are_those_of_the_paper() -> None:
    assert {C.FACTORY_RESET, C.PEK_GEN, C.PEK_CSR, C.PDH_GEN, C.PEK_CERT_IMPORT} == set(WRITERS)
    assert set(C) == set(ROWS)


@pytest.mark.parametrize("command", [C.SNP_SET_CONFIG, C.SNP_VLEK_LOAD])
def test_that_there_is_no_snp_is_found_before_write_access(world: World, command: SevCommand) -> None:
    """Both need it by the paper; sev-dev.c looks first whether SNP is initialised."""
    assert ("EINVAL", UNTOUCHED) == Caller(a_device(world), writable=False).issue(command, BASE + 0x100)


def test_an_export_needs_write_access_for_init_alone(world: World) -> None:
    device = a_device(world)
    reader, writer = Caller(device, writable=False), Caller(device)
    assert "EPERM" == reader.give(C.PDH_CERT_EXPORT, EXPORT)[0]
    assert 0 == status(reader).state
    assert export(writer) == export(reader)
    assert Opening() == writer.opening


def test_a_platform_with_guests_is_not_reset(caller: Caller, world: World, refused: list[str]) -> None:
    chain = export(caller)
    world.start()
    assert ("EBUSY", Status.SUCCESS) == caller.issue(C.FACTORY_RESET)
    assert ["FACTORY_RESET: the platform is WORKING: guests exist"] == refused
    assert ("EIO", Status.INVALID_PLATFORM_STATE) == caller.issue(C.PEK_GEN)
    assert refused[-1].endswith("the platform is WORKING, needs INIT")
    assert (2, 1) == (status(caller).state, status(caller).guest_count)
    assert chain == export(caller)
    assert ("ok", 0) == caller.issue(C.PDH_GEN)


def test_certificates_of_a_stranger_are_not_imported(caller: Caller, refused: list[str]) -> None:
    organisation = Organisation()
    pek, request = take_over(caller, organisation)
    caller.write(BLOB_A, flipped(bytes(pek), 8 * 0x41C))
    assert ("EIO", Status.BAD_SIGNATURE) == caller.give(C.PEK_CERT_IMPORT, request)[:2]
    caller.write(BLOB_A, bytes(pek))
    short = request.replace(oca_len=CERT_SIZE - 1)
    assert ("EIO", Status.INVALID_LENGTH) == caller.give(C.PEK_CERT_IMPORT, short)[:2]
    assert ["BAD_SIGNATURE", "INVALID_LENGTH"] == [why.split()[1] for why in refused]
    assert ES == status(caller).flags
    assert ("ok", 0) == caller.give(C.PEK_CERT_IMPORT, request)[:2]


@pytest.mark.parametrize("command", [command for command in C if command >= C.SNP_PLATFORM_STATUS])
def test_a_platform_without_snp_is_not_asked_for_it(
    caller: Caller, world: World, refused: list[str], command: SevCommand
) -> None:
    before = status(caller)
    with world.trace.recorded() as events:
        assert ("EINVAL", UNTOUCHED) == caller.issue(command, BASE + 0x100)
    assert [f"{command.name}: SNP is not initialised: this platform has none"] == refused
    assert "secure_processor" not in [event.part for event in events]
    assert before == status(caller)


def test_a_damaged_store_is_told_of_and_the_second_init_succeeds(
    caller: Caller, world: World, refused: list[str]
) -> None:
    export(caller)
    world.desk.do(Command.SHUTDOWN)
    world.nv.write_bytes(world.nv.read_bytes()[:-1])
    assert ("ok", 0) == caller.issue(C.PDH_GEN)
    (told,) = refused
    assert told.startswith("INIT: SECURE_DATA_INVALID")
    assert 1 == status(caller).state


def test_a_store_that_cannot_be_read_is_an_error_of_init(
    caller: Caller, world: World, refused: list[str]
) -> None:
    world.nv.mkdir()
    assert ("EIO", Status.HWERROR_PLATFORM) == caller.issue(C.PEK_GEN)
    assert refused[0].startswith("PEK_GEN: INIT: HWERROR_PLATFORM")
    assert 0 == status(caller).state


def test_a_silent_mailbox_is_no_firmware_error(caller: Caller, world: World, refused: list[str]) -> None:
    world.machine.power_off()
    assert ("ETIMEDOUT", UNTOUCHED) == caller.status()
    assert "is the machine on" in refused[0]
    world.machine.power_on()
    assert ("ok", 0) == caller.status()


# the caller's memory

NOWHERE = (0, 8, BASE - 4, BASE + SIZE - 4, BASE + SIZE, (1 << 64) - 4)


@pytest.mark.parametrize("address", NOWHERE)
def test_a_bad_argument(caller: Caller, refused: list[str], address: int) -> None:
    with pytest.raises(OSError, match="no such memory") as fault:
        caller.device.ioctl(caller.opening, SEV_ISSUE_CMD, address, caller)
    assert errno.EFAULT == fault.value.errno
    assert ["SEV_ISSUE_CMD: no such memory"] == refused


@pytest.mark.parametrize("address", NOWHERE)
@pytest.mark.parametrize(
    "command", [C.PLATFORM_STATUS, C.PEK_CSR, C.PDH_CERT_EXPORT, C.PEK_CERT_IMPORT, C.GET_ID, C.GET_ID2]
)
def test_a_bad_pointer_to_the_structure(caller: Caller, command: SevCommand, address: int) -> None:
    assert "EFAULT" == caller.issue(command, address)[0]
    initialised = command == C.PDH_CERT_EXPORT  # which alone does that first (sev-dev.c)
    assert int(initialised) == status(caller).state


@pytest.mark.parametrize("address", NOWHERE[1:])
def test_a_bad_pointer_in_the_structure(caller: Caller, address: int) -> None:
    assert "EFAULT" == caller.give(C.PEK_CSR, CSR.replace(address=address))[0]
    assert "EFAULT" == caller.give(C.PDH_CERT_EXPORT, EXPORT.replace(chain_address=address))[0]
    assert "EFAULT" == caller.give(C.GET_ID2, UserGetId2(address=address, length=64))[0]
    _, request = take_over(caller, Organisation())
    assert "EFAULT" == caller.give(C.PEK_CERT_IMPORT, request.replace(oca_address=address))[0]
    assert ES == status(caller).flags


def test_memory_that_may_not_be_written(caller: Caller) -> None:
    caller.read_only = range(BLOB_A, BLOB_A + 0x1000)
    assert ("EFAULT", Status.SUCCESS) == caller.issue(C.PLATFORM_STATUS, BLOB_A)
    assert "EFAULT" == caller.give(C.PEK_CSR, CSR)[0]


def test_an_argument_that_may_not_be_written_is_a_fault_whatever_the_command_did(caller: Caller) -> None:
    at = BASE + 0x4000
    caller.write(at, bytes(IssueCmd(cmd=C.PDH_GEN)))
    caller.read_only = range(at, at + IssueCmd.SIZE)
    with pytest.raises(OSError, match="may not be written") as fault:
        caller.device.ioctl(caller.opening, SEV_ISSUE_CMD, at, caller)
    assert errno.EFAULT == fault.value.errno
    assert 1 == status(caller).state


# anything at all

POINTERS = st.one_of(
    st.sampled_from([0, BASE, BASE + 0x100, BLOB_A, BLOB_B, BASE + SIZE - 8, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)
LENGTHS = st.one_of(
    st.sampled_from([0, 1, 63, 64, 128, CERT_SIZE, CHAIN_SIZE, BLOB_MAX, BLOB_MAX + 1]),
    st.integers(0, (1 << 32) - 1),
)
STRUCTURES = st.one_of(
    st.builds(lambda a, n: bytes(UserPekCsr(address=a, length=n)), POINTERS, LENGTHS),
    st.builds(
        lambda a, n, b, m: bytes(UserPdhCertExport(pdh_address=a, pdh_len=n, chain_address=b, chain_len=m)),
        *(POINTERS, LENGTHS, POINTERS, LENGTHS),
    ),
    st.binary(max_size=64),
)
ERRNOS = {"ok", "EIO", "EFAULT", "EINVAL", "EPERM"}


@pytest.fixture(scope="module")
def lasting(chips: Chips) -> Iterator[Caller]:
    """One caller of one machine for all examples: whatever they leave behind, it answers."""
    with chips.world() as world:
        yield Caller(a_device(world))


@given(
    command=st.one_of(st.sampled_from(list(C)), st.integers(0, (1 << 32) - 1)),
    data=POINTERS,
    structure=STRUCTURES,
    writable=st.booleans(),
)
def test_whatever_is_asked_an_errno_is_the_answer(
    lasting: Caller, command: int, data: int, structure: bytes, writable: bool
) -> None:
    lasting.opening = Opening(writable=writable)
    lasting.write(BASE + 0x100, structure)
    lasting.write(BASE, bytes(IssueCmd(cmd=command, data=data, error=UNTOUCHED)))
    try:
        assert 0 == lasting.device.ioctl(lasting.opening, SEV_ISSUE_CMD, BASE, lasting)
        said = "ok"
    except OSError as error:
        said = errno.errorcode[error.errno or 0]
    assert said in ERRNOS
    assert ("ok", 0) == lasting.status()


@given(address=POINTERS, request_=st.integers(0, (1 << 32) - 1))
def test_whatever_the_request_and_the_argument(lasting: Caller, address: int, request_: int) -> None:
    found = set()
    for number in (request_, SEV_ISSUE_CMD):
        try:
            lasting.device.ioctl(lasting.opening, number, address, lasting)
        except OSError as error:
            found.add(errno.errorcode[error.errno or 0])
    assert found <= {"ENOTTY", *ERRNOS}
    assert ("ok", 0) == lasting.status()
