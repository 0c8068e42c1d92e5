"""Timing that holds on a noisy machine: peers in turn within one run, ratios pair by pair, medians."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure of the results table.

    Attributes:
        what: what was measured.
        cores: how many cores the process had.
        seconds: median of ours.
        peer: what it is measured against.
        peer_seconds: median of the peer.
        ratio: median of the ratios ours / peer, pair by pair.
        spread: smallest and largest of these ratios.
        limit: what the ratio must not pass; None for a peer that is only shown.
    """

    what: str
    cores: int
    seconds: float
    peer: str
    peer_seconds: float
    ratio: float
    spread: tuple[float, float]
    limit: float | None = None

    def cells(self) -> list[str]:
        """The row as text."""
        verdict = "" if self.limit is None else "met" if self.ratio <= self.limit else "NOT met"
        return [
            self.what,
            str(self.cores),
            f"{self.seconds * 1e3:,.1f} ms",
            self.peer,
            f"{self.peer_seconds * 1e3:,.1f} ms",
            f"{self.ratio:.2f} ({self.spread[0]:.2f} to {self.spread[1]:.2f})",
            "" if self.limit is None else f"{self.limit:g}",
            verdict,
        ]


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def paired(
    what: str,
    ours: Callable[[], float],
    peer_name: str,
    peer: Callable[[], float],
    *,
    pairs: int,
    cores: int,
    limit: float | None = None,
) -> Row:
    """Measure two things in turn; each callable returns its own seconds. One pair before is not counted."""
    ours(), peer()
    times = [(ours(), peer()) if i % 2 else tuple(reversed((peer(), ours()))) for i in range(pairs)]
    ratios = [a / b for a, b in times]
    return Row(
        what,
        cores,
        statistics.median(a for a, _ in times),
        peer_name,
        statistics.median(b for _, b in times),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        limit,
    )


HEADINGS = ["what", "cores", "time", "against", "its time", "ratio, median (range)", "limit", ""]


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the results page."""
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def machine() -> str:
    """The machine in one line: processor, cores, memory, system, versions."""
    import torch

    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    memory = next(
        (
            int(line.split()[1]) // (1 << 20)
            for line in _lines("/proc/meminfo")
            if line.startswith("MemTotal")
        ),
        0,
    )
    # What follows the second number names a provider's build.
    kernel = ".".join(platform.release().split("-")[0].split(".")[:2])
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return (
        f"{model}, {os.cpu_count()} cores, {memory} GiB{gpu}, Linux {kernel}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def today() -> str:
    """The date of the results, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def commit() -> str:
    """The commit at hand, and whether files differ from it."""
    described = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()


def child_seconds(code: str, *arguments: str) -> float:
    """Run Python code in a fresh process; it prints the seconds that it measured."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return float(result.stdout.strip().splitlines()[-1])


def process_seconds(command: Sequence[str]) -> float:
    """How long a whole process takes, from start to end."""
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began
