"""What the owner's half offers to programs has types and words, all of it, and type checkers are told so."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, assert_type

import cbit
import cbit.owner
from cbit.owner import secret, vmsa
from cbit.owner.explain import Digest, Explanation, explain
from cbit.owner.measure import Expectation, Image, Kernel, Launch, Mode, Step, expect
from cbit.owner.session import Measuring, Session, Trusted
from cbit.owner.validate.facts import Evidence, of_snp_report
from cbit.owner.validate.wishes import Wishes, read_wishes
from cbit.owner.verify.chain import Chain, read_chain
from cbit.owner.verify.report import VerifiedReport, verify_report
from cbit.owner.verify.snp_chain import Endorser, assemble_snp, certificates_of, crls_of, verify_snp_chain
from cbit.owner.verify.verdict import VerifiedPlatform, verify_chain
from cbit.owner.vmsa import Vcpus
from cbit.spec.snp_report import SnpReport


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(cbit.owner.__path__, "cbit.owner."):
        yield importlib.import_module(found.name)


def own(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Give the public functions and classes that a module defines, and the public methods of the latter."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
            continue
        if isinstance(value, type):
            yield f"{module.__name__}.{name}", value
            for method, body in vars(value).items():
                plain = getattr(body, "__func__", body)
                plain = getattr(plain, "fget", None) or getattr(plain, "func", plain)
                if not method.startswith("_") and isinstance(plain, FunctionType):
                    yield f"{module.__name__}.{name}.{method}", plain
        elif isinstance(value, FunctionType):
            yield f"{module.__name__}.{name}", value


def untyped(function: FunctionType) -> Iterator[str]:
    signature = inspect.signature(function)
    for name, parameter in signature.parameters.items():
        if parameter.annotation is inspect.Parameter.empty and name not in {"self", "cls"}:
            yield name
    if signature.return_annotation is inspect.Signature.empty:
        yield "return"


def test_type_checkers_are_told_that_there_are_types() -> None:
    assert (Path(cbit.__file__).parent / "py.typed").is_file()  # PEP 561


def test_every_public_name_has_words_and_types() -> None:
    found = dict(pair for module in modules() for pair in own(module))
    assert len(found) > 200
    assert [] == [name for name, value in found.items() if not inspect.getdoc(value)]
    functions = {name: value for name, value in found.items() if isinstance(value, FunctionType)}
    assert {} == {name: missing for name, value in functions.items() if (missing := [*untyped(value)])}


def test_every_exported_name_is_there() -> None:
    for module in modules():
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{module.__name__}.{name}"


def a_program(folder: Path, raw: bytes, wishes: bytes) -> None:
    """What a program may write; never run, and read by the type checker with all its strictness."""
    platform = assert_type(verify_chain(assert_type(read_chain([folder]), Chain)), VerifiedPlatform)
    measuring = assert_type(Session.open(platform, policy=1), Measuring)
    trusted = assert_type(measuring.dangerously_trust(raw), Trusted)
    assert_type(trusted.seal(secret.raw(raw)), tuple[bytes, bytes])

    launch = Launch(
        mode=Mode.SNP,
        image=Image(raw),
        kernel=Kernel(kernel=raw, cmdline="quiet"),
        vcpus=Vcpus(count=4, signature=0x00A00F11),
    )
    assert_type(launch.digest(), bytes)
    assert_type(launch.unusable(), list[str])
    assert_type(launch.steps(), tuple[Step, ...])
    assert_type(expect(Mode.SEV, raw), Expectation)
    assert_type(explain(launch, Digest(raw)), Explanation)
    assert_type(explain(launch, Digest(raw)).causes, tuple[str, ...])

    certificates = certificates_of(raw, source="vcek.pem")
    endorser = assert_type(
        verify_snp_chain(assemble_snp(certificates), crls=crls_of(raw, source="crl"), at=datetime.now(UTC)),
        Endorser,
    )
    verified = assert_type(verify_report(raw, endorser), VerifiedReport)
    assert_type(verified.report, SnpReport)
    assert_type(verified.report.policy, int)
    evidence = assert_type(of_snp_report(verified.report, verified=True), Evidence)
    wanted = assert_type(read_wishes(wishes, source="wishes.toml"), Wishes)
    assert_type(wanted.violations(evidence), list[str])
    assert_type(vmsa.differences(raw, raw), list[vmsa.Difference])
