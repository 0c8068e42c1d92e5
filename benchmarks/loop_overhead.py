"""What the engine's loop costs over a bare PyTorch loop: processor time of an epoch, everything counted.

Run by ``python -m benchmarks.loop_overhead [--pairs N]``; writes ``benchmarks/results/loop_overhead.md``.
Both train the same ResNet-50 on the same 96x96 images in the same order, by the same loader, loss and
optimizer, and validate after each epoch. The engine's also saves one asynchronous checkpoint an epoch, draws
and logs, and tells MLflow. The two run in turn, each in a process of its own with one thread; what is
compared is the processor time of its second epoch, in all threads: the writer's counts, other programs' does
not.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
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
SIZE, EPOCHS, MEASURED = 96, 3, 1
IMAGES = {"train": 1200, "val": 48, "calibration": 4, "test": 4}
FINDINGS = [f"finding_{number}" for number in range(14)]
Clock = tuple[float, float]
"""Processor and wall time."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs behind the ratio")
    parser.add_argument("--child", choices=list(LOOPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child:
        print(json.dumps(LOOPS[chosen.child](chosen.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="loop-") as folder:
        prepare(Path(folder))
        found: dict[str, list[Clock]] = {name: [] for name in LOOPS}
        for pair in range(chosen.pairs):
            # Who is first changes, as a machine may get faster or slower.
            for name in sorted(LOOPS, reverse=bool(pair % 2)):
                found[name].append(measured(name, Path(folder)))
                print(name, found[name][-1], flush=True)
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


def measured(name: str, folder: Path) -> Clock:
    """Processor and wall seconds of one epoch of a loop, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loop_overhead", "--child", name, "--folder", str(folder)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    times = json.loads(ran.stdout.splitlines()[-1])
    processor, wall = (times[MEASURED + 1][axis] - times[MEASURED][axis] for axis in (0, 1))
    if wall < LEAST_SECONDS:
        sys.exit(
            f"An epoch of the loop {name!r} took {wall:.0f} s, less than {LEAST_SECONDS} s: this machine is "
            "faster than the one that this was written on. Give IMAGES['train'] more images."
        )
    return processor, wall


class Enough(Exception):
    """The epoch that is measured has ended."""


def now() -> Clock:
    """Processor time of all threads of this process, and the wall's."""
    return time.process_time(), time.perf_counter()


def engine(folder: Path) -> list[Clock]:
    """The engine's training; returns when each epoch began."""
    import torch

    from radfuse.engine import config
    from radfuse.engine.places import Places
    from radfuse.engine.training import loop, session

    torch.set_num_threads(1)
    began: list[Clock] = []
    train_epoch = loop.train_epoch

    def timed(run: Any) -> None:
        began.append(now())
        if len(began) > MEASURED + 1:
            raise Enough
        train_epoch(run)

    loop.train_epoch = timed
    file = folder / "params.yaml"
    with suppress(Enough):
        session.train(config.load(file), Places.of(file), "xray", resume="none")
    return began


def bare(folder: Path) -> list[Clock]:
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
    began: list[Clock] = []
    for epoch in range(EPOCHS):
        began.append(now())
        if len(began) > MEASURED + 1:
            break
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
    return began


LOOPS: dict[str, Callable[[Path], list[Clock]]] = {"engine": engine, "bare": bare}


def page(found: dict[str, list[Clock]]) -> str:
    """The results as Markdown."""
    lines = []
    for axis, what in ((0, "processor time, all threads"), (1, "wall time")):
        ratios = [one[axis] / two[axis] for one, two in zip(found["engine"], found["bare"], strict=True)]
        ours, theirs = (statistics.median(one[axis] for one in found[name]) for name in ("engine", "bare"))
        ratio = statistics.median(ratios)
        limit = [f"{MOST:g}", "met" if ratio <= MOST else "NOT met"] if axis == 0 else ["", ""]
        spread = f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        lines.append(f"| {' | '.join([what, f'{ours:.1f} s', f'{theirs:.1f} s', spread, *limit])} |")
    return "\n".join(
        [
            "# What the engine's loop costs",
            "",
            f"`python -m benchmarks.loop_overhead --pairs {len(found['bare'])}`, {today()}, {machine()}.",
            "",
            f"One epoch of a ResNet-50 over {IMAGES['train']} images of {SIZE}x{SIZE} in batches of 16, and",
            "its validation, with one thread: the engine's loop with an asynchronous checkpoint, its log and",
            "MLflow against a bare PyTorch loop.",
            "",
            "| what | engine | bare loop | ratio, median (spread) | limit | |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
