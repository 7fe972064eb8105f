"""The sub-commands of KVM_MEMORY_ENCRYPT_OP, in the kernel's order of checks.

Paper: sev-api.md §13; §7–§10 for what the firmware does with them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from cbit.driver.kvm_structs import (
    KvmAttestationReport,
    KvmDebug,
    KvmGuestStatus,
    KvmLaunchMeasure,
    KvmLaunchStart,
    KvmLaunchUpdateData,
    KvmPacket,
    KvmReceiveStart,
    KvmSendStart,
    KvmSevCommand,
)
from cbit.driver.kvm_vm import Asked, Lent, SevVm
from cbit.driver.kvm_vmsa import save_area
from cbit.driver.sev_structs import BLOB_MAX
from cbit.spec import buffers
from cbit.spec.address import BLOCK, PAGE, Spa
from cbit.spec.command import Command
from cbit.spec.errors import CbitError
from cbit.spec.key_id import UNENCRYPTED

Handler = Callable[[SevVm, Asked], None]


def _launch_start(vm: SevVm, asked: Asked) -> None:
    vm.require_sev()
    given = asked.take(KvmLaunchStart)
    with Lent(vm.host) as lent:
        request = buffers.LaunchStart(handle=given.handle, policy=given.policy)
        if given.dh_uaddr:
            cert = asked.blob(given.dh_uaddr, given.dh_len, "Diffie-Hellman certificate")
            request = request.replace(dh_cert_paddr=lent.put(cert), dh_cert_len=len(cert))
        if given.session_uaddr:
            session = asked.blob(given.session_uaddr, given.session_len, "session")
            request = request.replace(session_paddr=lent.put(session), session_len=len(session))
        handle = vm.begin(asked, Command.LAUNCH_START, request).handle
        vm.bind(asked, handle, lambda: asked.give(given.replace(handle=handle)))


def _launch_update_data(vm: SevVm, asked: Asked) -> None:
    vm.require_sev()
    given = asked.take(KvmLaunchUpdateData)
    image, runs = vm.pinned(asked, given.uaddr, given.len)
    vm.pages.bring_image(image, runs)
    for run in runs:  # split where frames are no neighbours: the digest does not care
        request = buffers.LaunchUpdateData(handle=vm.handle, paddr=run.spa, length=run.length)
        _, refusal = vm.attempt(asked, Command.LAUNCH_UPDATE_DATA, request)
        vm.pages.take_image(asked.memory, [run])  # what was done before a refusal is done
        if refusal is not None:
            raise refusal


def _launch_update_vmsa(vm: SevVm, asked: Asked) -> None:
    """One save area for each virtual CPU, in the order in which they were made."""
    if not vm.es:
        raise OSError(errno.ENOTTY, "the machine has no ES")
    for cpu in vm.cpus.values():
        page = save_area(cpu.regs, cpu.sregs, features=vm.features, fpu=vm.by_init2)
        try:
            frames = vm.host.frames.take(PAGE)
        except CbitError as error:
            raise OSError(errno.ENOMEM, str(error)) from None
        vm.save_areas.append(frames)
        vm.host.machine.memory.write(Spa(frames.start), page, UNENCRYPTED)
        request = buffers.LaunchUpdateVmsa(handle=vm.handle, paddr=frames.start)
        vm.issue(asked, Command.LAUNCH_UPDATE_VMSA, request)


def _launch_measure(vm: SevVm, asked: Asked) -> None:
    vm.require_sev()
    given = asked.take(KvmLaunchMeasure)
    if given.len and given.uaddr and given.len > BLOB_MAX:
        raise OSError(errno.EINVAL, f"length {given.len:#x} is past the limit of {BLOB_MAX:#x}")
    with Lent(vm.host) as lent:
        request = buffers.LaunchMeasure(handle=vm.handle, measure_paddr=0, measure_len=0)
        if given.len and given.uaddr:
            request = request.replace(measure_paddr=lent.room(given.len), measure_len=given.len)
        after, refusal = vm.attempt(asked, Command.LAUNCH_MEASURE, request)
        if refusal is None and request.measure_len:
            asked.memory.write(given.uaddr, lent.read(request.measure_paddr, given.len))
        if refusal is None or not given.len:  # a length that was asked for is an answer, and an error
            asked.give(given.replace(len=after.measure_len))
    if refusal is not None:
        raise refusal


def _launch_secret(vm: SevVm, asked: Asked) -> None:
    vm.require_sev()
    given = asked.take(KvmPacket)
    _, runs = vm.pinned(asked, given.guest_uaddr, given.guest_len)
    if len(runs) != 1:
        raise OSError(errno.EINVAL, "the secret's place is not contiguous in the machine's memory")
    with Lent(vm.host) as lent:
        payload = asked.blob(given.trans_uaddr, given.trans_len, "packet")
        header = asked.blob(given.hdr_uaddr, given.hdr_len, "header")
        request = buffers.LaunchSecret(
            handle=vm.handle,
            hdr_paddr=lent.put(header),
            hdr_len=len(header),
            guest_paddr=runs[0].spa,
            guest_len=given.guest_len,
            trans_paddr=lent.put(payload),
            trans_len=len(payload),
        )
        vm.issue(asked, Command.LAUNCH_SECRET, request)
    vm.pages.take(asked.memory, runs, vm.key)


def _plain(command: Command) -> Handler:
    """A command that has a handle and nothing else."""

    def handler(vm: SevVm, asked: Asked) -> None:
        vm.require_sev()
        vm.issue(asked, command, buffers.GuestHandle(handle=vm.handle))

    return handler


def _guest_status(vm: SevVm, asked: Asked) -> None:
    vm.require_sev()
    after = vm.issue(asked, Command.GUEST_STATUS, buffers.GuestStatus(handle=vm.handle))
    asked.give(KvmGuestStatus(handle=after.handle, policy=after.policy, state=after.state))


def _attestation_report(vm: SevVm, asked: Asked) -> None:
    vm.require_sev()
    given = asked.take(KvmAttestationReport)
    if given.len and given.uaddr and given.len > BLOB_MAX:
        raise OSError(errno.EINVAL, f"length {given.len:#x} is past the limit of {BLOB_MAX:#x}")
    with Lent(vm.host) as lent:
        request = buffers.Attestation(handle=vm.handle, paddr=0, mnonce=bytes(16), length=0)
        if given.len and given.uaddr:
            request = request.replace(paddr=lent.room(given.len), mnonce=given.mnonce, length=given.len)
        after, refusal = vm.attempt(asked, Command.ATTESTATION, request)
        if refusal is None and request.length:
            asked.memory.write(given.uaddr, lent.read(request.paddr, given.len))
        if refusal is None or not given.len:
            asked.give(given.replace(len=after.length))
    if refusal is not None:
        raise refusal


# ---- debugging: a page at a time, in whole blocks, as the firmware wants them ----


def _dbg_decrypt(vm: SevVm, asked: Asked) -> None:
    for source, target, count in _debug_pieces(vm, asked):
        vm.pages.pin(asked.memory, target, count)  # before the firmware is asked, as the source is
        asked.memory.write(target, _decrypted(vm, asked, source, count))


def _dbg_encrypt(vm: SevVm, asked: Asked) -> None:
    for source, target, count in _debug_pieces(vm, asked):
        data = vm.pages.pin(asked.memory, source, count, to_write=False)
        start, end = target & -BLOCK, -(-(target + count) // BLOCK) * BLOCK
        if (start, end) != (
            target,
            target + count,
        ):  # the blocks at the edges keep the rest of what they hold
            whole = bytearray(_decrypted(vm, asked, start, end - start))
            whole[target - start : target - start + count] = data
            data = bytes(whole)
        _, runs = vm.pinned(asked, start, end - start)
        with Lent(vm.host) as lent:
            request = buffers.Debug(handle=vm.handle, src=lent.put(data), dst=runs[0].spa, length=end - start)
            vm.issue(asked, Command.DBG_ENCRYPT, request)
        vm.pages.take(asked.memory, runs, vm.key)


def _debug_pieces(vm: SevVm, asked: Asked) -> Iterator[tuple[int, int, int]]:
    """Yield (source, target, length) within one page each: one by one, for 4 GiB may be asked for."""
    vm.require_sev()
    given = asked.take(KvmDebug)
    source, target, left = given.src_uaddr, given.dst_uaddr, given.len
    if not left or source + left >= 1 << 64 or not target:
        raise OSError(errno.EINVAL, f"{left:#x} bytes from {source:#x} to {target:#x} cannot be debugged")
    while left:
        count = min(left, PAGE - source % PAGE, PAGE - target % PAGE)
        yield source, target, count
        source, target, left = source + count, target + count, left - count


def _decrypted(vm: SevVm, asked: Asked, address: int, count: int) -> bytes:
    """DBG_DECRYPT bytes that lie inside one page."""
    start, end = address & -BLOCK, -(-(address + count) // BLOCK) * BLOCK
    held = vm.pages.pin(asked.memory, start, end - start, to_write=False)
    runs = vm.pages.place(start, end - start)
    vm.pages.bring(held, runs, vm.key)
    with Lent(vm.host) as lent:
        room = lent.room(end - start)
        request = buffers.Debug(handle=vm.handle, src=runs[0].spa, dst=room, length=end - start)
        vm.issue(asked, Command.DBG_DECRYPT, request)
        return lent.read(room, end - start)[address - start : address - start + count]


# ---- migration ----


def _send_start(vm: SevVm, asked: Asked) -> None:
    vm.require_sev()
    given = asked.take(KvmSendStart)
    if not given.session_len:
        empty = buffers.SendStart(
            handle=vm.handle, pdh_cert_paddr=0, pdh_cert_len=0, session_paddr=0, session_len=0
        )
        after, refusal = vm.attempt(asked, Command.SEND_START, empty)
        asked.give(given.replace(session_len=after.session_len))
        if refusal is not None:
            raise refusal
        return
    if not given.pdh_cert_uaddr or not given.pdh_cert_len or not given.session_uaddr:
        raise OSError(errno.EINVAL, "the receiver's certificate or the session's place is missing")
    if given.session_len > BLOB_MAX:
        raise OSError(
            errno.EINVAL, f"session length {given.session_len:#x} is past the limit of {BLOB_MAX:#x}"
        )
    with Lent(vm.host) as lent:
        room = lent.room(given.session_len)
        pdh = asked.blob(given.pdh_cert_uaddr, given.pdh_cert_len, "receiver's certificate")
        platform = asked.blob(
            given.plat_certs_uaddr, given.plat_certs_len, "receiver's platform certificates"
        )
        vendor = asked.blob(given.amd_certs_uaddr, given.amd_certs_len, "vendor's certificates")
        request = buffers.SendStart(
            handle=vm.handle,
            pdh_cert_paddr=lent.put(pdh),
            pdh_cert_len=len(pdh),
            plat_certs_paddr=lent.put(platform),
            plat_certs_len=len(platform),
            amd_certs_paddr=lent.put(vendor),
            amd_certs_len=len(vendor),
            session_paddr=room,
            session_len=given.session_len,
        )
        after, refusal = vm.attempt(asked, Command.SEND_START, request)
        if refusal is None:
            asked.memory.write(given.session_uaddr, lent.read(room, given.session_len))
        asked.give(given.replace(policy=after.policy, session_len=after.session_len))
    if refusal is not None:
        raise refusal


def _send_update_data(vm: SevVm, asked: Asked) -> None:
    vm.require_sev()
    given = asked.take(KvmPacket)
    request = buffers.SendUpdateData(
        handle=vm.handle, hdr_paddr=0, hdr_len=0, guest_paddr=0, guest_len=0, trans_paddr=0, trans_len=0
    )
    if not given.trans_len or not given.hdr_len:
        after, refusal = vm.attempt(asked, Command.SEND_UPDATE_DATA, request)
        asked.give(given.replace(hdr_len=after.hdr_len, trans_len=after.trans_len))
        if refusal is not None:
            raise refusal
        return
    if not given.trans_uaddr or not given.guest_uaddr or not given.guest_len or not given.hdr_uaddr:
        raise OSError(errno.EINVAL, "guest memory, header or packet has no address or no length")
    _inside_a_page(given)
    held, runs = vm.pinned(asked, given.guest_uaddr, given.guest_len)
    vm.pages.bring(held, runs, vm.key)
    with Lent(vm.host) as lent:
        request = request.replace(
            hdr_paddr=lent.room(_bounded(given.hdr_len)),
            hdr_len=given.hdr_len,
            guest_paddr=runs[0].spa,
            guest_len=given.guest_len,
            trans_paddr=lent.room(_bounded(given.trans_len)),
            trans_len=given.trans_len,
        )
        vm.issue(asked, Command.SEND_UPDATE_DATA, request)
        asked.memory.write(given.trans_uaddr, lent.read(request.trans_paddr, given.trans_len))
        asked.memory.write(given.hdr_uaddr, lent.read(request.hdr_paddr, given.hdr_len))


def _receive_start(vm: SevVm, asked: Asked) -> None:
    vm.require_sev()
    given = asked.take(KvmReceiveStart)
    with Lent(vm.host) as lent:
        pdh = asked.blob(given.pdh_uaddr, given.pdh_len, "sender's certificate")
        session = asked.blob(given.session_uaddr, given.session_len, "session")
        request = buffers.ReceiveStart(
            handle=given.handle,
            policy=given.policy,
            pdh_cert_paddr=lent.put(pdh),
            pdh_cert_len=len(pdh),
            session_paddr=lent.put(session),
            session_len=len(session),
        )
        handle = vm.begin(asked, Command.RECEIVE_START, request).handle
        vm.bind(asked, handle, lambda: asked.give(given.replace(handle=handle)))


def _receive_update_data(vm: SevVm, asked: Asked) -> None:
    if not vm.active:  # the one command for which Linux has another errno
        raise OSError(errno.EINVAL, "the machine has no SEV: INIT comes first")
    given = asked.take(KvmPacket)
    if not all(getattr(given, name) for name in KvmPacket.FIELDS):
        raise OSError(errno.EINVAL, "guest memory, header or packet has no address or no length")
    _inside_a_page(given)
    with Lent(vm.host) as lent:
        header = asked.blob(given.hdr_uaddr, given.hdr_len, "header")
        packet = asked.blob(given.trans_uaddr, given.trans_len, "packet")
        _, runs = vm.pinned(asked, given.guest_uaddr, given.guest_len)
        request = buffers.ReceiveUpdateData(
            handle=vm.handle,
            hdr_paddr=lent.put(header),
            hdr_len=len(header),
            guest_paddr=runs[0].spa,
            guest_len=given.guest_len,
            trans_paddr=lent.put(packet),
            trans_len=len(packet),
        )
        vm.issue(asked, Command.RECEIVE_UPDATE_DATA, request)
    vm.pages.take(asked.memory, runs, vm.key)


def _inside_a_page(given: KvmPacket) -> None:
    if given.guest_uaddr % PAGE + given.guest_len > PAGE:
        raise OSError(
            errno.EINVAL, f"{given.guest_len:#x} bytes at {given.guest_uaddr:#x} cross a page boundary"
        )


def _bounded(length: int) -> int:
    """Return a length that the driver makes room for.

    MODEL CHOICE: more than a certificate may have is ENOMEM; the kernel's own allocator decides there.
    """
    if length > BLOB_MAX:
        raise OSError(errno.ENOMEM, f"no room for {length:#x} bytes: {BLOB_MAX:#x} at most")
    return length


# fmt: off
ROWS: Final[Mapping[int, Handler]] = MappingProxyType({
    KvmSevCommand.SEV_INIT:               SevVm.init_legacy,
    KvmSevCommand.SEV_ES_INIT:            SevVm.init_legacy,
    KvmSevCommand.LAUNCH_START:           _launch_start,
    KvmSevCommand.LAUNCH_UPDATE_DATA:     _launch_update_data,
    KvmSevCommand.LAUNCH_UPDATE_VMSA:     _launch_update_vmsa,
    KvmSevCommand.LAUNCH_SECRET:          _launch_secret,
    KvmSevCommand.LAUNCH_MEASURE:         _launch_measure,
    KvmSevCommand.LAUNCH_FINISH:          _plain(Command.LAUNCH_FINISH),
    KvmSevCommand.SEND_START:             _send_start,
    KvmSevCommand.SEND_UPDATE_DATA:       _send_update_data,
    KvmSevCommand.SEND_FINISH:            _plain(Command.SEND_FINISH),
    KvmSevCommand.RECEIVE_START:          _receive_start,
    KvmSevCommand.RECEIVE_UPDATE_DATA:    _receive_update_data,
    KvmSevCommand.RECEIVE_FINISH:         _plain(Command.RECEIVE_FINISH),
    KvmSevCommand.GUEST_STATUS:           _guest_status,
    KvmSevCommand.DBG_DECRYPT:            _dbg_decrypt,
    KvmSevCommand.DBG_ENCRYPT:            _dbg_encrypt,
    KvmSevCommand.GET_ATTESTATION_REPORT: _attestation_report,
    KvmSevCommand.SEND_CANCEL:            _plain(Command.SEND_CANCEL),
    KvmSevCommand.INIT2:                  SevVm.init2,
})
# fmt: on
