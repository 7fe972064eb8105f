"""Frames between two hypervisors that know one token: who alters, repeats, drops or swaps one is found out.

    sender                                     receiver
    HELLO  nonce S                  ──>
                                    <──        HELLO  nonce R ‖ MAC
    PROOF  MAC                      ──>
    frame 0, 1, 2 …                 ──>
                                    <──        frame 0, 1, 2 …

    frame   kind (1) ‖ number (8) ‖ length (4) ‖ payload ‖ MAC (32)
    key     HMAC-SHA256(token; "cbit migrate" ‖ direction ‖ S ‖ R), one for each direction

Nothing here is secret but the token: what a guest's memory says is sealed by the secure processors.  The
channel adds what their packets do not have: that they arrive once, all, and in order.
"""

from __future__ import annotations

import hmac
import socket
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import Final, Self

from cbit.crypto.entropy import Entropy
from cbit.spec.errors import CbitError
from cbit.spec.wire import Wire, at

NONCE: Final = 32
MAC: Final = 32
TOKEN_MIN: Final = 16  #: bytes of a token
PAYLOAD_MAX: Final = 1 << 20
_LABEL: Final = b"cbit migrate"
_TO_RECEIVER: Final = b">"
_TO_SENDER: Final = b"<"
_AT_ONCE_S: Final = 0.001  #: a time-out of 0 would be none


class ChannelError(CbitError):
    """The other side, or something between, does not keep to the protocol; the message says how."""


class OtherSide(ChannelError):
    """The other side gives up; the message is its reason."""


class Kind(IntEnum):
    """Kinds of frames."""

    PAPERS = 1  #: receiver: its certificates
    START = 2  #: sender: policy, certificate, session, regions
    PACKET = 3  #: sender: where, header, ciphertext
    END = 4  #: sender: how many packets there were
    READY = 5  #: receiver: all of them are in place
    GO = 6  #: sender: the guest does not run here any more
    RUNS = 7  #: receiver: it runs here
    REFUSED = 8  #: either: the reason
    SHARED = 9  #: sender: where, a page that the guest shares with everybody, as it is
    STATE = 10  #: sender: what the guest is beside its memory


class FrameHead(Wire, size=13):
    """Head of a frame."""

    kind: int = at(0, 1)
    number: int = at(1, 8)
    length: int = at(9, 4)


class Channel:
    """One end; changes with every frame."""

    def __init__(self, link: socket.socket, *, out_key: bytes, in_key: bytes) -> None:
        self._link, self._out_key, self._in_key = link, out_key, in_key
        self._sent = self._received = 0

    @classmethod
    def connected(cls, link: socket.socket, token: bytes, entropy: Entropy) -> Self:
        """Begin as the sender.

        Raises:
            ChannelError: the other side does not know the token.
        """
        own = entropy.draw(NONCE)
        link.sendall(own)
        answer = _exactly(link, NONCE + MAC)
        other = answer[:NONCE]
        key = _key(token, _TO_SENDER, own, other)
        if not hmac.compare_digest(answer[NONCE:], hmac.digest(key, other, "sha256")):
            raise ChannelError("the other side does not know the token, or its greeting was altered")
        out_key = _key(token, _TO_RECEIVER, own, other)
        link.sendall(_proof(out_key, own))
        return cls(link, out_key=out_key, in_key=key)

    @classmethod
    def accepted(
        cls, link: socket.socket, token: bytes, entropy: Entropy, *, left: Callable[[], float] | None = None
    ) -> Self:
        """Begin as the receiver, with whoever connected.

        Args:
            link: to them.
            token: what both hosts know.
            entropy: gives the nonce.
            left: the seconds that they have left to prove that they know the token; None for the link's own
                patience with every piece that they send.

        Raises:
            ChannelError: they do not know the token, or go away.
            TimeoutError: they take too long.
        """
        other, own = _exactly(link, NONCE, left), entropy.draw(NONCE)
        key, in_key = _key(token, _TO_SENDER, other, own), _key(token, _TO_RECEIVER, other, own)
        link.sendall(own + hmac.digest(key, own, "sha256"))
        if not hmac.compare_digest(_exactly(link, MAC, left), _proof(in_key, other)):
            raise ChannelError("the other side does not know the token, or its proof was altered")
        return cls(link, out_key=key, in_key=in_key)

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send a frame."""
        head = bytes(FrameHead(kind=kind, number=self._sent, length=len(payload)))
        self._sent += 1
        self._link.sendall(head + payload + hmac.digest(self._out_key, head + payload, "sha256"))

    def receive(self, *kinds: Kind) -> tuple[Kind, bytes]:
        """Take the next frame, which must be of one of these kinds.

        Raises:
            ChannelError: the end of the connection, a frame that was altered, repeated, dropped or put in
                another place, or one that does not belong here.
            OtherSide: the other side gives up.
        """
        raw = _exactly(self._link, FrameHead.SIZE)
        head, wanted = FrameHead.parse(raw), self._received
        if head.length > PAYLOAD_MAX:
            raise ChannelError(f"frame {wanted} was altered: it announces {head.length} bytes")
        payload, mac = _exactly(self._link, head.length), _exactly(self._link, MAC)
        if not hmac.compare_digest(mac, hmac.digest(self._in_key, raw + payload, "sha256")):
            raise ChannelError(f"frame {wanted} was altered: its MAC does not match")
        if head.number < wanted:
            raise ChannelError(f"frame {head.number} was repeated, {wanted} is next")
        if head.number > wanted:
            raise ChannelError(f"frame {wanted} was dropped, or comes later: {head.number} came in its place")
        self._received += 1
        if head.kind == Kind.REFUSED:
            raise OtherSide(payload.decode(errors="replace"))
        if head.kind not in kinds:
            names = " or ".join(kind.name for kind in kinds)
            raise ChannelError(f"frame {wanted} is of kind {head.kind}, {names} was to come")
        return Kind(head.kind), payload

    def refuse(self, reason: str) -> None:
        """Tell the other side why this one gives up, and let it finish what it was saying.

        Who closes a connection with unread data in it takes back what was said last.
        """
        with suppress(OSError):
            self.send(Kind.REFUSED, reason.encode())
            self._link.shutdown(socket.SHUT_WR)
            while self._link.recv(1 << 16):
                pass


def _key(token: bytes, direction: bytes, sender: bytes, receiver: bytes) -> bytes:
    if len(token) < TOKEN_MIN:
        raise ValueError(f"a token of {len(token)} bytes can be guessed: {TOKEN_MIN} at least")
    return hmac.digest(token, _LABEL + direction + sender + receiver, "sha256")


def _proof(key: bytes, nonce: bytes) -> bytes:
    # No frame has this MAC: none is of the kind that the label's first letter would be.
    return hmac.digest(key, _LABEL + nonce, "sha256")


def _exactly(link: socket.socket, length: int, left: Callable[[], float] | None = None) -> bytes:
    data = bytearray()
    while len(data) < length:
        if left is not None:
            link.settimeout(max(left(), _AT_ONCE_S))
        piece = link.recv(min(length - len(data), 1 << 16))
        if not piece:
            raise ChannelError("the connection ended in the middle")
        data += piece
    return bytes(data)
