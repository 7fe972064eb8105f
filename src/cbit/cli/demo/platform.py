"""Acts 3 and 4: who vouches for the platform, and what its guest's owner sends it."""

from __future__ import annotations

from cbit.attacks.tenant import Tenant
from cbit.cli.demo.act import Act
from cbit.cli.demo.world import World
from cbit.crypto import ec, sev_cert
from cbit.hypervisor.host import Host
from cbit.owner.errors import Untrusted
from cbit.owner.verify.verdict import describe_root, inspect, verify_chain
from cbit.spec.certificate import Algo, SevCert, Usage
from cbit.spec.policy import GuestPolicy, Policy
from cbit.spec.states import PlatformState


def platform(world: World) -> Act:
    """INIT, the certificate chain, and who owns the platform."""
    act = Act(3, "SEV platform: INIT, and the certificate chain that vouches for it")
    world.host = host = Host(world.machine)
    if damage := host.initialise():
        act.fact("a new identity", damage)
    act.fact("platform after INIT", _status(host))
    world.tenant = Tenant.beside(world.state, policy=int(Policy.NODBG), image=world.image.data)
    chain = world.tenant.chain(host.export_chain())
    try:
        verify_chain(chain)
    except Untrusted as refusal:
        act.attempt("owner verifies it, trusting AMD's roots only", succeeded=False, answer=refusal)
    inspection = inspect(chain, trust=[world.tenant.trust])
    for signature in inspection.signatures:
        act.fact("signature", signature)
    act.fact("root", describe_root(inspection.root))
    host.take_ownership(lambda pek: _organisation(world, pek))
    world.tenant.verify(host.export_chain())
    act.attempt("an organisation signs the PEK and takes ownership", succeeded=True, answer=_status(host))
    act.who_sees = (
        "Certificates are public. The private halves are in the secure processor, sealed in its NV store."
    )
    return act


def _organisation(world: World, pek: bytes) -> tuple[bytes, bytes]:
    """Sign the platform's PEK with an OCA of the organisation's own, on its own computer."""
    key, api = ec.random_key(world.entropy), world.machine.profile.api
    unsigned = sev_cert.build(usage=Usage.OCA, algo=Algo.ECDSA_SHA256, key=key.public_key(), api=api)
    oca = sev_cert.sign(unsigned, slot=1, signer=key, usage=Usage.OCA)
    return bytes(sev_cert.sign(SevCert.parse(pek), slot=1, signer=key, usage=Usage.OCA)), bytes(oca)


def _status(host: Host) -> str:
    status = host.status()
    owner = "an organisation" if status.owner & 1 else "itself"
    api = f"API {status.api_major}.{status.api_minor} build {status.build}"
    return f"state {PlatformState(status.state).name}, {api}, owned by {owner}"


def session(world: World) -> Act:
    """The owner's session: carried by the hypervisor, opened by the secure processor."""
    act = Act(4, "The guest owner makes a session for this secure processor and no other")
    world.session = world.tenant.open_session(world.host.export_chain(), world.entropy)
    made, keys = world.session.session, world.session.keys
    assert made is not None
    act.fact("policy", GuestPolicy.parse(world.tenant.policy))
    act.fact("transport keys", f"fingerprints: TEK {keys.tek.fingerprint()}, TIK {keys.tik.fingerprint()}")
    act.show("launch_blob.bin, in the hypervisor's hands", bytes(made.blob))
    carried = bytes(made.blob) + bytes(made.godh)
    act.search(
        "hypervisor searches what it carries for TEK and TIK",
        found=any(key.material() in carried for key in (keys.tek, keys.tik)),
        where=f"{len(carried)} bytes",
    )
    act.who_sees = (
        "Owner and secure processor share TEK and TIK. The hypervisor carries them and cannot read them."
    )
    return act
