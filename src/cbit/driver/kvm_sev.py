"""KVM's memory-encryption requests on one virtual machine: structures in, mailbox commands, errno out.

    KVM_MEMORY_ENCRYPT_OP ── struct kvm_sev_cmd ── sub-command ── kernel's checks ── mailbox ── errno, error

What the firmware refuses is EIO with its status in ``error``; what never reaches it leaves ``error`` as the
caller had it.  The reason of either goes to the trace ("driver", the sub-command's name).

MODEL CHOICE: SEND_UPDATE_VMSA, RECEIVE_UPDATE_VMSA and CERT_EXPORT are EINVAL: Linux numbers them and has
nothing behind the numbers.

Paper: sev-api.md §13.
"""

from __future__ import annotations

import errno

from cbit.driver.caller_memory import CallerMemory
from cbit.driver.errors import FirmwareError, MailboxTimeout, refused
from cbit.driver.kvm_commands import ROWS
from cbit.driver.kvm_structs import (
    KVM_MEMORY_ENCRYPT_OP,
    KVM_MEMORY_ENCRYPT_REG_REGION,
    KVM_MEMORY_ENCRYPT_UNREG_REGION,
    EncRegion,
    KvmSevCmd,
    KvmSevCommand,
)
from cbit.driver.kvm_vm import Asked, SevVm


class KvmSev(SevVm):
    """A virtual machine that answers KVM's memory-encryption requests; begins and ends as `SevVm`."""

    def ioctl(self, request: int, argument: int, memory: CallerMemory) -> int:
        """Run one request and return 0.

        Raises:
            OSError: ENOTTY another request, or a machine without SEV; EFAULT bad memory; EINVAL an unknown
                sub-command, or what the kernel does not accept; EBADF ``sev_fd`` is not /dev/sev; ENOMEM,
                EBUSY no memory, no ASID; EIO the firmware refused, and ``error`` says how.
        """
        if request == KVM_MEMORY_ENCRYPT_OP:
            return self._encrypt_op(argument, memory)
        names = {KVM_MEMORY_ENCRYPT_REG_REGION: "REG_REGION", KVM_MEMORY_ENCRYPT_UNREG_REGION: "UNREG_REGION"}
        name = names.get(request)
        if name is None:
            raise OSError(errno.ENOTTY, f"request {request:#x} is none of memory encryption")
        try:
            self.require_sev()
            region = EncRegion.parse(memory.read(argument, EncRegion.SIZE))
            if name == "REG_REGION":
                self.pages.insist(memory, region.addr, region.size)
                self.regions.append(region)
            elif region in self.regions:
                self.regions.remove(region)
            else:
                raise OSError(errno.EINVAL, f"{region.size:#x} bytes at {region.addr:#x} are not registered")
        except OSError as error:
            raise refused(self.host.machine.trace, f"KVM {name}", error) from None
        return 0

    def _encrypt_op(self, argument: int, memory: CallerMemory) -> int:
        if not argument:  # "is memory encryption there?"
            return 0
        name = "KVM_MEMORY_ENCRYPT_OP"
        try:
            command = KvmSevCmd.parse(memory.read(argument, KvmSevCmd.SIZE), canonical=False)
            handler = ROWS.get(command.id)
            if command.id in KvmSevCommand.__members__.values():
                name = f"KVM {KvmSevCommand(command.id).name}"
            if handler is None:
                raise OSError(errno.EINVAL, f"sub-command {command.id} does not exist")
            asked = Asked(command, memory)
            try:
                handler(self, asked)
            finally:
                memory.write(argument, bytes(command.replace(error=asked.error)))
        except (FirmwareError, MailboxTimeout, OSError) as failure:
            raise refused(self.host.machine.trace, name, failure) from None
        return 0
