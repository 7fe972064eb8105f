"""What the guest owner and the secure processor say to each other during a launch.

Paper: sev-crypto.md §7.1 (session), §9 (measurement), §10 (packets).
"""

from __future__ import annotations

from typing import Final

from cbit.spec.wire import Wire, at


class Session(Wire, size=0x80):
    """The launch session: TEK and TIK wrapped for one platform, and the policy bound to them.

    Paper: sev-crypto.md §7.1.
    """

    nonce: bytes = at(0x00, 16)
    wrap_tk: bytes = at(0x10, 32)
    wrap_iv: bytes = at(0x30, 16)
    wrap_mac: bytes = at(0x40, 32)
    policy_mac: bytes = at(0x60, 32)


class MeasureBlob(Wire, size=0x30):
    """Output of LAUNCH_MEASURE: the measurement and the nonce it is bound to.

    Paper: sev-crypto.md §9.
    """

    measure: bytes = at(0x00, 32)
    mnonce: bytes = at(0x20, 16)


class PacketHeader(Wire, size=0x34):
    """Header of a LAUNCH_SECRET, SEND_UPDATE or RECEIVE_UPDATE packet.

    Paper: sev-crypto.md §10.
    """

    flags: int = at(0x00, 4, default=0)
    iv: bytes = at(0x04, 16)
    mac: bytes = at(0x14, 32)


COMPRESSED: Final = 1 << 0  #: PacketHeader.flags bit 0; the other bits are 0

CONTEXT_SECRET: Final = 0x01  #: first MAC byte of a LAUNCH_SECRET packet
CONTEXT_DATA: Final = 0x02  #: of a SEND/RECEIVE_UPDATE_DATA packet
#: Of a VMSA packet.  MODEL CHOICE: sources disagree (§10); 0x02 is bit-exact with the published firmware.
CONTEXT_VMSA: Final = 0x02
CONTEXT_MEASURE: Final = 0x04  #: first byte of the measurement MAC
