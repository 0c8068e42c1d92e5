"""What the demo takes on this machine: time and memory of ``make demo`` in a fresh clone, stage by stage.

Run by ``python -m benchmarks.demo [--work DIR]``; writes ``benchmarks/results/demo.md``. The clone is of the
commit at hand and builds an environment of its own, which is timed by itself; everything is computed in
float32, as on machines without bf16. Memory is the largest sum of proportional set sizes over all processes
of the run, looked at twice a second.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.measuring import commit, machine, today

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "demo.md"
MOST_MINUTES, MOST_GIB, PHANTOM_SECONDS = 12.0, 8.0, 90.0


@dataclass
class Taken:
    """What a command took.

    Attributes:
        seconds: of the clock.
        peak: bytes, all its processes together.
        stages: seconds of each DVC stage, by name, in the order in which they ran.
    """

    seconds: float = 0.0
    peak: int = 0
    stages: dict[str, float] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for the clone; kept if it is given")
    chosen = parser.parse_args(arguments)
    work = (chosen.work or Path(tempfile.mkdtemp(prefix="demo-"))).resolve()
    try:
        text = measure(work)
    finally:
        if chosen.work is None:
            shutil.rmtree(work)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


def measure(work: Path) -> str:
    """Run everything; returns the page."""
    clone = work / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    setup = run(["make", "setup"], clone)
    phantom = run([tool(clone, "radfuse"), "phantom", "--out", "../phantom", "--patients", "300"], clone)
    params = clone / "params.yaml"
    text = params.read_text(encoding="utf-8")
    if "precision: auto" not in text:
        raise SystemExit(f"expected 'precision: auto' in {params.name}; it says something else now")
    params.write_text(text.replace("precision: auto", "precision: '32'"), encoding="utf-8")
    whole = run(["make", "demo"], clone)
    again = run([tool(clone, "dvc"), "repro"], clone)
    if again.stages:
        raise SystemExit(f"a second repro ran {', '.join(again.stages)}; expected nothing to run")
    summary = (clone / "reports" / "summary.txt").read_text(encoding="utf-8").rstrip()
    return page(commit(), setup, phantom, whole, again, summary)


def tool(clone: Path, name: str) -> str:
    """A command of the clone's environment."""
    return str(clone / ".venv" / "bin" / name)


def run(command: Sequence[str], clone: Path) -> Taken:
    """Run a command in a clone and watch it."""
    path = f"{clone / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    quiet = {"DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path}
    taken, began, stage, since = Taken(), time.monotonic(), "", 0.0
    with (
        subprocess.Popen(
            command,
            cwd=clone,
            env={**os.environ, **quiet},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as running,
        watched(running.pid, taken),
    ):
        for line in running.stdout or ():
            print(line, end="", flush=True)
            now = time.monotonic()
            if started := re.match(r"Running stage '([^']+)'", line):
                if stage:
                    taken.stages[stage] = now - since
                stage, since = started[1], now
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    taken.seconds = time.monotonic() - began
    if stage:
        taken.stages[stage] = time.monotonic() - since
    return taken


@contextmanager
def watched(process: int, taken: Taken) -> Iterator[None]:
    """Note the largest memory of a process and all that it starts."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            taken.peak = max(taken.peak, memory(process))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def memory(process: int) -> int:
    """Bytes of a process and its children; shared pages count once."""
    total = 0
    try:
        family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for one in family:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return total


def verdict(wanted: str, met: bool) -> str:
    """In words; nothing where nothing is wanted."""
    return ("met" if met else "NOT met") if wanted else ""


def page(measured: str, setup: Taken, phantom: Taken, whole: Taken, again: Taken, summary: str) -> str:
    """The results as Markdown."""
    minutes, gib = whole.seconds / 60, whole.peak / 2**30
    rows = [
        (
            "`make demo` after set-up", f"{minutes:.1f} min", f"<= {MOST_MINUTES:g} min",
            minutes <= MOST_MINUTES,
        ),
        ("its peak memory", f"{gib:.1f} GiB", f"<= {MOST_GIB:g} GiB", gib <= MOST_GIB),
        (
            "`radfuse phantom --patients 300`", f"{phantom.seconds:.0f} s", f"< {PHANTOM_SECONDS:g} s",
            phantom.seconds < PHANTOM_SECONDS,
        ),
        ("`make setup` before, with packages at hand", f"{setup.seconds / 60:.1f} min", "", True),
        ("a second `dvc repro`, which runs nothing", f"{again.seconds:.0f} s", "", True),
    ]  # fmt: skip
    return "\n".join(
        [
            "# What the demo takes",
            "",
            f"`python -m benchmarks.demo` of {measured}, {today()}, {machine()}.",
            "",
            "| what | taken | wanted | |",
            "|---|---|---|---|",
            *(f"| {' | '.join(cells)} | {verdict(cells[-1], met)} |" for *cells, met in rows),
            "",
            "| stage | seconds |",
            "|---|---|",
            *(f"| {name} | {seconds:.0f} |" for name, seconds in whole.stages.items()),
            "",
            "It ends with:",
            "",
            "```",
            summary,
            "```",
            "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
