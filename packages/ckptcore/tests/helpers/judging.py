"""Opens hostile files in processes with little memory, and says what came of it.

As a script it opens each file that is named on its input in every way, and prints one JSON line for it. The
working folder is where payloads would leave the file ``executed``.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY = 12 << 30
"""Address space that the process may take; torch alone maps several gigabytes without using them."""

SECONDS = 300
"""After so long a file that is still being opened counts as one that hangs."""


@dataclass
class Verdict:
    """What came of one file: error class and message by reader, seconds of the processor, peak memory above
    that of an idle process, the file's own size, and what lies in the folder of imports afterwards.
    """

    errors: dict[str, tuple[str, str] | None]
    seconds: float
    bytes: int
    size: int
    executed: bool
    left: list[str]
    mapping: str | None = None


def judge(files: Mapping[str, Path], folder: Path) -> dict[str, Verdict]:
    """Open each file, one after another in as many processes as there are cores.

    Args:
        files: the files by name.
        folder: an empty folder, where payloads would leave a file.
    """
    found: dict[str, Verdict] = {}
    troubles: list[BaseException] = []
    waiting = iter(files.items())
    lock = threading.Lock()

    def next_file() -> tuple[str, Path] | None:
        with lock:
            return None if troubles else next(waiting, None)

    def work(place: Path) -> None:
        try:
            place.mkdir()
            found.update(_judged_by_one_process(next_file, place))
        except BaseException as error:
            troubles.append(error)

    count = min(4, len(os.sched_getaffinity(0)))
    threads = [threading.Thread(target=work, args=(folder / str(i),)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if troubles:
        raise troubles[0]
    return {name: found[name] for name in files}


def _judged_by_one_process(
    next_file: Callable[[], tuple[str, Path] | None], place: Path
) -> Iterator[tuple[str, Verdict]]:
    with (
        open(place / "stderr", "w+") as said,
        subprocess.Popen(
            [sys.executable, __file__],
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        while (given := next_file()) is not None:
            name, path = given
            timer = threading.Timer(SECONDS, process.kill)
            timer.start()
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            line = process.stdout.readline()
            timer.cancel()
            if not line:
                said.seek(0)
                raise AssertionError(f"the process died ({process.wait()}) at {name}: {said.read()[-2000:]}")
            yield name, Verdict(**json.loads(line))
        process.stdin.close()


def _memory(which: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{which}:")[1].split()[0]) << 10


def _forget_peak() -> None:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _open(path: str, idle: int) -> dict[str, Any]:
    import ckptcore
    from ckptcore.importing import import_checkpoint

    readers: dict[str, Callable[[str], Any]] = {
        "read_header": ckptcore.read_header,
        "verify": ckptcore.verify,
        "load": ckptcore.load,
        "import": lambda file: import_checkpoint(file, "imported"),
    }
    errors: dict[str, tuple[str, str] | None] = {}
    mapping = None
    _forget_peak()
    start = time.process_time()
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
    return {
        "errors": errors,
        "seconds": time.process_time() - start,
        "bytes": _memory("VmHWM") - idle,
        "size": os.path.getsize(path),
        "executed": os.path.exists("executed"),
        "left": os.listdir("imported"),
        "mapping": mapping,
    }


def main() -> None:
    import torch

    import ckptcore

    assert ckptcore.load
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.mkdir("imported")
    _forget_peak()
    idle = _memory("VmRSS")
    for line in sys.stdin:
        print(json.dumps(_open(line.rstrip("\n"), idle)), flush=True)


if __name__ == "__main__":
    main()
