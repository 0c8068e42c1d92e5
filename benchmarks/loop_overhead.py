"""What the engine's loop costs over a bare PyTorch loop: processor time of an epoch, everything counted.

Run by ``python -m benchmarks.loop_overhead [--rounds N]``; writes ``benchmarks/results/loop_overhead.md``.
Both train the same ResNet-50 on the same 96x96 images in the same order, by the same loader, loss and
optimizer, and validate after each epoch. The engine's also saves one asynchronous checkpoint an epoch, draws
and logs, and tells MLflow. What is compared is the processor time of the whole process: the writer's counts,
other programs' does not.

The two run side by side, each on a core of its own with one thread, and change cores from round to round: one
after another, the same loop differed by three percent from run to run, as the machine did. The first epoch
warms up and is not counted; after the last that is, both go on until both have told their times, so that
neither ever has the machine to itself.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from benchmarks.measuring import machine, today

RESULTS = Path(__file__).parent / "results" / "loop_overhead.md"
MOST = 1.02
LEAST_SECONDS = 60
"""Of an epoch; what a short one costs besides its steps says nothing about real ones."""
SIZE, WARM, MEASURED = 96, 1, 2
EPOCHS = WARM + MEASURED + 1
"""The last is there to be broken off."""
IMAGES = {"train": 1000, "val": 48, "calibration": 4, "test": 4}
FINDINGS = [f"finding_{number}" for number in range(14)]
TOLD = "BEGAN "
Clock = tuple[float, float]
"""Processor and wall time."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4, help="runs of the two behind the ratio")
    parser.add_argument("--child", choices=list(LOOPS), help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child:
        os.sched_setaffinity(0, {chosen.core})
        LOOPS[chosen.child](chosen.folder)
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < len(LOOPS):
        sys.exit("Expected two cores, one for each loop; this process may use one.")
    found: dict[str, list[Clock]] = {name: [] for name in LOOPS}
    with tempfile.TemporaryDirectory(prefix="loop-") as folder:
        prepare(Path(folder))
        for number in range(chosen.rounds):
            order = cores if number % 2 else cores[::-1]
            for name, times in round_of(dict(zip(LOOPS, order, strict=True)), Path(folder)).items():
                found[name].append(times)
                print(f"round {number + 1}: {name}, {MEASURED} epochs: {times[0]:.1f} s", flush=True)
    text = page(found)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


def prepare(folder: Path) -> None:
    """Random radiographs, prepared as the engine prepares them."""
    random, rows = np.random.default_rng(0), []
    (folder / "raw").mkdir()
    for split, count in IMAGES.items():
        for number in range(count):
            name = f"{split}_{number}.png"
            Image.fromarray(random.integers(0, 256, (SIZE, SIZE), np.uint8)).save(folder / "raw" / name)
            rows.append([name, f"{split}{number}", split, *random.integers(0, 2, len(FINDINGS))])
    with open(folder / "raw" / "xray.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["path", "patient_id", "split", *FINDINGS], *rows])
    source = {"kind": "table", "root": "raw", "modality": "xray", "public": True, "csv": "xray.csv",
              "images": "path", "labels": FINDINGS, "split": "split"}  # fmt: skip
    params = {
        "seed": 0,
        "sources": [source],
        "split": {"minimum_positives": 0, "minimum_patients": {name: 1 for name in IMAGES}},
        "prepare": {"xray": {"size": [SIZE, SIZE]}},
        "train": {
            "device": "cpu",
            "precision": "32",
            "workers": 0,
            "progress": "lines",
            "xray": {
                "stages": [{"name": "all", "epochs": EPOCHS, "learning_rate": 1e-3}],
                "batch_size": 16,
                "save_every": 1,
            },
        },
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for command in (["cohort"], ["prepare", "xray"]):
        subprocess.run([Path(sys.executable).with_name("radfuse"), *command], cwd=folder, check=True)


def round_of(cores: dict[str, int], folder: Path) -> dict[str, Clock]:
    """Run both loops at once, each on its core; processor and wall seconds of the measured epochs of each."""
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, core in cores.items():
            command = [sys.executable, "-m", "benchmarks.loop_overhead", "--child", name, "--core", str(core),
                       "--folder", str(folder)]  # fmt: skip
            running[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return {name: measured(name, process) for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.communicate()


def measured(name: str, process: subprocess.Popen[str]) -> Clock:
    """Processor and wall seconds of the measured epochs, as soon as a loop tells them."""
    told = next((line for line in process.stdout or () if line.startswith(TOLD)), None)
    if told is None:
        sys.exit(f"The loop {name!r} ended before it had told its times; what it said stands above.")
    times = json.loads(told.removeprefix(TOLD))
    processor, wall = (times[WARM + MEASURED][axis] - times[WARM][axis] for axis in (0, 1))
    if wall < LEAST_SECONDS * MEASURED:
        sys.exit(
            f"An epoch of the loop {name!r} took {wall / MEASURED:.0f} s, less than {LEAST_SECONDS} s: this "
            "machine is faster than the one that this was written on. Give IMAGES['train'] more images."
        )
    return processor, wall


class Epochs:
    """When each epoch began, told when the last that counts is over."""

    def __init__(self) -> None:
        self._began: list[Clock] = []

    def begin(self) -> None:
        """An epoch begins. Processor time is that of all threads of this process."""
        self._began.append((time.process_time(), time.perf_counter()))
        if len(self._began) == WARM + MEASURED + 1:
            print(TOLD + json.dumps(self._began), flush=True)


def engine(folder: Path) -> None:
    """The engine's training."""
    import torch

    from radfuse.engine import config
    from radfuse.engine.places import Places
    from radfuse.engine.training import loop, session

    torch.set_num_threads(1)
    epochs, train_epoch = Epochs(), loop.train_epoch

    def timed(run: Any) -> None:
        epochs.begin()
        train_epoch(run)

    loop.train_epoch = timed
    file = folder / "params.yaml"
    session.train(config.load(file), Places.of(file), "xray", resume="none")


def bare(folder: Path) -> None:
    """A loop as in a tutorial, over the same network, loader, loss and optimizer."""
    import torch

    from radfuse.engine import config
    from radfuse.engine.modality import modality
    from radfuse.engine.places import Places
    from radfuse.engine.prepared import Prepared
    from radfuse.engine.training.loaders import Examples, Loader
    from radfuse.engine.training.run import Whole
    from radfuse.engine.training.tasks import task_of

    torch.set_num_threads(1)
    torch.manual_seed(0)
    file = folder / "params.yaml"
    params, xray = config.load(file), modality("xray")
    settings, to_arrays, prepared = (
        params.train_of(xray),
        params.prepare_of(xray),
        Prepared(Places.of(file), "xray"),
    )
    task, rows = task_of(xray, to_arrays, prepared), prepared.rows()
    network = xray.network(to_arrays, settings, task.outputs).to(memory_format=torch.channels_last)
    model = Whole(xray.normalisation(to_arrays), network)
    learn = Examples(prepared, rows[rows["split"] == "train"], xray, task, settings, 0)
    judge = Examples(prepared, rows[rows["split"] == "val"], xray, task, settings, None)
    training, validation = Loader(learn, settings.batch_size, 0), Loader(judge, settings.batch_size)
    criterion = task.loss(task.class_weights(prepared, training.rows) if settings.class_weights else None)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-3, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=EPOCHS * training.batches)
    epochs = Epochs()
    for epoch in range(EPOCHS):
        epochs.begin()
        model.train()
        total = 0.0
        for batch in training.epoch(epoch):
            image = batch.image.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(model(image), batch.target)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_gradient or float("inf"))
            optimizer.step()
            schedule.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            for batch in validation.epoch():
                image = batch.image.contiguous(memory_format=torch.channels_last)
                total += criterion(model(image), batch.target).item()
        print(f"bare loop, epoch {epoch + 1}: {total:.3f}", file=sys.stderr, flush=True)


LOOPS: dict[str, Callable[[Path], None]] = {"engine": engine, "bare": bare}


def page(found: dict[str, list[Clock]]) -> str:
    """The results as Markdown."""
    lines, rounds = [], len(found["bare"])
    used = {name: sum(processor for processor, _ in times) for name, times in found.items()}
    extra = (used["engine"] - used["bare"]) / rounds / MEASURED
    for axis, what in ((0, "processor time, all threads"), (1, "wall time")):
        ours, theirs = ([times[axis] for times in found[name]] for name in ("engine", "bare"))
        ratios = [one / two for one, two in zip(ours, theirs, strict=True)]
        ratio, more = sum(ours) / sum(theirs), (sum(ours) - sum(theirs)) / rounds / MEASURED
        limit = [f"{MOST:g}", "met" if ratio <= MOST else "NOT met"] if axis == 0 else ["", ""]
        seconds = [f"{statistics.mean(one) / MEASURED:.1f} s" for one in (ours, theirs)]
        spread = f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        lines.append(f"| {' | '.join([what, *seconds, f'{more:.2f} s', spread, *limit])} |")
    return "\n".join(
        [
            "# What the engine's loop costs",
            "",
            f"`python -m benchmarks.loop_overhead --rounds {rounds}`, {today()}, {machine()}.",
            "",
            f"An epoch of a ResNet-50 over {IMAGES['train']} images of {SIZE}x{SIZE} in batches of 16, with",
            "its validation: the engine's loop with an asynchronous checkpoint, a picture, its log and",
            f"MLflow against a bare PyTorch loop, side by side on a core each, {MEASURED} epochs a round.",
            f"Of an epoch of {LEAST_SECONDS} s the same extra processor time would be",
            f"{extra / LEAST_SECONDS:.1%}.",
            "",
            "| what | engine | bare loop | more | ratio of all (rounds) | limit | |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
