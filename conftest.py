"""Hypothesis profiles (`sample` for `make test`, `thorough` for `make test-slow`), counts, real images."""

import os
import signal
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
