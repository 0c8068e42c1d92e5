"""A process that trains and saves until it is killed, forked again and again by a server with torch loaded.

Run as a program with three descriptors: orders come in on the first, one JSON object a line; lines of the log
go out on the second; the third is read by a trainee that holds still, which the kill ends. The phases of the
library are told by wrappers around its functions, so that it knows nothing of being watched itself:

    enter write 7 1234567      the phase, its thread and the clock in nanoseconds
    leave write 7 1239876 12   and how many operations it made
    reached rotate 3 after     held at an operation, as ordered
    committed 17 <digest> 0.5  epochs finished and loss; durable from here on

No sleep, no timer: a trainee that is told to hold at an operation waits for the parent, which kills it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPERATIONS = (
    "open",
    "write",
    "pwrite",
    "ftruncate",
    "fsync",
    "fchmod",
    "replace",
    "rename",
    "link",
    "unlink",
    "mkdir",
)
_write, _read = os.write, os.read


class Log:
    """Phases and operations of this process, as lines to the parent; holds still where it was told to."""

    def __init__(self, out: int, hold: int, order: dict[str, Any]) -> None:
        self._out, self._hold = out, hold
        self._phase = order.get("phase")
        self._at: int | None = order.get("at")
        self._side = order.get("side", "after")
        self._skip = int(order.get("skip", 0))
        self._local = threading.local()

    def line(self, *words: object) -> None:
        _write(self._out, (" ".join(map(str, words)) + "\n").encode())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if getattr(self._local, "phase", None) is not None:  # promote and archive write and rename, too
            yield
            return
        self._local.phase, self._local.count = name, 0
        self.line("enter", name, threading.get_ident(), time.monotonic_ns())
        try:
            yield
        finally:
            self._local.phase = None
            self.line("leave", name, threading.get_ident(), time.monotonic_ns(), self._local.count)
            if name == self._phase and self._local.count:
                self._skip -= 1

    def operation(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            if getattr(self._local, "phase", None) is None:
                return call(*args, **options)
            self._local.count += 1
            self._reach("before")
            result = call(*args, **options)
            self._reach("after")
            return result

        return watched

    def _reach(self, side: str) -> None:
        here = self._local.phase, self._local.count, side
        if self._at is not None and self._skip <= 0 and here == (self._phase, self._at, self._side):
            self.line("reached", *here)
            _read(self._hold, 1)  # until the kill, or the end of the parent
            os._exit(3)


def watch(log: Log) -> None:
    """Put wrappers around the phases of the library and around the calls of the system."""
    import torch

    from ckptcore import archive, durable, manager, rotation, snapshot, stream, versions

    stream.BUFFER = 1 << 16  # many writes, though the state is small
    buffers = snapshot.SnapshotBuffers

    def in_phase(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            with log.phase(name):
                return call(*args, **options)

        return wrapped

    staged = durable.staged

    @contextmanager
    def staged_in_phase(target: Path, *args: Any, **options: Any) -> Iterator[Any]:
        if not target.name.endswith(".pt"):
            with staged(target, *args, **options) as given:
                yield given
            return
        with log.phase("write"), staged(target, *args, **options) as given:
            yield given

    patched: list[tuple[Any, str, Any]] = [
        (buffers, "copy", in_phase("snapshot", buffers.copy)),
        (buffers, "_fit", log.operation(buffers._fit)),
        (buffers, "_fill", log.operation(buffers._fill)),
        (torch, "_foreach_copy_", log.operation(torch._foreach_copy_)),
        (manager.durable, "staged", staged_in_phase),
        (durable, "publish", in_phase("rename", durable.publish)),
        (rotation, "rotate", in_phase("rotate", rotation.rotate)),
        (versions, "promote", in_phase("promote", versions.promote)),
        (archive, "archive", in_phase("archive", archive.archive)),
    ]
    patched += [(os, name, log.operation(getattr(os, name))) for name in OPERATIONS]
    for owner, name, wrapper in patched:
        setattr(owner, name, wrapper)


GIVEN = ("model_state_dict", "momentum", "values")
"""The keys that the trainee gives to save; the manager adds some of its own."""


def digest_of(state: Mapping[str, Any], keys: Sequence[str] = GIVEN) -> str:
    """SHA-256 of every tensor and every plain value under these keys, types and order and NaN included."""
    sha = hashlib.sha256()
    _update(sha, {key: state[key] for key in keys})
    return sha.hexdigest()


def _update(sha: Any, value: Any) -> None:
    if hasattr(value, "numpy"):
        sha.update(f"tensor {value.dtype} {tuple(value.shape)}:".encode() + value.numpy().tobytes())
    elif isinstance(value, dict):
        sha.update(f"dict {len(value)}:".encode())
        for key, item in value.items():
            _update(sha, key)
            _update(sha, item)
    elif isinstance(value, (list, tuple)):
        sha.update(f"{type(value).__name__} {len(value)}:".encode())
        for item in value:
            _update(sha, item)
    else:
        shown = value.hex() if isinstance(value, float) else repr(value)
        sha.update(f"{type(value).__name__} {shown};".encode())


def first_state() -> dict[str, Any]:
    """What a run begins with."""
    import torch

    return {
        "model_state_dict": {"weight": torch.randn(256, 256), "bias": torch.randn(256)},
        "momentum": torch.zeros(256, 256),
        "values": {
            "losses": [],
            "sizes": (256, 256),
            "name": "näme",
            "on": True,
            "none": None,
            5: {"rate": 0.1},
        },
    }


def train_an_epoch(state: dict[str, Any], loss: float) -> None:
    """Change every tensor and a plain value."""
    import torch

    state["momentum"].mul_(0.9).add_(torch.randn(256, 256))
    state["model_state_dict"]["weight"].add_(state["momentum"])
    state["model_state_dict"]["bias"].add_(torch.randn(256))
    state["values"]["losses"].append(loss)


def train(order: dict[str, Any], log: Log) -> None:
    """Train on from what is in the folder; save after every epoch, promote and archive now and then."""
    import torch

    import ckptcore
    from ckptcore import archive, versions
    from ckptcore.errors import VersionRefused
    from ckptcore.layouts import plain

    watch(log)
    chance = random.Random(order["seed"])
    root = Path(order["root"])
    manager = ckptcore.CheckpointManager(root / "run", plain("loss", "min", last=3), asynchronous=True)
    found = manager.resume("auto")
    log.line("resumed", 0 if found is None else found.epochs_finished)
    torch.manual_seed(order["seed"])
    state = first_state() if found is None else {key: found[key] for key in GIVEN}
    first = 0 if found is None or found.epochs_finished is None else found.epochs_finished
    for epoch in range(first, first + order["epochs"]):
        loss = chance.choice([chance.random(), 0.5, float("nan"), 1.0 / (epoch + 2)])
        train_an_epoch(state, loss)
        digest = digest_of(state)
        log.line("submitted", epoch + 1, digest, loss)
        manager.step(state, epoch=epoch, metrics={"loss": loss})
        train_an_epoch(state, -1.0)  # the loop goes on while the writer writes
        if chance.random() < order["wait"]:
            manager.wait()
            log.line("committed", epoch + 1, digest, loss)
        if chance.random() < order["promote"] and (root / "run" / "best.pt").exists():
            number = f"{order['number']}.{epoch}.0"
            log.line("promoting", number)
            try:
                card = versions.promote(root / "run" / "best.pt", version=number)
            except VersionRefused as refusal:  # the best was replaced just now
                log.line("refused", str(refusal).replace("\n", " "))
            else:
                log.line("promoted", card.file_name, card.sha256)
        if chance.random() < order["archive"]:
            old = root / f"old_{order['number']}_{epoch}"
            ckptcore.save(old / "a.pth", {"model_state_dict": {"w": torch.randn(16, 16)}})
            os.link(old / "a.pth", old / "b.pth")
            ckptcore.save(old / "c.pth", {"model_state_dict": {"w": torch.randn(64, 64)}})
            digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in old.glob("*.pth")}
            log.line("archiving", old.name, json.dumps(digests, separators=(",", ":")))
            archive.archive(old, root / f"{old.name}.tar.zst")
            log.line("archived", old.name)
    manager.close()
    log.line("closed")


def main() -> None:
    """Serve: one trainee for each line of orders."""
    import torch

    import ckptcore.archive
    import ckptcore.manager
    import ckptcore.snapshot
    import ckptcore.versions  # noqa: F401

    orders, out, hold = map(int, sys.argv[1:4])
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    with open(orders, encoding="utf-8") as lines:
        for line in lines:
            order = json.loads(line)
            pid = os.fork()
            if pid == 0:
                os.setsid()
                libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the server
                log = Log(out, hold, order)
                log.line("born", os.getpid())
                try:
                    train(order, log)
                except BaseException as error:
                    log.line("failed", f"{type(error).__name__}: {error}".replace("\n", " "))
                    os._exit(1)
                os._exit(0)
            status = os.waitpid(pid, 0)[1]
            _write(out, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
