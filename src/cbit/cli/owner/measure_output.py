"""How a measured launch is written: for a person, for a program, as a file of wishes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cbit import __version__
from cbit.owner.measure import SECTION, DirectLaunch, Launch, Mode
from cbit.owner.vmsa import CONVENTIONS, Variant
from cbit.spec.cpu_signature import name_of


def as_json(launch: Launch | DirectLaunch, digest: bytes | None) -> dict[str, Any]:
    """Give what programs read; the digest is None where no launch has one."""
    area = launch.secret_area
    return {
        "mode": launch.mode.value,
        "digest": digest and digest.hex(),
        "digest_base64": digest and base64.b64encode(digest).decode(),
        "inputs": [asdict(step.input) | {"place": step.place} for step in launch.steps()],
        "kernel_hashes": launch.kernel_hashes,
        "secret_area": asdict(area) if area else None,
        "vcpus": vcpus_json(launch),
        "lacks": launch.lacks(),
    }


def vcpus_json(launch: Launch | DirectLaunch) -> dict[str, Any] | None:
    """Describe the vCPUs; None where they are not measured."""
    vcpus = launch.vcpus
    if vcpus is None or launch.mode is Mode.SEV:
        return None
    convention = CONVENTIONS[vcpus.hypervisor]
    signature = vcpus.signature if convention.rdx is None else convention.rdx
    return {
        "count": vcpus.count,
        "signature": signature,
        "cpu": name_of(signature or 0),
        "variant": vcpus.variant.value if convention.fills_fpu else None,
        "features": int(vcpus.features if vcpus.features is not None else launch.mode is Mode.SNP),
        "hypervisor": vcpus.hypervisor.value,
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """Give what a person reads."""
    for item in result["inputs"]:
        if _empty_pages(item):
            yield f"{item['what']:<18} {item['name']}: kind and address are measured, no contents"
            continue
        yield f"{item['what']:<18} {item['size']:>10} bytes  {item['sha256']}  {item['name']}"
    if vcpus := result["vcpus"]:
        made = f", {vcpus['variant']}" if vcpus["variant"] else ""
        yield (
            f"vCPUs              {vcpus['count']} × {vcpus['cpu']}{made}, "
            f"SEV features {vcpus['features']:#x}, as {vcpus['hypervisor']} starts them"
        )
    for lack in result["lacks"]:
        yield f"note: {lack}"
    if vcpus and vcpus["variant"] == Variant.INIT2 and result["mode"] == Mode.SEV_ES:
        yield "note: a host that makes the guest with KVM_SEV_ES_INIT gives another digest: --vmsa init"
    if result["digest"]:
        yield f"launch digest {result['digest']}"


def _empty_pages(item: dict[str, Any]) -> bool:
    return item["what"] == SECTION and not item["size"]


def write_wishes(path: Path, result: dict[str, Any]) -> None:
    """Write a file that `cbit owner validate` takes; never over another one, which may hold more wishes.

    Raises:
        FileExistsError: something is there already.
    """
    text = [f"# A launch that was measured with cbit {__version__}: {result['mode']}"]
    for item in result["inputs"]:
        if _empty_pages(item):
            continue
        name = f" {item['name']}" if item["name"] else ""
        text.append(f"#   {item['what']}{_plain(name)}: {item['size']} bytes, SHA-256 {item['sha256']}")
    text.append(f'measurement = ["{result["digest"]}"]')
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write("\n".join(text) + "\n")
    except FileExistsError:
        raise FileExistsError(
            f"{path} is there already and may hold other wishes: choose another name, or add {text[-1]}"
        ) from None


def _plain(name: str) -> str:
    """Keep a file's name inside its comment."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)
