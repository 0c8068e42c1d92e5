"""Hypothesis profiles: `sample` for `make test`, `thorough` for `make test-slow`."""

import os

from hypothesis import HealthCheck, settings

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
