"""Who the platform is and who owns it: PEK, OCA, PDH, CEK, the chip's id."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa as openssl

from cbit.crypto import amd_cert, ec, rsa, sev_cert
from cbit.spec import buffers
from cbit.spec.amd_certificate import AmdCert
from cbit.spec.certificate import UNUSED_SLOT, Algo, RsaPublicKey, SevCert, Usage
from cbit.spec.command import Command
from cbit.spec.status import Status
from secure_processor.faults import block_nv_writes
from secure_processor.import_faults import Organisation, csr, import_from
from secure_processor.worlds import Chips, World

CERT = 0x824


def certificates(world: World) -> dict[str, SevCert]:
    pdh, chain = world.export()
    pek, oca, cek = (SevCert.parse(chain[i : i + CERT]) for i in range(0, len(chain), CERT))
    return {"pdh": SevCert.parse(pdh), "pek": pek, "oca": oca, "cek": cek}


def verify_like_an_owner(world: World, certs: dict[str, SevCert]) -> None:
    """Root to PDH, with the CEK certificate that the vendor publishes in place of the unsigned one."""
    published = {name: (world.state.certs / f"{name}.cert").read_bytes() for name in ("ark", "ask", "cek")}
    ark, ask = AmdCert.parse(published["ark"]), AmdCert.parse(published["ask"])
    cek = SevCert.parse(published["cek"])
    amd_cert.verify(ark, ark)
    amd_cert.verify(ask, ark)
    sev_cert.verify(cek, ask)
    assert cek.pubkey == certs["cek"].pubkey
    sev_cert.verify(certs["oca"], certs["oca"])
    sev_cert.verify(certs["pek"], certs["oca"])
    sev_cert.verify(certs["pek"], cek)
    sev_cert.verify(certs["pdh"], certs["pek"])


def identity(world: World) -> tuple[bytes, bytes]:
    return world.export()


def restart(world: World) -> None:
    """SHUTDOWN, power off and on, INIT: what is left is what the store holds."""
    world.desk.do(Command.SHUTDOWN)
    world.machine.power_off()
    world.machine.power_on()
    world.init()


# ---- what a platform shows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["naples", "milan"])
def test_the_chain_verifies_up_to_the_vendors_root(chips: Chips, profile: str) -> None:
    with chips.world(profile) as world:
        certs = certificates(world.init())
        verify_like_an_owner(world, certs)
        assert (UNUSED_SLOT, UNUSED_SLOT) == certs["cek"].slots()
        status = world.desk.platform()
        for cert in certs.values():
            assert (status.api_major, status.api_minor) == (cert.api_major, cert.api_minor)


def test_the_slots_stand_as_on_real_platforms(world: World) -> None:
    certs = certificates(world.init())
    used = {name: [slot[0] for slot in cert.slots()] for name, cert in certs.items()}
    none = Usage.INVALID
    assert {
        "oca": [Usage.OCA, none],
        "pek": [Usage.OCA, Usage.CEK],
        "pdh": [Usage.PEK, none],
        "cek": [none, none],
    } == used
    assert [Algo.ECDSA_SHA256] * 3 + [Algo.ECDH_SHA256] == [
        certs[name].pubkey_algo for name in ("oca", "pek", "cek", "pdh")
    ]


def test_the_csr_is_the_pek_with_both_slots_unused(world: World) -> None:
    pek, request = certificates(world.init())["pek"], csr(world)
    assert pek.body == request.body
    assert (UNUSED_SLOT, UNUSED_SLOT) == request.slots()
    assert bytes(request)[0x414:] == (b"\x00\x10" + bytes(518)) * 2


def test_get_id_is_the_chips_in_every_state_and_after_every_reset(world: World) -> None:
    desk = world.desk
    expected = world.state.fuses().chip_id()

    def chip_id() -> bytes:
        at = desk.room(64)
        desk.do(Command.GET_ID, buffers.GetId(paddr=at, length=64))
        return desk.read(at, 64)

    assert expected == chip_id()
    world.init()
    assert expected == chip_id()
    desk.do(Command.PEK_GEN)
    assert expected == chip_id()
    desk.do(Command.SHUTDOWN)
    desk.do(Command.PLATFORM_RESET)
    assert expected == chip_id()


def test_get_id_is_the_chip_secrets_point_on_secp256k1(world: World) -> None:
    # sev-crypto.md §5.2, with the curve's own arithmetic: y² = x³ + 7 mod p
    x, y = (int.from_bytes(world.state.fuses().chip_id()[i : i + 32], "big") for i in (0, 32))
    p = 2**256 - 2**32 - 977
    assert 0 == (y * y - x**3 - 7) % p


def test_two_chips_are_two(chips: Chips) -> None:
    with chips.world() as one, chips.world(seed=2) as other:
        assert one.state.fuses().chip_id() != other.state.fuses().chip_id()
        assert certificates(one.init())["cek"].pubkey != certificates(other.init())["cek"].pubkey


# ---- what survives -----------------------------------------------------------------------------------------


def test_init_finds_the_identity_it_left(world: World) -> None:
    before = identity(world.init())
    for _ in range(3):
        restart(world)
        assert before == identity(world)


def test_platform_reset_makes_another_platform_of_the_same_chip(world: World) -> None:
    before = certificates(world.init())
    world.desk.do(Command.SHUTDOWN)
    world.desk.do(Command.PLATFORM_RESET)
    assert b"\xff\xff\xff\xff" == world.nv.read_bytes()[:4]
    after = certificates(world.init())
    for name in ("pdh", "pek", "oca"):
        assert before[name].pubkey != after[name].pubkey
    assert before["cek"] == after["cek"]
    verify_like_an_owner(world, after)


def test_pek_gen_replaces_everything_but_the_cek(world: World) -> None:
    before = certificates(world.init())
    world.desk.do(Command.PEK_GEN)
    after = certificates(world)
    for name in ("pdh", "pek", "oca"):
        assert before[name].pubkey != after[name].pubkey
    assert before["cek"] == after["cek"]
    verify_like_an_owner(world, after)
    restart(world)
    assert after == certificates(world)


def test_pdh_gen_replaces_the_pdh_alone(world: World) -> None:
    before = certificates(world.init())
    world.start()  # in WORKING too
    world.desk.do(Command.PDH_GEN)
    after = certificates(world)
    assert before["pdh"].pubkey != after["pdh"].pubkey
    assert all(before[name] == after[name] for name in ("pek", "oca", "cek"))
    verify_like_an_owner(world, after)
    restart(world)
    assert after == certificates(world)


@pytest.mark.parametrize("command", [Command.PEK_GEN, Command.PDH_GEN])
def test_a_failed_write_keeps_the_identity_in_use_and_in_store(world: World, command: Command) -> None:
    before = identity(world.init())
    with world.trace.recorded() as events:
        world.nv.with_name("sev.nv.new").mkdir()
        assert Status.HWERROR_PLATFORM == world.desk.status_of(command)
    assert "NV store" in events[-1].why
    assert before == identity(world)
    world.nv.with_name("sev.nv.new").rmdir()
    restart(world)
    assert before == identity(world)
    world.desk.do(command)
    assert before != identity(world)


def test_a_first_init_that_cannot_save_leaves_uninit(world: World) -> None:
    world.nv.with_name("sev.nv.new").mkdir()
    assert Status.HWERROR_PLATFORM == world.desk.status_of(Command.INIT, buffers.Init())
    assert 0 == world.desk.platform().state
    world.nv.with_name("sev.nv.new").rmdir()
    world.init()


# ---- owned by an organisation ------------------------------------------------------------------------------


def test_an_organisation_takes_the_platform_over(world: World) -> None:
    before = certificates(world.init())
    org = Organisation()
    assert 0 == world.desk.platform().owner
    assert Status.SUCCESS == import_from(world, org)
    assert 1 == world.desk.platform().owner
    after = certificates(world)
    assert org.oca == after["oca"]
    assert before["pek"].body == after["pek"].body
    assert [Usage.OCA, Usage.CEK] == [slot[0] for slot in after["pek"].slots()]
    assert before["pdh"].pubkey != after["pdh"].pubkey
    verify_like_an_owner(world, after)
    restart(world)
    assert after == certificates(world)
    assert 1 == world.desk.platform().owner
    assert Status.ALREADY_OWNED == import_from(world, Organisation("another"))
    assert after == certificates(world)


def test_the_ceks_signature_takes_the_slot_that_is_free(world: World) -> None:
    world.init()
    org = Organisation()
    desk = world.desk
    pek, oca = desk.put(bytes(org.sign(csr(world), slot=2))), desk.put(bytes(org.oca))
    desk.do(
        Command.PEK_CERT_IMPORT,
        buffers.PekCertImport(pek_paddr=pek, pek_len=CERT, oca_paddr=oca, oca_len=CERT),
    )
    after = certificates(world)
    assert [Usage.CEK, Usage.OCA] == [slot[0] for slot in after["pek"].slots()]
    verify_like_an_owner(world, after)


@pytest.mark.parametrize("way", ["PEK_GEN", "PLATFORM_RESET"])
def test_the_machine_owns_itself_again(world: World, way: str) -> None:
    world.init()
    import_from(world, Organisation())
    if way == "PEK_GEN":
        world.desk.do(Command.PEK_GEN)
    else:
        world.desk.do(Command.SHUTDOWN)
        assert 0 == world.desk.platform().owner  # reads 0 before INIT
        world.desk.do(Command.PLATFORM_RESET)
        world.init()
    assert 0 == world.desk.platform().owner
    verify_like_an_owner(world, certificates(world))
    assert Status.SUCCESS == import_from(world, Organisation())


def test_an_owned_platform_makes_a_new_pdh_and_still_shows_its_csr(world: World) -> None:
    world.init()
    import_from(world, Organisation())
    world.desk.do(Command.PDH_GEN)
    verify_like_an_owner(world, certificates(world))
    assert certificates(world)["pek"].body == csr(world).body


def test_a_failed_import_keeps_the_old_owner(world: World) -> None:
    from secure_processor.faults import Scene

    before = identity(world.init())
    block_nv_writes(Scene(world))
    assert Status.HWERROR_PLATFORM == import_from(world, Organisation())
    assert (0, before) == (world.desk.platform().owner, identity(world))


@pytest.mark.parametrize("bits", [2048, 4096])
@pytest.mark.parametrize("algo", [Algo.RSA_SHA256, Algo.RSA_SHA384])
def test_an_organisation_may_have_an_rsa_key(world: World, bits: int, algo: Algo) -> None:
    world.init()
    key = openssl.generate_private_key(65537, bits)
    numbers = key.public_key().public_numbers()
    digest = hashes.SHA256() if algo is Algo.RSA_SHA256 else hashes.SHA384()

    def sign(cert: SevCert) -> SevCert:
        signature = rsa.sign(key, cert.body, digest).ljust(512, b"\x00")
        return sev_cert.with_slot(cert, 1, (Usage.OCA, algo, signature))

    public = RsaPublicKey(modulus_size=bits, pubexp=65537, modulus=numbers.n)
    oca = sign(
        SevCert(api_major=0, api_minor=0, pubkey_usage=Usage.OCA, pubkey_algo=algo, pubkey=bytes(public))
    )
    desk = world.desk
    pek_at, oca_at = desk.put(bytes(sign(csr(world)))), desk.put(bytes(oca))
    asked = buffers.PekCertImport(pek_paddr=pek_at, pek_len=CERT, oca_paddr=oca_at, oca_len=CERT)
    bad = desk.put(bytes(oca.replace(api_minor=1)))
    assert Status.BAD_SIGNATURE == desk.status_of(Command.PEK_CERT_IMPORT, asked.replace(oca_paddr=bad))
    assert Status.SUCCESS == desk.status_of(Command.PEK_CERT_IMPORT, asked)
    verify_like_an_owner(world, certificates(world))
    restart(world)
    assert 1 == world.desk.platform().owner


# ---- derivations, against the dossier's words --------------------------------------------------------------


def test_the_cek_is_derived_from_the_chips_secret(world: World) -> None:
    """sev-crypto.md §5.1 and §6, written out with hmac alone."""
    import hmac

    fuses = world.state.fuses()
    cuk = bytes(fuses)[0x10:0x30]
    seed = hashlib.sha256(cuk).digest()
    blocks = b"".join(
        hmac.digest(
            seed,
            i.to_bytes(4, "little") + b"sev-chip-endorsement-key\0" + (448).to_bytes(4, "little"),
            "sha256",
        )
        for i in (1, 2)
    )
    scalar = int.from_bytes(blocks[:56], "little") % (ec.ORDER - 1) + 1
    expected = bytes(ec.encode_public(ec.private_key(scalar).public_key()))
    assert expected == certificates(world.init())["cek"].pubkey
