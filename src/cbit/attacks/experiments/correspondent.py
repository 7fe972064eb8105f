"""The built-in guest as several attacks meet it: with a passphrase, and a key that opens letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from cbit.attacks.lab.built_in import BuiltIn
from cbit.attacks.lab.scene import Facts, Scene
from cbit.attacks.lab.stand import Stand
from cbit.attacks.victim import SAYS, TEXT, secret_table
from cbit.crypto.key import Key
from cbit.guest.builtin.image import image
from cbit.guest.builtin.interface import SEALED, SECRET, Request
from cbit.guest.builtin.sealed import KEY_BYTES, seal
from cbit.spec.policy import Policy

_PASSPHRASE_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class Owner:
    """What the guest's owner gives it.

    Attributes:
        passphrase: for its disk.
        key: for its letters.
    """

    passphrase: bytes
    key: Key

    @classmethod
    def of(cls, stand: Stand, *, key_bytes: int = KEY_BYTES) -> Self:
        """Draw both."""
        return cls(stand.entropy.draw(_PASSPHRASE_SIZE), Key(stand.entropy.draw(key_bytes)))

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """What nobody else should read."""
        return self.passphrase, self.key.material()

    @property
    def table(self) -> bytes:
        """Both, as they are injected."""
        return secret_table(self.passphrase, self.key)

    def gave(self, guest: BuiltIn) -> bool:
        """Whether the guest holds them."""
        return guest.peek(SECRET, len(self.table)) == self.table


def places(facts: Facts, step: int) -> range:
    """Where the secrets lie, piece by piece: guest physical, and linear in the guest."""
    start = facts.number("secrets_at")
    return range(start, start + facts.number("secrets_size"), step)


def correspondent(stand: Stand, *, policy: Policy = Policy.NODBG) -> Scene:
    """Start the built-in guest with its owner's two secrets; it has opened a letter."""
    return with_letters(stand, policy=policy)[0]


def with_letters(stand: Stand, *, policy: Policy = Policy.NODBG) -> tuple[Scene, BuiltIn]:
    """Do the same, and return the guest as well; the letter lies where it was delivered."""
    owner = Owner.of(stand)
    guest = stand.built_in(owner.table, policy=policy)
    guest.vm.load(SEALED, seal(owner.key, TEXT, entropy=stand.entropy))
    guest.small.ask(Request.OPEN)
    facts = Facts({"image": image(), "secrets_at": SECRET, "secrets_size": len(owner.table)})
    opened = guest.small.console.lines[-1] == SAYS + TEXT.decode()
    return Scene(owner.secrets, facts, guest, planted=owner.gave(guest), serves=opened), guest


def opens_letters(stand: Stand) -> bool:
    """Let another such guest, on the same machine, open a letter of its own owner's."""
    scene, guest = with_letters(stand)
    guest.end()
    return scene.planted and scene.serves
