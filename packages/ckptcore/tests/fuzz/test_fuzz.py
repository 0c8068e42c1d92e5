"""Damaged and hostile files made by chance: whatever they hold, only errors of ours come out."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from every_tool import make_bench, use_every_tool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutants import MUTATORS, Seeds
from states import difference

import ckptcore
from ckptcore.errors import CheckpointError

SLOW_SECONDS = float(os.environ.get("CKPTCORE_FUZZ_SECONDS", "600"))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Seeds:
    """Good files to start from."""
    return Seeds(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The name under which every mutant is opened."""
    return tmp_path_factory.mktemp("victim") / "victim.pt"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good file; every mutant gets the same name in it."""
    return make_bench(tmp_path_factory.mktemp("bench"))


def open_in_every_way(path: Path, data: bytes) -> None:
    """Read header, verify and load; errors of ours are the only ones that may come, and they agree."""
    path.write_bytes(data)
    report = ckptcore.verify(path)
    try:
        header = ckptcore.read_header(path)
    except CheckpointError:
        header = None
    if header is not None:
        assert isinstance(header.metrics, dict)
        assert isinstance(header.roles, tuple)
        assert header.epochs_finished is None or isinstance(header.epochs_finished, int)
        assert header.global_step is None or isinstance(header.global_step, int)
        repr((header, header.run_key, header.reason))
    try:
        found = ckptcore.load(path)
    except CheckpointError as error:
        # What loads not may still be whole: a safetensors or torch file that holds no checkpoint.
        assert not report.ok or report.format in ("torch", "torch-legacy", "safetensors"), error
        return
    assert report.ok
    use(found)
    use(ckptcore.load(path, mmap=True))
    if found.header.format == "ckptcore":
        assert difference(torch.load(path), dict(found)) is None, "torch reads something else"


def use(found: ckptcore.Checkpoint) -> None:
    """Touch every number, so that a tensor that leads out of its memory would show itself."""
    assert isinstance(found.header.metrics, dict)
    assert found.epochs_finished is None or isinstance(found.epochs_finished, int)
    stack: list[Any] = [dict(found)]
    for _ in range(10_000):
        if not stack:
            break
        value = stack.pop()
        if isinstance(value, torch.Tensor) and value.numel() < 100_000:
            # A clone: contiguous() keeps odd strides of dimensions of one element, and view() minds them.
            plain = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            plain.reshape(-1).view(torch.uint8).sum() if value.numel() else None
        elif isinstance(value, dict):
            stack += [*value.values()]
        elif isinstance(value, (list, tuple)):
            stack += value


@pytest.mark.parametrize("mutator", MUTATORS, ids=lambda mutator: mutator.__name__)
@given(seed=st.integers(0, 2**64))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)
def test_no_mutant_brings_anything_but_errors_of_ours(
    seeds: Seeds, victim: Path, mutator: Callable[[Seeds, random.Random], bytes], seed: int
) -> None:
    open_in_every_way(victim, mutator(seeds, random.Random(seed)))


@given(data=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_at_all_bring_anything_but_errors_of_ours(victim: Path, data: bytes) -> None:
    open_in_every_way(victim, data)


@pytest.mark.slow
def test_minutes_of_mutants_bring_nothing_but_errors_of_ours(
    seeds: Seeds, victim: Path, bench: Path, record_property: Callable[[str, object], None]
) -> None:
    start, first = time.monotonic(), random.SystemRandom().randrange(1 << 62)
    count = 0
    while time.monotonic() - start < SLOW_SECONDS:
        mutator = MUTATORS[count % len(MUTATORS)]
        data = mutator(seeds, random.Random(first + count))
        try:
            open_in_every_way(victim, data)
            use_every_tool(bench, data)
        except BaseException as error:
            raise AssertionError(
                f"{mutator.__name__} with seed {first + count}: {type(error).__name__}: {error}"
            ) from error
        count += 1
    record_property("shown", f"{count:,} mutants of {len(MUTATORS)} kinds in {SLOW_SECONDS:.0f} s")
    assert count > SLOW_SECONDS


def test_a_tensor_of_one_element_and_an_odd_stride_is_read(seeds: Seeds, victim: Path) -> None:
    mutator = next(m for m in MUTATORS if m.__name__ == "grammar_foreign")
    open_in_every_way(victim, mutator(seeds, random.Random(1416731705832490406)))
