"""Aims SIGKILL at a trainee, and checks after each kill that nothing is lost."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

import zstandard
from trainee import digest_of

from ckptcore import CheckpointManager, load, verify
from ckptcore.cards import check_version, list_versions
from ckptcore.catalogue import Catalogue
from ckptcore.durable import is_temporary
from ckptcore.layouts import plain

PHASES = ("snapshot", "write", "rename", "rotate", "promote", "archive")
KEPT = 3


class Server:
    """The process that forks trainees; ends with the `with` block, and with this process in any case."""

    def __init__(self) -> None:
        order_end, self._orders = os.pipe()
        self._log, log_end = os.pipe()
        hold_end, self._hold = os.pipe()
        script = Path(__file__).with_name("trainee.py")
        ends = (order_end, log_end, hold_end)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, script, *map(str, ends)], pass_fds=ends, start_new_session=True, env=environment
        )
        for end in ends:
            os.close(end)
        self._unread = b""
        self._trainee: int | None = None

    def start(self, order: dict[str, Any]) -> None:
        os.write(self._orders, (json.dumps(order) + "\n").encode())

    def lines(self, seconds: float) -> list[list[str]]:
        """The lines that came, waiting for the first one at most so long; an empty list when none came."""
        if not select.select([self._log], [], [], seconds)[0]:
            return []
        data = os.read(self._log, 1 << 16)
        if not data:
            raise AssertionError("the server of trainees is gone")
        *whole, self._unread = (self._unread + data).split(b"\n")
        found = [line.decode().split(" ") for line in whole]
        for words in found:
            if words[0] == "born":
                self._trainee = int(words[1])
            if words[0] == "ended":
                self._trainee = None
        return found

    def kill(self) -> None:
        """Kill the trainee, whose process group is its own."""
        if self._trainee is not None:
            os.killpg(self._trainee, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in (self._orders, self._hold, self._log):
            os.close(end)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@dataclass
class Known:
    """What the log of all trainees says that the folder must hold."""

    digests: dict[int, set[str]] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    committed: tuple[int, str] | None = None
    best: float | None = None
    promoted: dict[str, str] = field(default_factory=dict)
    archiving: dict[str, dict[str, str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def read(self, words: list[str]) -> None:
        match words:
            case ["submitted", epoch, digest, loss]:
                self.digests.setdefault(int(epoch), set()).add(digest)
                self.losses[digest] = float(loss)
            case ["committed", epoch, digest, loss]:
                self.committed = int(epoch), digest
                if float(loss) == float(loss):
                    self.best = float(loss) if self.best is None else min(self.best, float(loss))
            case ["promoted", name, digest]:
                self.promoted[name] = digest
            case ["archiving", name, digests]:
                self.archiving[name] = json.loads(digests)
            case ["failed", *what]:
                self.failures.append(" ".join(what))


class Storm:
    """Many kills on one folder, one trainee after the other going on from what the last one left."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.known = Known()
        self.at_death: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.newest = 0
        self._durations: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self._operations: dict[str, int] = dict.fromkeys(PHASES, 1)
        self._chance = random.Random(seed)
        self._number = 0
        self._verified: set[tuple[tuple[int, int], int]] = set()

    def rage(self, server: Server, kills: int, least: int) -> None:
        """Kill so many trainees, at least so many in each phase; every second one held at an operation."""
        self._follow(server, self._order(None, epochs=8), None)
        assert all(self._durations.values()), "an undisturbed trainee passes through every phase"
        self.check()
        for attempt in range(3 * kills):
            if sum(self.at_death.values()) >= kills and all(
                self.at_death[phase] >= least for phase in PHASES
            ):
                return
            phase = min(PHASES, key=lambda name: (self.at_death[name] // 2, self._chance.random()))
            if attempt % 2:
                usual = median(self._durations[phase][-21:])
                self._follow(
                    server, self._order(None, also=phase), (phase, self._chance.uniform(0.0, 1.1 * usual))
                )
            else:
                self._follow(server, self._order(phase, also=phase), None)
            self.check()
        raise AssertionError(f"too few of {3 * kills} trainees died where they should: {self.table()}")

    def table(self) -> str:
        """Kills by phase, for people."""
        rows = [
            f"{name:10} {self.at_death[name]:5} kills, {self.held[name]:5} of them held"
            for name in (*PHASES, "outside")
        ]
        total = f"in all     {sum(self.at_death.values()):5} kills; newest checkpoint: {self.newest} epochs"
        return "\n".join(["", *rows, total])

    def _order(self, hold: str | None, also: str | None = None, epochs: int = 40) -> dict[str, Any]:
        self._number += 1
        return {
            "root": str(self.root),
            "seed": self._chance.randrange(1 << 30),
            "number": self._number,
            "epochs": epochs,
            "wait": 0.7,
            "promote": 0.9 if also == "promote" or epochs < 40 else 0.05,
            "archive": 0.9 if also == "archive" or epochs < 40 else 0.05,
            "phase": hold,
            "at": self._chance.randint(1, self._operations[hold]) if hold else None,
            "side": self._chance.choice(["before", "after"]),
            "skip": self._chance.randint(0, 2),
        }

    def _follow(self, server: Server, order: dict[str, Any], aim: tuple[str, float] | None) -> None:
        """Let a trainee run to its end; kill it where it is held, or some time after it entered a phase."""
        server.start(order)
        inside: dict[tuple[str, str], int] = {}
        skip, deadline, held = self._chance.randint(0, 3), None, False
        while True:
            lines = server.lines(60.0 if deadline is None else max(0.0, deadline - time.monotonic()))
            if not lines and deadline is None:
                raise AssertionError(f"a trainee went silent in {list(inside)}")
            if deadline is not None and time.monotonic() >= deadline:
                server.kill()
                aim = deadline = None
            for words in lines:
                match words:
                    case ["enter", phase, thread, began]:
                        inside[phase, thread] = int(began)
                        if aim is not None and aim[0] == phase:
                            deadline = time.monotonic() + aim[1] if skip == 0 else deadline
                            skip -= 1
                    case ["leave", phase, thread, ended, operations]:
                        self._durations[phase].append((int(ended) - inside.pop((phase, thread))) / 1e9)
                        self._operations[phase] = max(self._operations[phase], int(operations))
                    case ["reached", *_]:
                        held = True
                        server.kill()
                    case ["ended", code]:
                        self._count(int(code), list(inside)[-1][0] if inside else "outside", held)
                        return
                    case _:
                        self.known.read(words)

    def _count(self, code: int, phase: str, held: bool) -> None:
        assert not self.known.failures, self.known.failures
        assert code in (0, -signal.SIGKILL), f"a trainee ended with {code}"
        if code:
            self.at_death[phase] += 1
            self.held[phase] += held

    def check(self) -> None:
        """The folder opens, the newest committed one is bit-equal, nothing that policy keeps is missing."""
        self._check_archives()
        run = self.root / "run"
        with CheckpointManager(
            run, plain("loss", "min", last=KEPT), asynchronous=False, handle_signals=False
        ) as manager:
            found = manager.resume("auto")
        left = [path for path in run.rglob("*") if is_temporary(path.name) or ".damaged" in path.name]
        assert not left, left
        assert not (run / "archived").exists()
        files = {file.name: file for file in Catalogue.scan(run)}
        for name, file in files.items():
            if (file.inode, file.modified) not in self._verified:
                assert verify(run / name).ok, name
                self._verified.add((file.inode, file.modified))
        if self.known.committed is not None:
            assert found is not None
            epochs, digest = self.known.committed
            assert found.epochs_finished is not None and found.epochs_finished >= epochs
            assert digest_of(found) == digest or found.epochs_finished > epochs
            assert digest_of(found) in self.known.digests[found.epochs_finished]
            self.newest = found.epochs_finished
            self._check_policy(files, epochs)
        self._check_versions(run)

    def _check_policy(self, files: dict[str, Any], committed: int) -> None:
        assert {"latest.pt"} <= set(files)
        periodic = {int(name[6:-3]) for name in files if name.startswith("epoch_")}
        newest = max(periodic)
        assert newest >= committed
        assert set(range(max(1, newest - KEPT + 1), newest + 1)) <= periodic, sorted(periodic)
        if self.known.best is not None:
            best = load(files["best.pt"].path)
            assert best.header.metrics["loss"] == self.known.losses[digest_of(best)]
            assert best.header.metrics["loss"] <= self.known.best

    def _check_versions(self, run: Path) -> None:
        cards = {card.file_name: card for card in list_versions(run)}
        for name, digest in self.known.promoted.items():
            assert cards[name].status == "whole", name
            assert cards[name].sha256 == digest
        for name in [*self.known.promoted][-3:]:
            assert check_version(cards[name]) == ()
        if len(cards) > 20:
            for card in cards.values():
                card.path.unlink()
                card.card_path.unlink(missing_ok=True)
            self.known.promoted.clear()

    def _check_archives(self) -> None:
        """Each archive is either not there, and the originals are, or it holds every byte of them."""
        for name, digests in self.known.archiving.items():
            packed = self.root / f"{name}.tar.zst"
            found = unpacked(packed) if packed.exists() else {}
            for member, digest in digests.items():
                original = self.root / name / member
                if not packed.exists() or original.exists():
                    assert hashlib.sha256(original.read_bytes()).hexdigest() == digest, original
                if packed.exists():
                    assert found[f"{name}/{member}"] == digest, member
            shutil.rmtree(self.root / name)
            packed.unlink(missing_ok=True)
        self.known.archiving.clear()
        for path in self.root.iterdir():
            if is_temporary(path.name):  # a killed archiver's; nothing takes it for an archive
                path.unlink()


def unpacked(packed: Path) -> dict[str, str]:
    """SHA-256 of an archive's files."""
    with open(packed, "rb") as file:
        if packed.name.endswith(".gz"):
            data = gzip.decompress(file.read())
        else:
            data = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [(member.name, tar.extractfile(member)) for member in tar.getmembers()]
        return {
            name: hashlib.sha256(content.read()).hexdigest()
            for name, content in members
            if content is not None
        }
