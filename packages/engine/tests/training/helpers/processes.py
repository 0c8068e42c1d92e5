"""`radfuse train` of the toy modality as a process."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]
TRAIN = """
import multiprocessing, os, signal, sys, time
# What Python has chosen differs between its versions.
multiprocessing.set_start_method(os.environ.get("START_METHOD"))
# Who runs the tests may ignore it, as nohup does, and a training would then, too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from radfuse.engine.cli import run
from radfuse.engine.training.run import Run
count = Run.count
def told(self, batch, loss):
    count(self, batch, loss)
    # Not by print: a progress bar takes that to where it is shown.
    os.write(1, f"{self.at.step}\\n".encode())
    time.sleep(0.05)
Run.count = told
if "SECONDS_A_SAMPLE" in os.environ:
    from radfuse.engine.training.loaders import Examples
    load = Examples.__getitem__
    def slowly(self, place):
        time.sleep(float(os.environ["SECONDS_A_SAMPLE"]))
        return load(self, place)
    Examples.__getitem__ = slowly
sys.exit(run(["train", "toy", "--params", sys.argv[1], *sys.argv[2:]]))
"""


def environment():
    """The variables that a training of the toy modality needs."""
    return {**os.environ, "PYTHONPATH": str(HERE / "toy"), "MLFLOW_DISABLE_TELEMETRY": "true"}


def started(pipeline, *arguments, **variables):
    """A training in a process group of its own, which prints its steps."""
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(pipeline.file), *arguments],
        cwd=pipeline.root,
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stopped(pipeline, step, *signals, **variables):
    """Start, and send signals to the group after a step; SECONDS_A_SAMPLE makes loading slow.

    Returns the exit code, the last step, and what was said.
    """
    with started(pipeline, **variables) as running:
        for line in running.stdout:
            if int(line) == step:
                break
        for one in signals:
            os.killpg(running.pid, one)
        # Not by communicate(), which loses lines that came with the one above.
        rest, said = running.stdout.read(), running.stderr.read()
    steps = [int(line) for line in rest.splitlines() if line.isdigit()]
    return running.returncode, max([step, *steps]), said
