"""The platform's certificates lie in the state folder, as they are now.

    spi/sev.nv  ── sealed, the identity ──>  certs/pdh.cert pek.cert oca.cert      for everybody to read

The manufacturer's certificates beside them never change; these do, with PEK_GEN, PDH_GEN, PEK_CERT_IMPORT and
PLATFORM_RESET.  An identity that the host keeps (INIT_EX) is the host's to publish.
"""

from __future__ import annotations

from typing import Final

from cbit.crypto.entropy import Entropy
from cbit.machine.state_folder import StateFolder
from cbit.secure_processor.fuses import Fuses
from cbit.secure_processor.nv_store import NvState, NvStore, read_file, replace_file
from cbit.trace import Trace

PART: Final = "machine"
NAMES: Final = ("pdh", "pek", "oca")


class PublishedStore(NvStore):
    """The firmware's store in flash; whatever identity it holds has its certificates published.

    They are written after the store, so somebody who is killed in between leaves older ones: the next INIT
    puts them right.  That they cannot be written is no reason to refuse a command; the trace says so.
    """

    def __init__(self, state: StateFolder, fuses: Fuses, entropy: Entropy, trace: Trace) -> None:
        super().__init__(state.nv_path, fuses, entropy)
        self._certs, self._trace = state.certs, trace

    def load(self) -> NvState | None:
        """Read the state, as ``NvStore.load`` does."""
        state = super().load()
        self._publish(state)
        return state

    def save(self, state: NvState) -> None:
        """Replace the state, as ``NvStore.save`` does."""
        super().save(state)
        self._publish(state)

    def erase(self) -> None:
        """Empty the store, as ``NvStore.erase`` does: no certificates until the next INIT."""
        super().erase()
        self._publish(None)

    def _publish(self, state: NvState | None) -> None:
        for name in NAMES:
            path = self._certs / f"{name}.cert"
            content = b"" if state is None else getattr(state, f"{name}_cert")
            try:
                if not content:
                    path.unlink(missing_ok=True)
                elif not path.exists() or read_file(path) != content:
                    # What a power cut takes is written again at the next INIT: nobody has to wait for a disk.
                    replace_file(path, content, sync=False)
            except OSError as error:
                self._trace.emit(PART, "certificates", f"{path}: {error.strerror}: not published")
