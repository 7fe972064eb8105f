"""What the execution engine refuses, one class a fact."""

from __future__ import annotations

from cbit.spec.errors import CbitError


class NoEngine(CbitError):
    """This computer cannot execute guests: platform, unicorn or C compiler; the message says which."""


class LayoutError(NoEngine):
    """The unicorn library is not laid out as the engine must be able to prove.

    Attributes:
        field: what could not be found, or not unambiguously.
    """

    def __init__(self, field: str, why: str) -> None:
        supported = "supported are the wheels 2.1.1 to 2.1.4 for Linux on x86-64"
        super().__init__(f"unicorn's {field}: {why}; {supported}")
        self.field = field


class EngineFault(CbitError):
    """The engine itself failed: an error in cbit or in unicorn, never something that a guest asked for."""
