"""A guest's memory launched for its owner: the owner's session, the hypervisor's commands, the sealed secret.

Paper: sev-api.md §7; sev-crypto.md §7.2, §9, §10; DESIGN.md story lines 4 to 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cbit.attacks.tenant import Tenant
from cbit.crypto.entropy import Entropy
from cbit.hypervisor.launch import SevGuest
from cbit.hypervisor.vm import Vm
from cbit.spec.address import Gpa

#: Hands something on under a name, as the hypervisor does with everything between owner and secure processor.
Carry = Callable[[str, bytes], bytes]
#: Makes a digest of what was launched and where, as the firmware of a machine would that covers addresses.
Attest = Callable[[SevGuest], bytes]


def launch(
    vm: Vm,
    pieces: Sequence[tuple[int, bytes]],
    secret: bytes,
    secret_at: int,
    *,
    tenant: Tenant,
    entropy: Entropy,
    policy: int | None = None,
    share_with: SevGuest | None = None,
    carry: Carry = lambda _, data: data,
    attest: Attest = lambda _: b"",
) -> SevGuest:
    """Launch what lies in a guest's memory, for an owner who checks it before it seals anything.

    Args:
        vm: the memory.
        pieces: what is measured, in this order, each where it lies already.
        secret: what the owner gives the guest; b"" for nothing.
        secret_at: where that goes, guest physical.
        tenant: the owner; its image is what it expects.
        entropy: the owner's randomness.
        policy: what the host launches with, if it is not what the owner asks for.
        share_with: a guest of the same owner whose memory key it gets, its policy permitting.
        carry: the hypervisor as a carrier.
        attest: makes the digest that covers addresses, for an owner who wants one; by default nobody can.

    Raises:
        FirmwareError, BadMeasurement, Untrusted: refused, by the secure processor or by the owner; nothing of
            the guest is left in the firmware.
    """
    session = tenant.open_session(carry("chain", vm.host.export_chain()), entropy)
    assert session.session is not None
    guest = SevGuest.start(
        vm,
        policy=tenant.policy if policy is None else policy,
        godh=carry("godh.cert", bytes(session.session.godh)),
        session=carry("launch_blob.bin", bytes(session.session.blob)),
        share_with=share_with,
    )
    try:
        for at, data in pieces:
            guest.update(Gpa(at), len(data))
        receipt = guest.measure()
        carry("launch receipt", receipt.to_json().encode())
        trusted = tenant.check(session, receipt)
        if tenant.layout:
            tenant.check_addresses(attest(guest))
        if secret:
            header, payload = trusted.seal(secret, entropy=entropy)
            guest.inject(
                Gpa(secret_at),
                carry("packaged_secret_header.bin", header),
                carry("packaged_secret.bin", payload),
            )
        guest.finish()
    except BaseException:
        guest.release()
        raise
    return guest
