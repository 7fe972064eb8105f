"""The firmware against somebody else's program: the synthetic flows, byte for byte.

The flow's platform keys are put into a firmware of the flow's version, and its nonces into the randomness.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes

from cbit.crypto import ec, sev_cert
from cbit.crypto.entropy import SeededEntropy
from cbit.crypto.memory_modes import Mode, Tweak
from cbit.memory.bus import Bus
from cbit.memory.cache import Cache
from cbit.memory.controller import MemoryController
from cbit.memory.dram import Dram
from cbit.memory.fabric import FabricPort
from cbit.secure_processor.asid_table import AsidTable
from cbit.secure_processor.dispatch import COMMANDS, dispatch
from cbit.secure_processor.firmware import Firmware, Limits, Platform
from cbit.secure_processor.fuses import Fuses
from cbit.secure_processor.identity import Identity, Issuer
from cbit.secure_processor.memory_port import AddressRules, MemoryPort
from cbit.secure_processor.nv_store import NvState, NvStore
from cbit.spec import buffers
from cbit.spec.address import MIB, Spa
from cbit.spec.certificate import CERT_SIZE, EcdsaSignature, SevCert
from cbit.spec.command import Command
from cbit.spec.key_id import UNENCRYPTED
from cbit.spec.key_id import guest as key_of
from cbit.spec.policy import ApiVersion
from cbit.spec.states import GuestState
from cbit.spec.status import Status
from cbit.spec.wire import Wire
from cbit.trace import Trace
from crypto.published import FLOWS, Flow
from secure_processor.worlds import Chips, flipped

SEV, SEV_ES = FLOWS
ASID = 100


class Scripted:
    """Randomness that says what it was told next, and else what a seed says."""

    def __init__(self) -> None:
        self._seeded = SeededEntropy("scripted")
        self.next: list[bytes] = []

    def draw(self, length: int) -> bytes:
        if self.next and len(self.next[0]) == length:
            return self.next.pop(0)
        return self._seeded.draw(length)


class AllDone:
    """Cores that always executed WBINVD."""

    def complexes(self) -> int:
        return 1

    def complex_of(self, apic_id: int) -> int | None:
        return 0

    def wbinvd_done(self, ccx: int) -> bool:
        return True

    def clear_wbinvd_done(self, ccx: int) -> None: ...


class Bench:
    """A firmware with the flow's identity, on a memory system of its own."""

    def __init__(self, flow: Flow, nv: NvStore) -> None:
        values = flow.values
        self.flow, self.entropy = flow, Scripted()
        self.api = ApiVersion(values["api_major"], values["api_minor"])
        self.controller = MemoryController(
            Bus(Dram(MIB)), mode=Mode.XEX, tweak=Tweak.zen1(), entropy=self.entropy
        )
        fabric = FabricPort(Cache(self.controller, capacity=64 * 1024), self.controller)
        self.fabric = fabric
        self.firmware = Firmware(
            api=self.api,
            build=values["build"],
            implements=frozenset(COMMANDS),
            fuses=Fuses.burn(vendor_key_hash=bytes(48), rollback_floor=0, entropy=self.entropy),
            nv=nv,
            memory=MemoryPort(fabric, AddressRules(c_bit=51, dram_size=MIB)),
            cores=AllDone(),
            limits=Limits(max_asid=509, min_sev_asid=ASID, memory_key_bytes=16),
            entropy=self.entropy,
            trace=Trace(),
        )
        pek, oca, _ = flow.chain()
        identity = Identity(
            oca_cert=oca,
            oca_key=flow.key("oca"),
            pek_cert=pek,
            pek_key=flow.key("pek"),
            pdh_cert=SevCert.parse(flow.file("pdh.cert")),
            pdh_key=flow.key("pdh"),
        )
        asids = AsidTable(max_asid=509, min_sev_asid=ASID, cores=AllDone())
        issuer = Issuer(self.api, flow.key("cek"), self.entropy)
        self.firmware.start(Platform(identity, issuer, asids, nv, es=True))
        assert Status.SUCCESS == dispatch(self.firmware, Command.DF_FLUSH, 0)
        self._free = 0x1000

    def put(self, data: bytes) -> Spa:
        at = Spa(self._free)
        self._free += -(-len(data) // 4096) * 4096
        self.fabric.write(at, data, UNENCRYPTED)
        return at

    def read(self, at: int, length: int) -> bytes:
        return self.fabric.read(Spa(at), length, UNENCRYPTED)

    def run(self, command: Command, buffer: Wire) -> int:
        self.buffer_at = self.put(bytes(buffer))
        return dispatch(self.firmware, command, self.buffer_at)

    def start(self, *, godh: bytes, blob: bytes, policy: int) -> int:
        asked = buffers.LaunchStart(
            policy=policy,
            dh_cert_paddr=self.put(godh),
            dh_cert_len=len(godh),
            session_paddr=self.put(blob),
            session_len=len(blob),
        )
        return self.run(Command.LAUNCH_START, asked)

    def launch(self) -> int:
        """LAUNCH_START and ACTIVATE with the flow's own inputs; return the ASID."""
        flow = self.flow
        started = self.start(godh=flow.file("godh.cert"), blob=flow.file("session.bin"), policy=flow.policy)
        assert Status.SUCCESS == started
        asid = 1 if flow.policy & 4 else ASID
        assert Status.SUCCESS == self.run(Command.ACTIVATE, buffers.Activate(handle=1, asid=asid))
        return asid

    def update(self, calls: list[list[int]]) -> Spa:
        data = self.flow.file("launch_data.bin")
        at = self.put(data)
        for offset, length in calls:
            asked = buffers.LaunchUpdateData(handle=1, paddr=at + offset, length=length)
            assert Status.SUCCESS == self.run(Command.LAUNCH_UPDATE_DATA, asked)
        return at

    def measure(self) -> bytes:
        self.entropy.next = [bytes.fromhex(self.flow.values["mnonce"])]
        at = self.put(bytes(0x30))
        asked = buffers.LaunchMeasure(handle=1, measure_paddr=at, measure_len=0x30)
        assert Status.SUCCESS == self.run(Command.LAUNCH_MEASURE, asked)
        return self.read(at, 0x30)

    def secret(self, header: bytes, data: bytes, *, guest_len: int | None = None) -> tuple[int, Spa]:
        target = self.put(bytes(len(data)))
        asked = buffers.LaunchSecret(
            handle=1,
            hdr_paddr=self.put(header),
            hdr_len=len(header),
            guest_paddr=target,
            guest_len=guest_len or len(data),
            trans_paddr=self.put(data),
            trans_len=len(data),
        )
        return self.run(Command.LAUNCH_SECRET, asked), target


@pytest.fixture
def nv(tmp_path_factory: pytest.TempPathFactory) -> NvStore:
    fuses = Fuses.burn(vendor_key_hash=bytes(48), rollback_floor=0, entropy=SeededEntropy("nv"))
    return NvStore(tmp_path_factory.mktemp("nv") / "sev.nv", fuses, SeededEntropy("nv"))


@pytest.fixture
def bench(nv: NvStore) -> Bench:
    return Bench(SEV, nv)


def measured(bench: Bench) -> int:
    asid = bench.launch()
    bench.update(bench.flow.values["launch_update_data_calls"])
    assert bench.flow.file("measure.bin") == bench.measure()
    return asid


# ---- the flow, byte for byte -------------------------------------------------------------------------------


def test_the_measurement_is_theirs(bench: Bench) -> None:
    measured(bench)
    digest = bench.firmware.platform.guests[1].launch_digest
    assert bench.flow.values["launch_digest"] == digest.hex()


@pytest.mark.parametrize(
    "calls", [[[0, 12288]], [[0, 16], [16, 12272]], [[n, 4096] for n in (0, 4096, 8192)]]
)
def test_the_measurement_does_not_see_how_the_data_was_split(bench: Bench, calls: list[list[int]]) -> None:
    bench.launch()
    assert 12288 == len(bench.flow.file("launch_data.bin"))
    bench.update(calls)
    assert bench.flow.file("measure.bin") == bench.measure()


def test_the_data_lies_in_memory_under_the_guests_key(bench: Bench) -> None:
    asid = bench.launch()
    data = bench.flow.file("launch_data.bin")
    at = bench.update(bench.flow.values["launch_update_data_calls"])
    assert data == bench.controller.read(at, len(data), key_of(asid))
    assert data[:64] != bench.read(at, 64)


def test_their_secret_is_accepted_and_arrives(bench: Bench) -> None:
    asid = measured(bench)
    file = bench.flow.file
    status, target = bench.secret(file("secret_hdr.bin"), file("secret_trans.bin"))
    assert Status.SUCCESS == status
    plain = file("secret_plain.bin")
    assert plain == bench.controller.read(target, len(plain), key_of(asid))
    assert plain != bench.read(target, len(plain))


def test_the_attestation_report_says_and_signs_what_theirs_does(bench: Bench) -> None:
    measured(bench)
    theirs, at = bench.flow.file("attestation_report.bin"), bench.put(bytes(0xD0))
    mnonce = bytes.fromhex(bench.flow.values["attestation_mnonce"])
    asked = buffers.Attestation(handle=1, paddr=at, mnonce=mnonce, length=0xD0)
    assert Status.SUCCESS == bench.run(Command.ATTESTATION, asked)
    ours = bench.read(at, 0xD0)
    assert theirs[:0x40] == ours[:0x40]
    pek = sev_cert.public_key(bench.flow.chain()[0])
    for report in (ours, theirs):
        signature = EcdsaSignature.parse(report[0x40:].ljust(512, b"\0"))
        ec.verify(pek, signature, report[:0x34], hashes.SHA256())


def test_the_csr_and_the_exported_chain_are_theirs(bench: Bench) -> None:
    at = bench.put(bytes(CERT_SIZE))
    assert Status.SUCCESS == bench.run(Command.PEK_CSR, buffers.PekCsr(paddr=at, length=CERT_SIZE))
    assert bench.flow.file("pek_csr.cert") == bench.read(at, CERT_SIZE)
    pdh, chain = bench.put(bytes(CERT_SIZE)), bench.put(bytes(3 * CERT_SIZE))
    asked = buffers.PdhCertExport(
        pdh_paddr=pdh, pdh_len=CERT_SIZE, certs_paddr=chain, certs_len=3 * CERT_SIZE
    )
    assert Status.SUCCESS == bench.run(Command.PDH_CERT_EXPORT, asked)
    assert bench.flow.file("pdh.cert") == bench.read(pdh, CERT_SIZE)
    assert bench.flow.file("cert_chain_pek_oca_cek.bin") == bench.read(chain, 3 * CERT_SIZE)


def test_the_es_flows_session_opens_and_its_data_has_their_digest(nv: NvStore) -> None:
    """Its measurement covers a VMSA too; what comes before that is compared."""
    bench = Bench(SEV_ES, nv)
    bench.launch()
    transport = bench.firmware.platform.guests[1].transport
    assert transport is not None
    values = bench.flow.values
    assert (values["tek"], values["tik"]) == (transport.tek.material().hex(), transport.tik.material().hex())


def receiver_takes_the_place(bench: Bench) -> None:
    """Let the bench be the flow's receiver: of it, the flow has the PDH alone."""
    platform = bench.firmware.platform
    platform.identity = replace(
        platform.identity,
        pdh_key=bench.flow.key("receiver_pdh"),
        pdh_cert=SevCert.parse(bench.flow.file("receiver_pdh.cert")),
    )


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_what_we_send_is_theirs_byte_for_byte(nv: NvStore, flow: Flow) -> None:
    bench, send = Bench(flow, nv), flow.values["send"]
    asid = bench.launch()
    bench.firmware.set_guest_state(bench.firmware.platform.guests[1], GuestState.RUNNING)
    bench.entropy.next = [bytes.fromhex(send[name]) for name in ("tek", "tik", "nonce", "wrap_iv")]
    session = bench.put(bytes(0x80))
    asked: Wire = buffers.SendStart(
        handle=1,
        pdh_cert_paddr=bench.put(flow.file("receiver_pdh.cert")),
        pdh_cert_len=CERT_SIZE,
        session_paddr=session,
        session_len=0x80,
    )
    assert Status.SUCCESS == bench.run(Command.SEND_START, asked)
    assert flow.file("send_session.bin") == bench.read(session, 0x80)
    assert flow.policy == buffers.SendStart.parse(bench.read(bench.buffer_at, 0x44)).policy
    plain, header, data = flow.file("send_page_plain.bin"), bench.put(bytes(0x34)), bench.put(bytes(4096))
    page = bench.put(bytes(4096))
    bench.fabric.write(page, plain, key_of(asid))
    bench.entropy.next = [flow.file("send_page_hdr.bin")[4:0x14]]
    asked = buffers.SendUpdateData(
        handle=1,
        hdr_paddr=header,
        hdr_len=0x34,
        guest_paddr=page,
        guest_len=4096,
        trans_paddr=data,
        trans_len=4096,
    )
    assert Status.SUCCESS == bench.run(Command.SEND_UPDATE_DATA, asked)
    assert flow.file("send_page_hdr.bin") == bench.read(header, 0x34)
    assert flow.file("send_page_trans.bin") == bench.read(data, 4096)


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_what_they_send_arrives(nv: NvStore, flow: Flow) -> None:
    bench = Bench(flow, nv)
    receiver_takes_the_place(bench)
    asked: Wire = buffers.ReceiveStart(
        policy=flow.policy,
        pdh_cert_paddr=bench.put(flow.file("pdh.cert")),
        pdh_cert_len=CERT_SIZE,
        session_paddr=bench.put(flow.file("send_session.bin")),
        session_len=0x80,
    )
    assert Status.SUCCESS == bench.run(Command.RECEIVE_START, asked)
    asid = 1 if flow.policy & 4 else ASID
    assert Status.SUCCESS == bench.run(Command.ACTIVATE, buffers.Activate(handle=1, asid=asid))
    page = bench.put(bytes(4096))
    asked = buffers.ReceiveUpdateData(
        handle=1,
        hdr_paddr=bench.put(flow.file("send_page_hdr.bin")),
        hdr_len=0x34,
        guest_paddr=page,
        guest_len=4096,
        trans_paddr=bench.put(flow.file("send_page_trans.bin")),
        trans_len=4096,
    )
    assert Status.SUCCESS == bench.run(Command.RECEIVE_UPDATE_DATA, asked)
    assert flow.file("send_page_plain.bin") == bench.fabric.read(page, 4096, key_of(asid))
    assert flow.file("send_page_plain.bin") != bench.read(page, 4096)


# ---- one bit of it wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("byte", range(0x80), ids=hex)
def test_a_flipped_bit_of_their_session_is_noticed(bench: Bench, byte: int) -> None:
    flow = bench.flow
    blob = flipped(flow.file("session.bin"), 8 * byte + byte % 8)
    status = bench.start(godh=flow.file("godh.cert"), blob=blob, policy=flow.policy)
    assert Status.BAD_MEASUREMENT == status
    assert {} == bench.firmware.platform.guests


@pytest.mark.parametrize("bit", range(32))
def test_another_policy_than_the_owners_is_noticed(bench: Bench, bit: int) -> None:
    flow = bench.flow
    status = bench.start(
        godh=flow.file("godh.cert"), blob=flow.file("session.bin"), policy=flow.policy ^ 1 << bit
    )
    assert Status.BAD_MEASUREMENT == status


#: Bytes of the owner's certificate that the firmware looks at: version, usage, algorithm, curve, coordinates.
LOOKED_AT = {*range(0, 4), *range(8, 0x14 + 72), *range(0x14 + 72, 0x14 + 144)}


@pytest.mark.parametrize("byte", [*range(0, 0x14 + 144, 3), 0x14 + 144, 0x413, 0x414, 0x823], ids=hex)
def test_a_flipped_bit_of_their_certificate_is_noticed_where_the_firmware_looks(
    bench: Bench, byte: int
) -> None:
    flow = bench.flow
    godh = flipped(flow.file("godh.cert"), 8 * byte + byte % 8)
    status = bench.start(godh=godh, blob=flow.file("session.bin"), policy=flow.policy)
    assert (Status.INVALID_CERTIFICATE if byte in LOOKED_AT else Status.SUCCESS) == status


@pytest.mark.parametrize("byte", range(0, 0x34), ids=hex)
def test_a_flipped_bit_of_their_packet_header_is_noticed(bench: Bench, byte: int) -> None:
    measured(bench)
    header = flipped(bench.flow.file("secret_hdr.bin"), 8 * byte + byte % 8)
    status, target = bench.secret(header, bench.flow.file("secret_trans.bin"))
    assert Status.BAD_MEASUREMENT == status
    assert bytes(16) == bench.read(target, 16)


def test_a_flipped_bit_of_their_payload_is_noticed(bench: Bench) -> None:
    measured(bench)
    header, data = bench.flow.file("secret_hdr.bin"), bench.flow.file("secret_trans.bin")
    for byte in range(0, len(data), 7):
        status, _ = bench.secret(header, flipped(data, 8 * byte + byte % 8))
        assert Status.BAD_MEASUREMENT == status
    assert Status.BAD_MEASUREMENT == bench.secret(header, data[:-16])[0]
    assert Status.BAD_MEASUREMENT == bench.secret(header, data + bytes(16))[0]
    assert Status.SUCCESS == bench.secret(header, data)[0]


def test_another_image_another_measurement_and_no_secret(bench: Bench) -> None:
    bench.launch()
    at = bench.put(flipped(bench.flow.file("launch_data.bin"), 12345))
    asked = buffers.LaunchUpdateData(handle=1, paddr=at, length=12288)
    assert Status.SUCCESS == bench.run(Command.LAUNCH_UPDATE_DATA, asked)
    assert bench.flow.file("measure.bin") != bench.measure()
    file = bench.flow.file
    assert Status.BAD_MEASUREMENT == bench.secret(file("secret_hdr.bin"), file("secret_trans.bin"))[0]


@pytest.mark.parametrize("key", ["pek", "cek", "oca", "receiver_pdh"])
def test_their_session_opens_with_their_pdh_alone(bench: Bench, key: str) -> None:
    platform = bench.firmware.platform
    platform.identity = replace(platform.identity, pdh_key=bench.flow.key(key))
    flow = bench.flow
    status = bench.start(godh=flow.file("godh.cert"), blob=flow.file("session.bin"), policy=flow.policy)
    assert Status.BAD_MEASUREMENT == status


# ---- the same identity through the front door --------------------------------------------------------------


def test_a_machine_whose_store_holds_their_keys_measures_what_they_measured(chips: Chips) -> None:
    flow, entropy = SEV, Scripted()
    pek, oca, _ = flow.chain()
    held = NvState(
        externally_owned=0,
        pdh_scalar=ec.scalar_of(flow.key("pdh")),
        pek_scalar=ec.scalar_of(flow.key("pek")),
        oca_scalar=ec.scalar_of(flow.key("oca")),
        pdh_cert=flow.file("pdh.cert"),
        pek_cert=bytes(pek),
        oca_cert=bytes(oca),
    )
    with chips.world("rome", entropy=entropy) as world:  # Rome's firmware is the flow's: 0.24, build 15
        NvStore(world.nv, world.state.fuses(), entropy).save(held)
        desk = world.init().desk
        assert flow.file("pdh.cert") == world.export()[0]
        asked = buffers.LaunchStart(
            policy=flow.policy,
            dh_cert_paddr=desk.put(flow.file("godh.cert")),
            dh_cert_len=CERT_SIZE,
            session_paddr=desk.put(flow.file("session.bin")),
            session_len=0x80,
        )
        handle = desk.ccp.call(Command.LAUNCH_START, asked).handle
        world.activate(handle, ASID)
        at = desk.put(flow.file("launch_data.bin"))
        for offset, length in flow.values["launch_update_data_calls"]:
            world.update(handle, at + offset, length)
        entropy.next = [bytes.fromhex(flow.values["mnonce"])]
        assert flow.file("measure.bin") == bytes(world.measure(handle))
