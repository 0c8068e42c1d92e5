"""Opens hostile files in a process with little memory, and says what came of it.

As a script: ``judging.py FILE...`` opens each file in every way and prints one JSON line for it. The working
folder is where payloads would leave the file ``executed``.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY = 12 << 30
"""Address space that the process may take; torch alone maps several gigabytes without using them."""


@dataclass
class Verdict:
    """What came of one file: error class and message by reader, seconds, and peak memory above the start."""

    errors: dict[str, tuple[str, str] | None]
    seconds: float
    bytes: int
    executed: bool
    mapping: str | None = None


def judge(files: Mapping[str, Path], folder: Path) -> dict[str, Verdict]:
    """Open each file in one process of its own, with bounded memory and time.

    Args:
        files: the files by name.
        folder: an empty folder, where payloads would leave a file.
    """
    command = [sys.executable, __file__, *map(str, files.values())]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    if found.returncode or len(lines) != len(files):
        culprit = list(files)[len(lines)] if len(lines) < len(files) else "?"
        raise AssertionError(f"the process died ({found.returncode}) at {culprit}: {found.stderr[-2000:]}")
    return {name: Verdict(**line) for name, line in zip(files, lines, strict=True)}


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _open(path: str) -> dict[str, Any]:
    import ckptcore

    readers = {"read_header": ckptcore.read_header, "verify": ckptcore.verify, "load": ckptcore.load}
    errors: dict[str, tuple[str, str] | None] = {}
    mapping = None
    _forget_peak()
    before, start = _peak(), time.perf_counter()
    for name, reader in readers.items():
        try:
            found = reader(path)
            errors[name] = None
            if name == "verify" and not found.ok:
                errors[name] = ("Report", "; ".join(found.findings)[:300])
            if name == "load":
                mapping = repr(dict(found))[:300]
        except BaseException as error:
            ours = isinstance(error, ckptcore.CheckpointError)
            errors[name] = (
                type(error).__name__ if ours else f"NOT OURS: {type(error).__name__}",
                str(error)[:300],
            )
        found = None
    seconds, peak = time.perf_counter() - start, _peak() - before
    executed = os.path.exists("executed")
    return {"errors": errors, "seconds": seconds, "bytes": peak, "executed": executed, "mapping": mapping}


def main(paths: list[str]) -> None:
    import torch

    import ckptcore

    assert ckptcore.load
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for path in paths:
        print(json.dumps(_open(path)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
