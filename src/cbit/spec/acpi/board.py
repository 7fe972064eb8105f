"""Where the devices of the guest's board answer: ports and interrupt lines that tables and devices share."""

from __future__ import annotations

from typing import Final

PIT_LINE: Final = 0
SERIAL_BASE: Final = 0x3F8
SERIAL_LINE: Final = 4
RTC_LINE: Final = 8
RTC_CENTURY: Final = 0x32  #: index of the century in CMOS memory

PM1A_EVENT: Final = 0x600
PM1A_CONTROL: Final = 0x604
PM_TIMER: Final = 0x608
SCI: Final = 9
SLEEP_OFF: Final = 5  #: SLP_TYP of S5
RESET_PORT: Final = 0xCF9
RESET_VALUE: Final = 0x06

PCI_CONFIG_ADDRESS: Final = 0xCF8
PCI_CONFIG_DATA: Final = 0xCFC
PCI_LINES: Final = (10, 11)
PCI_SLOTS: Final = 32


def pci_line(slot: int) -> int:
    """The interrupt line at which a slot's pin INTA# ends."""
    return PCI_LINES[slot % len(PCI_LINES)]
