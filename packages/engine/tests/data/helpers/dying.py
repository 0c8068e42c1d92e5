"""A stand-in for decoding that ends its process, as a crash in a decoder does; workers import it."""

import os
import signal
from collections.abc import Sequence

from radfuse.engine.preparing.decoding import Finished, Job


def die_on_odd_ones(jobs: Sequence[Job]) -> list[Finished]:
    if any(int(job.sample_id[1:]) % 4 == 1 for job in jobs):
        os.kill(os.getpid(), signal.SIGKILL)
    return [Finished(job.sample_id, job.recipe, "digest") for job in jobs]
