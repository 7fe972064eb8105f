"""Any order of accesses and flushes, against a model that shares no code with the memory system."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cbit.crypto.memory_modes import Mode, Tweak
from cbit.memory.cache import STREAM
from cbit.memory.dma import DmaPort
from cbit.spec.address import LINE, PAGE, Spa
from cbit.spec.key_id import HOST, UNENCRYPTED, KeyId, guest
from memory.worlds import ALICE, BOB, World

C_BIT = 40
SIZE = STREAM + 4 * PAGE
KEY_IDS = (UNENCRYPTED, HOST, ALICE, BOB)
STRANGER = guest(99)  # a slot that nobody loaded

key_ids = st.sampled_from(KEY_IDS)
near = st.integers(0, 4 * PAGE)  # most accesses meet each other
lengths = st.sampled_from([1, 15, 16, 64, 100, PAGE, PAGE + 70, STREAM - 1, STREAM, STREAM + 333])


class PlainCipher:
    """The engine's modes from their definition (§9), one page at a time, on `cryptography` alone."""

    def __init__(self, world: World, key_id: KeyId) -> None:
        self._key = world.key(key_id).material()
        self._mode = world.mode

    def encrypt(self, page: int, plain: bytes) -> bytes:
        return self._run(page, plain, encrypt=True)

    def decrypt(self, page: int, raw: bytes) -> bytes:
        return self._run(page, raw, encrypt=False)

    def _run(self, page: int, data: bytes, *, encrypt: bool) -> bytes:
        if self._mode is Mode.XTS:
            return ecb(self._key, modes.XTS((page // PAGE).to_bytes(16, "little")), data, encrypt=encrypt)
        tweak = Tweak.zen1()
        mask = b"".join(tweak.at(Spa(at)) for at in range(page, page + PAGE, 16))
        before = encrypt or self._mode is Mode.XEX
        after = not encrypt or self._mode is Mode.XEX
        data = ecb(self._key, modes.ECB(), xor(data, mask) if before else data, encrypt=encrypt)
        return xor(data, mask) if after else data


class Model:
    """DRAM, and copies of its pages by tag: a page of plaintext and the numbers of its dirty lines."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ciphers = {key_id: PlainCipher(world, key_id) for key_id in KEY_IDS if key_id != UNENCRYPTED}
        self.dram = bytearray(SIZE)
        self.copies: dict[tuple[int, KeyId], tuple[bytearray, set[int]]] = {}  # oldest first

    def engine(self, key_id: KeyId) -> PlainCipher | None:
        return self.ciphers.get(HOST if key_id == UNENCRYPTED and self.world.tsme else key_id)

    def page_of(self, page: int, key_id: KeyId) -> bytes:
        cipher, raw = self.engine(key_id), bytes(self.dram[page : page + PAGE])
        return cipher.decrypt(page, raw) if cipher else raw

    def store_lines(self, page: int, key_id: KeyId, contents: bytes, lines: set[int]) -> None:
        cipher = self.engine(key_id)
        raw = cipher.encrypt(page, contents) if cipher else contents
        for line in lines:
            part = slice(line * LINE, (line + 1) * LINE)
            self.dram[page + part.start : page + part.stop] = raw[part]

    def leave(self, tag: tuple[int, KeyId], *, write_back: bool = True) -> bool:
        contents, dirty = self.copies.pop(tag)
        if write_back and dirty:
            self.store_lines(*tag, bytes(contents), dirty)
        return bool(dirty)

    def leave_where(self, condition: Callable[[int, KeyId], bool], *, write_back: bool = True) -> int:
        tags = [tag for tag in self.copies if condition(*tag)]
        return sum([self.leave(tag, write_back=write_back) for tag in tags])

    def hold(self, page: int, key_id: KeyId, *, whole: bool = False) -> tuple[bytearray, set[int]]:
        copy = self.copies.pop((page, key_id), None)
        if copy is None:
            self.make_coherent(page, key_id)
            if len(self.copies) == self.world.capacity // PAGE:
                self.leave(next(iter(self.copies)))
            copy = (bytearray(PAGE if whole else self.page_of(page, key_id)), set())
        self.copies[page, key_id] = copy
        return copy

    def make_coherent(self, page: int, key_id: KeyId) -> None:
        if self.world.coherent:
            self.leave_where(lambda other_page, other: other_page == page and other != key_id)

    def read(self, spa: int, length: int, key_id: KeyId, *, cached: bool) -> bytes:
        out = bytearray()
        for page, start, stop in pieces(spa, length):
            if cached:
                out += self.hold(page, key_id)[0][start:stop]
            else:
                self.make_coherent(page, key_id)
                copy = self.copies.get((page, key_id))
                out += (copy[0] if copy else self.page_of(page, key_id))[start:stop]
        return bytes(out)

    def write(self, spa: int, data: bytes, key_id: KeyId, *, cached: bool) -> None:
        done = 0
        for page, start, stop in pieces(spa, len(data)):
            part = data[done : done + stop - start]
            done += len(part)
            lines = set(range(start // LINE, (stop - 1) // LINE + 1))
            if cached:
                contents, dirty = self.hold(page, key_id, whole=len(part) == PAGE)
                contents[start:stop] = part
                dirty |= lines
            else:
                self.make_coherent(page, key_id)
                if (page, key_id) in self.copies:
                    self.leave((page, key_id), write_back=len(part) != PAGE)
                merged = bytearray(self.page_of(page, key_id))
                merged[start:stop] = part
                self.store_lines(page, key_id, bytes(merged), lines)

    def flush(self, spa: int, length: int) -> int:
        pages = {page for page, _, _ in pieces(spa, length)}
        return self.leave_where(lambda page, _: page in pages)


class OneKeyPerAsid(RuleBasedStateMachine):
    """Whatever the order of stores and flushes, no ASID ever reads another ASID's plaintext.

    And what DRAM holds of a private page is never the plaintext.  Every store is made of tokens that name the
    key id that stored it, so plaintext is recognised wherever it turns up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @initialize(
        mode=st.sampled_from(list(Mode)), coherent=st.booleans(), tsme=st.booleans(), pages=st.integers(1, 6)
    )
    def power_on(self, mode: Mode, pages: int, *, coherent: bool, tsme: bool) -> None:
        self.world = World(size=SIZE, mode=mode, capacity=pages * PAGE, coherent=coherent, tsme=tsme)
        self.model = Model(self.world)

    def tokens(self, key_id: KeyId, length: int) -> bytes:
        self.count += 1
        return (token(key_id) + b"%08d" % self.count) * (length // 16 + 1)

    def compare(self, expected: bytes, seen: bytes, key_id: KeyId) -> None:
        assert expected == seen
        reader = HOST if self.world.tsme and key_id == UNENCRYPTED else key_id
        for other in (HOST, ALICE, BOB):
            assert other == reader or token(other) not in seen, f"key id {key_id} reads what {other} stored"

    @rule(spa=near, length=lengths, key_id=key_ids)
    def store(self, spa: int, length: int, key_id: KeyId) -> None:
        data = self.tokens(key_id, length)[: min(length, SIZE - spa)]
        self.world.cache.write(Spa(spa), data, key_id)
        self.model.write(spa, data, key_id, cached=len(data) < STREAM)

    @rule(page=st.integers(0, 4), key_id=key_ids)
    def store_a_page(self, page: int, key_id: KeyId) -> None:
        data = self.tokens(key_id, PAGE)[:PAGE]
        self.world.cache.write(Spa(page * PAGE), data, key_id)
        self.model.write(page * PAGE, data, key_id, cached=True)

    @rule(spa=near, length=lengths, key_id=key_ids)
    def load(self, spa: int, length: int, key_id: KeyId) -> None:
        length = min(length, SIZE - spa)
        seen = self.world.cache.read(Spa(spa), length, key_id)
        self.compare(self.model.read(spa, length, key_id, cached=length < STREAM), seen, key_id)

    @rule(spa=near, length=lengths, key_id=key_ids)
    def load_into_a_buffer(self, spa: int, length: int, key_id: KeyId) -> None:
        buffer = bytearray(min(length, SIZE - spa))
        self.world.cache.read_into(Spa(spa), memoryview(buffer), key_id)
        self.compare(self.model.read(spa, len(buffer), key_id, cached=False), bytes(buffer), key_id)

    @rule(spa=near, length=lengths, c=st.booleans())
    def dma_read(self, spa: int, length: int, *, c: bool) -> None:
        length, key_id = min(length, SIZE - spa), HOST if c else UNENCRYPTED
        seen = DmaPort(self.world.cache, c_bit=C_BIT).read(spa | c << C_BIT, length)
        self.compare(self.model.read(spa, length, key_id, cached=False), seen, key_id)

    @rule(spa=near, length=lengths, c=st.booleans())
    def dma_write(self, spa: int, length: int, *, c: bool) -> None:
        key_id = HOST if c else UNENCRYPTED
        data = self.tokens(key_id, length)[: min(length, SIZE - spa)]
        DmaPort(self.world.cache, c_bit=C_BIT).write(spa | c << C_BIT, data)
        self.model.write(spa, data, key_id, cached=False)

    @rule()
    def wbinvd(self) -> None:
        assert self.model.leave_where(lambda *_: True) == self.world.cache.wbinvd()

    @rule()
    def invd(self) -> None:
        dropped = len(self.model.copies)
        self.model.leave_where(lambda *_: True, write_back=False)
        assert dropped == self.world.cache.invd()

    @rule(spa=near, key_id=key_ids)
    def clflush(self, spa: int, key_id: KeyId) -> None:
        page, coherent = spa & -PAGE, self.world.coherent
        written = self.model.leave_where(lambda at, tag: at == page and (coherent or tag == key_id))
        assert written == self.world.cache.clflush(Spa(spa), key_id)

    @rule(spa=near, asid=st.sampled_from([1, 2, 3]))
    def vmpage_flush(self, spa: int, asid: int) -> None:
        written = self.model.leave_where(lambda at, tag: at == spa & -PAGE and tag == asid)
        assert written == self.world.cache.vmpage_flush(Spa(spa), asid)

    @rule(spa=near, length=lengths)
    def fabric_flush(self, spa: int, length: int) -> None:
        length = min(length, SIZE - spa)
        assert self.model.flush(spa, length) == self.world.cache.flush(Spa(spa), length)

    @rule(spa=near, length=lengths, key_id=key_ids)
    def secure_processor_reads(self, spa: int, length: int, key_id: KeyId) -> None:
        length = min(length, SIZE - spa)
        self.model.flush(spa, length)
        seen = self.world.fabric.read(Spa(spa), length, key_id)
        self.compare(self.model.read(spa, length, key_id, cached=False), seen, key_id)

    @rule(spa=near, length=lengths, key_id=key_ids)
    def secure_processor_writes(self, spa: int, length: int, key_id: KeyId) -> None:
        data = self.tokens(key_id, length)[: min(length, SIZE - spa)]
        self.world.fabric.write(Spa(spa), data, key_id)
        self.model.flush(spa, len(data))
        self.model.write(spa, data, key_id, cached=False)

    @rule(block=st.integers(0, 300), blocks=st.integers(1, 600), asid=st.sampled_from([ALICE, BOB]))
    def launch(self, block: int, blocks: int, asid: KeyId) -> None:
        spa, length = block * 16, blocks * 16
        chunks: list[bytes] = []
        self.world.fabric.encrypt_in_place(
            Spa(spa), length, key_id=asid, show=lambda chunk: chunks.append(bytes(chunk))
        )
        shown = b"".join(chunks)
        self.model.flush(spa, length)
        self.compare(self.model.read(spa, length, UNENCRYPTED, cached=False), shown, UNENCRYPTED)
        self.model.write(spa, shown, asid, cached=False)
        if token(HOST) in shown:
            # Under TSME the host's data is a lawful source.  The guest owns it now: new tokens say so.
            self.secure_processor_writes(spa, length, asid)

    @rule(spa=near, length=lengths)
    def an_unloaded_slot_reads_garbage(self, spa: int, length: int) -> None:
        length = min(length, SIZE - spa)
        self.model.flush(spa, length)
        seen = self.world.fabric.read(Spa(spa), length, STRANGER)
        assert not any(token(key_id) in seen for key_id in KEY_IDS)

    @invariant()
    def dram_and_copies_are_as_the_model_says(self) -> None:
        if not hasattr(self, "world"):
            return
        raw = self.world.probe.read(Spa(0), SIZE)
        assert self.model.dram == raw
        for key_id in (HOST, ALICE, BOB):
            assert token(key_id) not in raw, f"plaintext of key id {key_id} is in DRAM"
        held = [(info.page, info.key_id, info.dirty_lines) for info in self.world.cache.snapshot()]
        assert [(*tag, len(dirty)) for tag, (_, dirty) in self.model.copies.items()] == held


TestOneKeyPerAsid = OneKeyPerAsid.TestCase
TestOneKeyPerAsid.settings = settings(stateful_step_count=40)


@pytest.mark.parametrize("mode", list(Mode), ids=str)
def test_the_model_would_notice_a_leak(mode: Mode) -> None:
    machine = OneKeyPerAsid()
    machine.power_on(mode=mode, pages=2, coherent=False, tsme=False)
    machine.store_a_page(page=1, key_id=ALICE)
    with pytest.raises(AssertionError, match="key id 2 reads what 1 stored"):
        machine.compare(stored := machine.tokens(ALICE, 64), stored, BOB)
    with pytest.raises(AssertionError, match="assert"):
        machine.compare(stored, stored[::-1], ALICE)
    machine.world.probe.write(Spa(0), machine.tokens(ALICE, 16))
    machine.model.dram[:] = machine.world.probe.read(Spa(0), SIZE)
    with pytest.raises(AssertionError, match="plaintext of key id 1 is in DRAM"):
        machine.dram_and_copies_are_as_the_model_says()


def token(key_id: KeyId) -> bytes:
    return b"<id%4d>" % key_id


def pieces(spa: int, length: int) -> list[tuple[int, int, int]]:
    """Cut a range into (page, start, stop) within pages."""
    pages = range(spa // PAGE, -(-(spa + length) // PAGE))
    return [(p * PAGE, max(spa - p * PAGE, 0), min(spa + length - p * PAGE, PAGE)) for p in pages]


def ecb(key: bytes, mode: modes.ECB | modes.XTS, data: bytes, *, encrypt: bool) -> bytes:
    cipher = Cipher(algorithms.AES(key), mode)
    context = cipher.encryptor() if encrypt else cipher.decryptor()
    return context.update(data)


def xor(a: bytes, b: bytes) -> bytes:
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).to_bytes(len(a), "little")
