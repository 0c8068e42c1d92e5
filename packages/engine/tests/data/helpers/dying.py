"""A stand-in for decoding that ends its process, as a crash in a decoder does; workers import it."""

import os
import signal

from radfuse.engine.preparing.decoding import Finished, Job


def die_on_odd_ones(job: Job) -> Finished:
    if int(job.recipe) % 4 == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return Finished(job.sample_id, job.recipe, "digest")
