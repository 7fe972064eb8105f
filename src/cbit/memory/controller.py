"""The memory controller: key slots, and the AES engine between the chip and the bus.

      request = (system physical address without C-bit, data, key id)
      key id 0 -> no AES;  1 … 1022 -> a guest's slot (its ASID);  1023 -> the host's (SME, TSME) slot

A wrong key is no error here: the engine returns what AES returns (§4.5), and there is no integrity
(§1 rule 3).
Paper: memory-encryption.md §1, §4.1 (TSME), §4.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NoReturn

from cbit.crypto.entropy import Entropy
from cbit.crypto.key import Key
from cbit.crypto.memory_modes import KEY_BYTES, Inside, MemoryCipher, Mode, Tweak, memory_cipher
from cbit.memory.bus import Bus
from cbit.memory.latency import LineCounts
from cbit.memory.physical import Data
from cbit.spec.address import LINE, Spa
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId
from cbit.trace import SILENT, Trace


class MemoryController:
    """Encrypts on the way to DRAM and decrypts on the way in.

    Mutable: key slots and counters.  A key goes in and never comes out: a slot is a cipher context.

    MODEL CHOICE: a slot that nobody loaded holds a random key drawn since the last reset, so using it gives
    garbage, as hardware would (the dossier does not say what an unloaded slot contains).

    Attributes:
        tsme: transparent SME: firmware sets it before the cores run (§4.1).
        counts: DRAM lines moved, for the latency model.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        mode: Mode,
        tweak: Tweak | None,
        entropy: Entropy,
        trace: Trace = SILENT,
        tsme: bool = False,
    ) -> None:
        """Power the controller on with unknown keys in every slot.

        Args:
            bus: the way to DRAM.
            mode: the tweaked AES mode of the engine.
            tweak: the address constants of xe and xex; None for xts.
            entropy: where the unknown keys come from.
            trace: who hears of keys being loaded.
            tsme: encrypt what would otherwise be unencrypted.
        """
        self._bus = bus
        self._mode = mode
        self._tweak = tweak
        self._inside = Inside(tweak)
        self._entropy = entropy
        self._trace = trace
        self._slots: dict[KeyId, MemoryCipher] = {}
        self._loaded: set[KeyId] = set()
        self.size: Final = bus.size  #: bytes of DRAM
        self.tsme = tsme
        self.counts = LineCounts()

    def __repr__(self) -> str:
        return f"MemoryController({self._mode}, {len(self._loaded)} keys loaded, tsme={self.tsme})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a memory controller holds keys: it is neither pickled nor copied")

    def load_key(self, key_id: KeyId, key: Key) -> None:
        """Put a key in its slot; the bytes are not kept.

        Reached through `FabricPort` only: no x86 software takes part (§1 rule 4).

        Raises:
            ValueError: no such slot, or a key of another size than the mode's.
        """
        _check_slot(key_id)
        if key_id == UNENCRYPTED:
            raise ValueError("key id 0 means unencrypted: it has no slot")
        if len(key) != KEY_BYTES[self._mode]:
            bits = 8 * KEY_BYTES[self._mode]
            raise ValueError(f"{self._mode} takes {bits} bits of key, not {8 * len(key)}")
        self._slots[key_id] = memory_cipher(self._mode, key, self._tweak, inside=self._inside)
        self._loaded.add(key_id)
        if self._trace.watched("memory.controller"):
            self._trace.emit("memory.controller", "key loaded", key_id=key_id, fingerprint=key.fingerprint())

    def has_key(self, key_id: KeyId) -> bool:
        """Say whether the slot was loaded since the last reset."""
        return key_id in self._loaded

    def reset(self, *, tweak: Tweak | None = None) -> None:
        """Lose every key; DRAM stays as it is.

        Nothing else empties a slot: DEACTIVATE leaves the key where it is (§8 rule 7).  The caches must have
        lost their contents before (INVD), as at a real reset.

        Args:
            tweak: fresh address constants (Zen 2 and later draw them at each boot, §9); None keeps the old.
        """
        self._slots.clear()
        self._loaded.clear()
        if tweak is not None:
            self._tweak, self._inside = tweak, Inside(tweak)
        self._trace.emit("memory.controller", "reset: all keys lost")

    def check(self, spa: int, length: int, key_id: KeyId) -> None:
        """Refuse a request that cannot be served, before anything moves.

        Raises:
            AddressError: the range leaves DRAM.
            ValueError: no such key id.
        """
        if spa < 0 or length < 0 or spa + length > self.size:
            self._bus.check(spa, length)
        if not UNENCRYPTED <= key_id <= HOST:
            _check_slot(key_id)

    def read(self, spa: Spa, length: int, key_id: KeyId) -> bytes:
        """Read any range through the engine (errors as `check`)."""
        self.check(spa, length, key_id)
        start = spa & -LINE
        end = -(-(spa + length) // LINE) * LINE
        cipher = self._engine(key_id)
        wire = self._lines_in(Spa(start), end - start, encrypted=cipher is not None)
        if cipher is None:
            return bytes(wire[spa - start : spa - start + length])
        plain = cipher.decrypt(Spa(start), wire)
        return plain if len(plain) == length else plain[spa - start : spa - start + length]

    def read_into(self, spa: Spa, out: memoryview, key_id: KeyId) -> None:
        """Read any range through the engine into ``out``; whole lines without a copy (errors as `check`)."""
        self.check(spa, len(out), key_id)
        if spa % LINE or len(out) % LINE:
            out[:] = self.read(spa, len(out), key_id)
            return
        cipher = self._engine(key_id)
        wire = self._lines_in(spa, len(out), encrypted=cipher is not None)
        if cipher is None:
            out[:] = wire
        else:
            cipher.decrypt(spa, wire, out=out)

    def look(self, spa: Spa, room: memoryview, key_id: KeyId) -> memoryview:
        """Read as much as ``room`` holds: into it, or, whole lines without encryption, where they lie.

        The latter is a window onto the wire, to be used at once (errors as `check`).
        """
        if self._engine(key_id) is not None or spa % LINE or len(room) % LINE:
            self.read_into(spa, room, key_id)
            return room
        self.check(spa, len(room), key_id)
        return self._lines_in(spa, len(room), encrypted=False)

    def write(self, spa: Spa, data: Data, key_id: KeyId) -> None:
        """Write any range through the engine; partial lines are read and merged (errors as `check`)."""
        self.check(spa, len(data), key_id)
        if not (spa | len(data)) % LINE:  # whole lines, as the cache and the secure processor's chunks are
            self._lines_out(spa, memoryview(data).cast("B"), self._engine(key_id))
            return
        if spa % LINE + len(data) <= LINE:  # within one line
            self._merge(spa, data, key_id)
            return
        data = memoryview(data).cast("B")
        end = spa + len(data)
        body = min(-(-spa // LINE) * LINE, end)
        tail = max(end // LINE * LINE, body)
        self._merge(spa, data[: body - spa], key_id)
        self._lines_out(Spa(body), data[body - spa : tail - spa], self._engine(key_id))
        self._merge(Spa(tail), data[tail - spa :], key_id)

    def write_parts(
        self, spa: Spa, data: memoryview, parts: Sequence[tuple[int, int]], key_id: KeyId
    ) -> None:
        """Write parts of a range, (start, stop) in whole lines, in one pass of the engine; the rest stays.

        The wires see, and the counters count, as if each part were written by itself (errors as `check`).
        """
        self.check(spa, len(data), key_id)
        cipher = self._engine(key_id)
        wire = data if cipher is None else memoryview(cipher.encrypt(spa, data))
        lines = sum(stop - start for start, stop in parts) // LINE
        self.counts.count(lines, encrypted=cipher is not None, write=True)
        self._bus.write_parts(spa, wire, parts)

    def _merge(self, spa: Spa, part: Data, key_id: KeyId) -> None:
        if not part:
            return
        start, cipher = Spa(spa & -LINE), self._engine(key_id)
        wire = self._lines_in(start, LINE, encrypted=cipher is not None)
        line = bytearray(wire if cipher is None else cipher.decrypt(start, wire))
        line[spa - start : spa - start + len(part)] = part
        self._lines_out(start, line, cipher)

    def _lines_in(self, spa: Spa, length: int, *, encrypted: bool) -> memoryview:
        self.counts.count(length // LINE, encrypted=encrypted, write=False)
        return self._bus.lines(spa, length)

    def _lines_out(self, spa: Spa, data: bytearray | memoryview, cipher: MemoryCipher | None) -> None:
        if not data:
            return
        self.counts.count(len(data) // LINE, encrypted=cipher is not None, write=True)
        if cipher is None:
            self._bus.write(spa, data)
            return
        # The engine's target never holds anything but AES output, so it may be the cells themselves.
        self._bus.write_by(spa, len(data), lambda wire: cipher.encrypt(spa, data, out=wire))

    def _engine(self, key_id: KeyId) -> MemoryCipher | None:
        """Return the cipher in the path of ``key_id``, or None for none.

        MODEL CHOICE (§4.1): TSME puts the host's key where there would be none, and leaves guests' alone.
        This is the only place that knows.
        """
        if key_id == UNENCRYPTED:
            if not self.tsme:
                return None
            key_id = HOST
        cipher = self._slots.get(key_id)
        if cipher is None:
            unknown = Key(self._entropy.draw(KEY_BYTES[self._mode]))
            cipher = memory_cipher(self._mode, unknown, self._tweak, inside=self._inside)
            self._slots[key_id] = cipher
        return cipher


def _check_slot(key_id: KeyId) -> None:
    if not UNENCRYPTED <= key_id <= HOST:
        raise ValueError(f"key id {key_id}: the controller has slots 0 … {HOST}")
