"""What the built-in guest shares with the world outside.

    image    ends at 4 GiB; the processor starts in its reset state, 16 bytes before
    memory   two megabytes at 8 MiB; two pages of them are shared, the owner's secrets go to another
    ports    serial port; a device that copies memory; the hypervisor's requests: cbit.hypervisor.devices

``program/layout.h`` has the same numbers for the assembler; a test holds all of them against each other.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final
from uuid import UUID

from cbit.spec.address import MIB, PAGE, Gpa
from cbit.spec.vmsa import Segment, Vmsa

IMAGE_SIZE: Final = 0x10000
IMAGE: Final = Gpa(0xFFFF0000)
MEMORY: Final = Gpa(0x800000)
MEMORY_SIZE: Final = 2 * MIB
SECRET: Final = Gpa(MEMORY + 0xF000)  #: where LAUNCH_SECRET puts the owner's secrets
SECRET_SIZE: Final = 0xC00
NAME: Final = Gpa(MEMORY + 0x10080)  #: what its processor calls itself, private
RESULT: Final = Gpa(MEMORY + 0x11000)  #: what the guest computed, private
MESSAGE: Final = Gpa(MEMORY + 0x12000)  #: private
ROUND_KEYS: Final = Gpa(MEMORY + 0x13000)  #: the key's schedule while a message is opened, private
SHARED_PAGE: Final = Gpa(MEMORY + 0x14000)  #: this page and the next are all that others may read
SHARED: Final = range(SHARED_PAGE, SHARED_PAGE + 2 * PAGE)
SHARED_AT: Final = 0x40000000  #: linear address of the shared pages in the guest, with C=0
SEALED: Final = Gpa(SHARED_PAGE + 0x000)
LONGEST: Final = 0x600  #: bytes of text in a sealed message
BOUNCE: Final = Gpa(SHARED_PAGE + 0x800)  #: what goes to and comes from the device
PUBLISHED: Final = Gpa(SHARED_PAGE + 0xC00)  #: what the guest computed, for everybody
SHOWN: Final = Gpa(SHARED_PAGE + PAGE)  #: a page of the guest's image, for everybody
LARGEST_NUMBER: Final = 0x180000  #: of the sieve
TRANSFER: Final = 64  #: bytes that the device copies at a time

WINDOW: Final = Gpa(0x100000)  #: of the adversary's helper: what it reads and hands out
HELPER: Final = Gpa(0x1000)  #: where the helper's code goes, and where it starts

#: The secret that opens sealed messages: 16 or 32 bytes, an entry of the owner's secret table.
MESSAGE_KEY: Final = UUID("5e06fa71-8a6f-4c33-9d3e-2b40c8a17e95")

_RESET_CR0: Final = 0x6000_0010
_PROTECTED: Final = 0x11
_WHOLE: Final = 0xFFFF_FFFF
_CODE16, _DATA16 = 0x9B, 0x93
_CODE32, _DATA32 = 0xC9B, 0xC93
_LDT, _TSS = 0x82, 0x8B
_PAT: Final = 0x0007_0406_0007_0406


class Request(IntEnum):
    """What a hypervisor may ask; a request has arguments and answers of 32 bits each."""

    NOTHING = 0
    WHO = 1  #: () -> C-bit or 0, two halves of a number that nobody else knows
    COMPUTE = 2  #: (n) -> how many primes are below n
    OPEN = 3  #: () -> length; the message lies at SEALED
    GIVE_TO_DEVICE = 4  #: (1 straight from private memory, 0 through the shared page)
    TAKE_FROM_DEVICE = 5  #: (the same)
    END = 6
    SHOW = 7  #: (page of the image); it lies at SHOWN then


def reset_state() -> Vmsa:
    """Build the state of a processor out of reset: 16-bit code, 16 bytes below 4 GiB, paging off."""
    data = Segment(attributes=_DATA16, limit=0xFFFF)
    code = Segment(selector=0xF000, attributes=_CODE16, limit=0xFFFF, base=0xFFFF0000)
    return _state(code, data).replace(cr0=_RESET_CR0, rip=0xFFF0)


def flat_state(rip: int) -> Vmsa:
    """Build the state that boot protocols hand over in: flat 32-bit protected mode, paging off."""
    data = Segment(selector=0x10, attributes=_DATA32, limit=_WHOLE)
    code = Segment(selector=0x08, attributes=_CODE32, limit=_WHOLE)
    return _state(code, data).replace(cr0=_PROTECTED, rip=rip)


def _state(code: Segment, data: Segment) -> Vmsa:
    table = Segment(limit=0xFFFF)
    return Vmsa(
        es=data,
        cs=code,
        ss=data,
        ds=data,
        fs=data,
        gs=data,
        gdtr=table,
        idtr=table,
        ldtr=Segment(attributes=_LDT, limit=0xFFFF),
        tr=Segment(attributes=_TSS, limit=0xFFFF),
        g_pat=_PAT,
        rflags=2,
        dr6=0xFFFF_0FF0,
        dr7=0x400,
        mxcsr=0x1F80,
        x87_fcw=0x37F,
        xcr0=1,
    )
