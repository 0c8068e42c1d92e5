"""How fast ckptcore saves, loads and lists, against torch.save and torch.load, DCP and safetensors.

Run by ``python -m benchmarks.checkpoints [--pairs N]``; writes ``benchmarks/results/checkpoints.md``. Each
ratio comes from the same run, taken in turn with its peer. One and two cores are set by CPU affinity, with as
many torch threads.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import ckptcore
from benchmarks.measuring import (
    HEADINGS,
    Row,
    child_seconds,
    machine,
    markdown,
    paired,
    process_seconds,
    seconds,
    today,
)
from benchmarks.states import STATES, tensors_of, training_state

RESULTS = Path(__file__).parent / "results" / "checkpoints.md"
# On the disk of the repository, and ignored by git: a run that was killed leaves gigabytes.
WORK = Path(__file__).parents[1] / ".bench"

# A resuming process loads once, into memory that it does not have yet: each load is timed in a fresh process.
_LOAD = """
import os, sys, time
os.sched_setaffinity(0, set(range(int(sys.argv[1]))))
import torch, ckptcore
torch.set_num_threads(int(sys.argv[1]))
kind, path, warm = sys.argv[2:5]
loaders = {
    "torch": lambda p: torch.load(p),
    "ckptcore": lambda p: ckptcore.load(p),
    "ckptcore mmap": lambda p: ckptcore.load(p, mmap=True),
    "safetensors": lambda p: {"model_state_dict": __import__("safetensors.torch").torch.load_file(p)},
}
loaders[kind](warm)
began = time.perf_counter()
state = loaders[kind](path)
total = sum(float(v.view(-1)[:: 1024].sum()) for v in state["model_state_dict"].values())
print(time.perf_counter() - began)
"""


@contextmanager
def using_cores(count: int) -> Iterator[None]:
    """Restrict this process, and torch in it, to some cores."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, set(sorted(before)[:count]))
    torch.set_num_threads(count)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


def torch_save_durable(path: Path, state: Any) -> None:
    """What a careful user writes today."""
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def safetensors_save_durable(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The tensors alone, in the other well-known format."""
    from safetensors.torch import save_file

    save_file(tensors, path)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def stall_rows(name: str, state: dict[str, Any], folder: Path, cores: int, pairs: int) -> list[Row]:
    """How long the loop waits for an asynchronous save."""
    sources = tensors_of(state)
    buffers = [torch.empty_like(tensor) for tensor in sources]

    def copy() -> None:
        for buffer, source in zip(buffers, sources, strict=True):
            buffer.copy_(source)

    epoch = iter(range(10**6))
    rows = []
    with ckptcore.CheckpointManager(folder / "stall", handle_signals=False) as manager:

        def step() -> float:
            saved = manager.step(state, epoch=next(epoch))
            assert saved is not None
            manager.wait()
            return saved.stall_seconds

        what = f"{name}: loop stall of an asynchronous save"
        rows.append(
            paired(
                what,
                step,
                "plain copy_ into kept buffers",
                lambda: seconds(copy),
                pairs=pairs,
                cores=cores,
                limit=1.3,
            )
        )
        rows.append(
            paired(
                what,
                step,
                "clone() of the tensors",
                lambda: seconds(lambda: [t.clone() for t in sources]),
                pairs=pairs,
                cores=cores,
            )
        )
        rows.append(
            paired(
                what,
                step,
                "dcp.async_save, until it returns",
                lambda: _dcp_async(state, folder),
                pairs=max(3, pairs // 3),
                cores=cores,
            )
        )
    return rows


def gpu_rows(name: str, shapes: list[tuple[int, ...]], folder: Path, pairs: int) -> list[Row]:
    """How long the loop waits for an asynchronous save of a state on the GPU, against the bus alone."""
    state = training_state(shapes, "cuda")
    sources = tensors_of(state)
    pinned = [torch.empty(source.shape, dtype=source.dtype, pin_memory=True) for source in sources]

    def copy() -> None:
        for buffer, source in zip(pinned, sources, strict=True):
            buffer.copy_(source, non_blocking=True)
        torch.cuda.synchronize()

    epoch = iter(range(10**6))
    with ckptcore.CheckpointManager(folder / "gpu", handle_signals=False) as manager:

        def step() -> float:
            torch.cuda.synchronize()
            saved = manager.step(state, epoch=next(epoch))
            assert saved is not None
            manager.wait()
            return saved.stall_seconds

        return [
            paired(
                f"{name} on the GPU: loop stall of an asynchronous save",
                step,
                "copies to pinned memory, at the bus's speed",
                lambda: seconds(copy),
                pairs=pairs,
                cores=len(os.sched_getaffinity(0)),
                limit=1.3,
            )
        ]


def _dcp_async(state: dict[str, Any], folder: Path) -> float:
    import torch.distributed.checkpoint as dcp

    target = folder / "dcp"
    shutil.rmtree(target, ignore_errors=True)
    flat = {f"t{i}": tensor for i, tensor in enumerate(tensors_of(state))}
    futures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taken = seconds(lambda: futures.append(dcp.async_save(flat, checkpoint_id=str(target))))
    futures[0].result()
    return taken


def save_rows(name: str, state: dict[str, Any], folder: Path, cores: int, pairs: int) -> list[Row]:
    """How long a durable save takes."""
    flat = {f"t{i}": tensor for i, tensor in enumerate(tensors_of(state))}
    ours = lambda: seconds(lambda: ckptcore.save(folder / "ours.pt", state))  # noqa: E731
    what = f"{name}: durable, digested save"
    limit = 1.15 if cores > 1 else 1.5
    return [
        paired(
            what,
            ours,
            "torch.save + fsync",
            lambda: seconds(lambda: torch_save_durable(folder / "t.pt", state)),
            pairs=pairs,
            cores=cores,
            limit=limit,
        ),
        paired(
            what,
            ours,
            "safetensors save_file + fsync (tensors only)",
            lambda: seconds(lambda: safetensors_save_durable(folder / "s.safetensors", flat)),
            pairs=max(3, pairs // 3),
            cores=cores,
        ),
    ]


def load_rows(name: str, state: dict[str, Any], folder: Path, cores: int, pairs: int) -> list[Row]:
    """How long a load takes that verifies every tensor, once in a fresh process, from the page cache."""
    ckptcore.save(folder / "ours.pt", state)
    torch_save_durable(folder / "t.pt", state)
    for kind, path in (("c", folder / "warm_c.pt"), ("t", folder / "warm_t.pt")):
        tiny = {"model_state_dict": {"a": torch.ones(3)}}
        ckptcore.save(path, tiny) if kind == "c" else torch.save(tiny, path)
    safetensors_save_durable(folder / "warm.safetensors", {"a": torch.ones(3)})
    flat = {f"t{i}": tensor for i, tensor in enumerate(tensors_of(state))}
    safetensors_save_durable(folder / "s.safetensors", flat)
    for file in ("ours.pt", "t.pt", "s.safetensors"):
        (folder / file).read_bytes()

    def run(kind: str, file: str, warm: str) -> float:
        return child_seconds(_LOAD, str(cores), kind, str(folder / file), str(folder / warm))

    peer = lambda: run("torch", "t.pt", "warm_t.pt")  # noqa: E731
    return [
        paired(
            f"{name}: verified load, mmap=True",
            lambda: run("ckptcore mmap", "ours.pt", "warm_c.pt"),
            "torch.load",
            peer,
            pairs=pairs,
            cores=cores,
            limit=1.3,
        ),
        paired(
            f"{name}: verified load into private memory",
            lambda: run("ckptcore", "ours.pt", "warm_c.pt"),
            "torch.load",
            peer,
            pairs=pairs,
            cores=cores,
            limit=1.3,
        ),
        paired(
            f"{name}: verified load, mmap=True",
            lambda: run("ckptcore mmap", "ours.pt", "warm_c.pt"),
            "safetensors load_file (tensors only, not verified)",
            lambda: run("safetensors", "s.safetensors", "warm.safetensors"),
            pairs=max(3, pairs // 3),
            cores=cores,
        ),
    ]


def listing(folder: Path, counts: tuple[int, ...], runs: int) -> list[list[str]]:
    """A cold `ckpt list` of many checkpoints: its time, and what each file more than the row before adds."""
    rows: list[list[str]] = []
    median, count_before, each_before = 0.0, 0, 0.0
    for count in counts:
        command = [str(Path(sys.executable).with_name("ckpt")), "list", str(_many(folder, count))]
        times = sorted(process_seconds(command) for _ in range(runs))
        each = (statistics.median(times) - median) / (count - count_before)
        median, count_before = statistics.median(times), count
        verdicts = [f"{'met' if median <= 0.5 else 'NOT met'} (0.5 s)"] if count == 1000 else []
        if len(rows) > 1:
            linear = each <= 1.5 * each_before
            verdicts.append(f"{'linear' if linear else 'NOT linear'} (at most 1.5 x the row before, a file)")
        shown = f"{each * 1e3:.2f} ms" if rows else ""
        rows.append(
            [
                f"{count:,}",
                f"{median:.3f} s",
                f"{times[0]:.3f} to {times[-1]:.3f} s",
                shown,
                "; ".join(verdicts),
            ]
        )
        each_before = each
    return rows


def _many(folder: Path, count: int) -> Path:
    """A folder of so many small checkpoints of one run."""
    target = folder / f"list{count}"
    state = {"epoch": 0, "model_state_dict": {f"w{i}": torch.zeros(4) for i in range(60)}}
    for i in range(count):
        metadata = {"run_key": "bench", "metrics": {"val_auc": 0.5 + i / 10**4}}
        ckptcore.save(target / f"epoch_{i + 1}.pt", {**state, "epoch": i}, metadata)
    return target


def one_files_bytes(folder: Path) -> tuple[int, int, int]:
    """Names, bytes of one file and bytes of all names together, after one epoch that is best and final."""
    target = folder / "names"
    state = training_state([(256, 256, 3, 3)])
    layout = ckptcore.layouts.plain("val_loss", "min")
    with ckptcore.CheckpointManager(target, layout, total_epochs=1, handle_signals=False) as manager:
        manager.step(state, epoch=0, metrics={"val_loss": 1.0})
    found = [path.stat() for path in target.glob("*.pt")]
    return len(found), found[0].st_blocks * 512, sum({s.st_ino: s.st_blocks * 512 for s in found}.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything and write the results page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of runs behind each ratio")
    parser.add_argument(
        "--folder",
        type=Path,
        default=WORK,
        metavar="DIR",
        help="where to write, on the disk that is measured (default: .bench of the repository)",
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="checkpoints-", dir=options.folder) as scratch:
        folder = Path(scratch)
        rows: list[Row] = []
        for cores in (1, 2):
            with using_cores(cores):
                for name, shapes in STATES.items():
                    state = training_state(shapes())
                    for measure in (stall_rows, save_rows, load_rows):
                        rows += measure(name, state, folder, cores, options.pairs)
                        sys.stderr.write(markdown(HEADINGS, [rows[-1].cells()]).splitlines()[-1] + "\n")
        gpu = "GPU: not measured, there is none."
        if torch.cuda.is_available():
            gpu = ""
            for name, shapes in STATES.items():
                rows += gpu_rows(name, shapes(), folder, options.pairs)
        lists = listing(folder, (250, 1000, 2000, 4000), 11)
        names, one, together = one_files_bytes(folder)
    text = "\n\n".join(
        [
            "# Checkpoints: speed",
            f"{today()}, `python -m benchmarks.checkpoints --pairs {options.pairs}`; {machine()}.",
            "Ratios are ours / peer, pair by pair in one run; below 1 is faster. A load is the first one "
            "of a fresh process, from the page cache. The ResNet-50's state has 282 MB, the U-Net's 231 MB. "
            f"{gpu}".strip(),
            markdown(HEADINGS, [row.cells() for row in rows]),
            "## A cold `ckpt list`",
            markdown(["checkpoints", "median", "range", "each further file", "limit"], lists),
            "## Names of one epoch",
            f"{names} names (best, latest, epoch_1, final) take {together:,} bytes on disk; one file takes "
            f"{one:,}.",
        ]
    )
    options.output.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
