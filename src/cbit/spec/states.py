"""The two state machines of the firmware interface.

Paper: sev-api.md §3 (platform), §4 (guest).
"""

from __future__ import annotations

from enum import IntEnum


class PlatformState(IntEnum):
    """State of the platform as PLATFORM_STATUS reports it."""

    UNINIT = 0
    INIT = 1  #: initialised, no guest context
    WORKING = 2  #: at least one guest context


class GuestState(IntEnum):
    """State of one guest context as GUEST_STATUS reports it."""

    UNINIT = 0
    LUPDATE = 1  #: launch: the image is being measured and encrypted
    LSECRET = 2  #: launch: measured, a secret may be injected
    RUNNING = 3
    SUPDATE = 4
    RUPDATE = 5
    SENT = 6
