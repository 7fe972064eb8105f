"""Passwords, and the end of a service that hands its secret out: what several victims have in common."""

from __future__ import annotations

from typing import Final

from cbit.attacks.lab.guest import SECRET, SHARED, VIEW
from cbit.spec.address import PAGE

ACCOUNT: Final = 0x20000  #: where the password that is valid now lies
#: Whether a request is that password: flags as for "equal".
IS_PASSWORD: Final = f"""
    movups xmm0, [{VIEW + SHARED + 8:#x}]
    movups xmm1, [{ACCOUNT:#x}]
    pcmpeqb xmm0, xmm1
    pmovmskb eax, xmm0
    cmp eax, 0xFFFF
"""
#: The first one, behind the label `first`.
FIRST_PASSWORD: Final = b"password of 2019"

#: Labels `serve` and `refuse`; both go back to the label `again` of the program that ends with this.
ANSWERS: Final = f"""
serve:
    movups xmm0, [{SECRET:#x}]
    movups xmm1, [{SECRET + 16:#x}]
    jmp answer
refuse:
    xorps xmm0, xmm0
    xorps xmm1, xmm1
answer:
    movups [{VIEW + SHARED + PAGE:#x}], xmm0
    movups [{VIEW + SHARED + PAGE + 16:#x}], xmm1
    jmp again
"""
