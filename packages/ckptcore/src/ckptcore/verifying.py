"""Is this checkpoint what was written? Every digest of a native file; CRCs and structure of a foreign one. No
torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptcore import container, foreign, reader
from ckptcore.container import ROOT, Record
from ckptcore.errors import CheckpointError, DamagedCheckpoint
from ckptcore.hashing import Stretch, intact
from ckptcore.header import Header


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        path: the file.
        ok: whether nothing is wrong with it.
        findings: every damaged tensor, record or structure, by name.
        format: ckptcore, torch, safetensors, ...; None where it is not known.
        checked: what stands behind ``ok``: "sha256", "crc32" or "structure".
    """

    path: Path
    ok: bool
    findings: tuple[str, ...]
    format: str | None
    checked: str
    tensors: int = 0
    run_key: str | None = None


_FOREIGN_CHECKS: Mapping[str, str] = {
    "torch": "crc32",
    "safetensors": "structure",
    "torch-legacy": "structure",
}


def verify(path: str | os.PathLike[str]) -> Report:
    """Check a file, native or foreign, and name everything that is wrong with it.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is none.
    """
    try:
        with reader.opened(path) as (file, fd):
            return verify_open(fd, file)
    except CheckpointError as error:
        return Report(Path(path), False, (str(error),), None, "nothing")


def verify_open(fd: int, path: Path) -> Report:
    """Check an open file, whatever has its name by now."""
    try:
        return _report(fd, path)
    except DamagedCheckpoint as error:
        return Report(path, False, error.findings, "ckptcore", "sha256")
    except CheckpointError as error:
        return Report(path, False, (str(error),), None, "nothing")


def _report(fd: int, path: Path) -> Report:
    header = reader.find_summary(fd, path)
    if header is not None:
        found = tuple(_native_findings(fd, header))
        return Report(path, not found, found, "ckptcore", "sha256", header.tensor_count, header.run_key)
    if reader.looks_native(fd):
        return Report(path, False, tuple(foreign.why_not_native(fd)), "ckptcore", "sha256")
    kind = foreign.sniff(fd)
    wrong = foreign.findings(fd, path)
    return Report(path, not wrong, tuple(wrong), kind, _FOREIGN_CHECKS.get(kind, "nothing"))


def _native_findings(fd: int, header: Header) -> list[str]:
    """Everything wrong with a native file; damaged tensors are looked for even where the structure is damaged
    too.
    """
    try:
        _, tensors, records = reader.read_table(fd, header)
    except ValueError as error:
        return [str(error)]
    found: list[str] = []
    try:
        reader.open_native(fd, header)
    except DamagedCheckpoint as error:
        found += error.findings
    placed = list(container.place_all([Record(f"{ROOT}/{e.name}", e.size, e.crc32) for e in records]))
    if found and placed[-1].end > header.file_size:
        return found
    stretches = [Stretch(fd, p.data_at, e.size, e.digest) for p, e in zip(placed, records, strict=True)]
    whole = intact(stretches)
    names: dict[str, list[str]] = {}
    for tensor in tensors:
        names.setdefault(f"data/{tensor.storage}", []).append(f"tensor {tensor.name}")
    for entry, good in zip(records, whole, strict=True):
        if not good:
            found += names.get(entry.name) or [f"record {entry.name}"]
    return list(dict.fromkeys(found))
