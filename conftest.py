"""Hypothesis profiles (`sample` for `make test`, `thorough` for `make test-slow`), counts, real images."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Tables are compared as a pipe shows them; two workers with two threads each would only wait for each other.
os.environ.pop("COLUMNS", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what it puts in the background with Ctrl-C ignored, which children inherit: those that a test
# interrupts would run on for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: examples here wait for fsync on disks that other programs use too. In CI every run has the same
# examples, so that no change is blamed for an old bug found by luck; elsewhere each run tries new ones.
_COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow],
}

settings.register_profile("sample", max_examples=50, derandomize="CI" in os.environ, **_COMMON)
settings.register_profile("thorough", max_examples=2000, **_COMMON)
settings.load_profile("sample")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a test counted and wants seen though it passed: `record_property("shown", text)`."""
    told = [
        (report.nodeid, text)
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, text in report.user_properties
        if name == "shown"
    ]
    if told:
        terminalreporter.section("counted")
    for test, text in told:
        terminalreporter.write_line(f"{test.rsplit('::', 1)[-1]}:\n{text}")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real images for tests: ``../shared/data`` beside the checkout, or ``$RADFUSE_TEST_DATA``."""
    folder = Path(os.environ.get("RADFUSE_TEST_DATA") or Path(__file__).parents[1] / "shared" / "data")
    if not (folder / "README.md").is_file():
        pytest.skip(f"NO REAL IMAGES: {folder} is missing; set RADFUSE_TEST_DATA to a folder that has them")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A real file system of one megabyte, or of as many as the parameter says."""
    disk = tmp_path / "small_disk"
    disk.mkdir()
    size = f"size={getattr(request, 'param', 1)}m"
    if shutil.which("mount") is None:
        pytest.skip("NO FULL AND NO READ-ONLY DISK: there is no `mount` here")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"NO FULL AND NO READ-ONLY DISK: a small tmpfs needs root ({mounted.stderr.strip()})")
    yield disk
    # Whoever still looks at it may go on looking.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def fill(small_disk: Path) -> Callable[..., Path]:
    """Takes all of the small disk but some bytes; gives the file that has them, to be deleted."""

    def filled(left: int = 0) -> Path:
        filler = small_disk / "filler"
        with open(filler, "wb", buffering=0) as stream:
            with pytest.raises(OSError, match="No space left"):
                while True:
                    stream.write(bytes(4096))
            stream.truncate(stream.tell() - left)
        return filler

    return filled
