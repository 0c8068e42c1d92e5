"""Stops a training from within, as a signal from outside does, and tells the steps that it makes."""

import os
import signal

from radfuse.engine.training.run import Run


def stop_at(monkeypatch, steps):
    """Send SIGTERM to this very process after given global steps, once each."""
    count, left = Run.count, set(steps)

    def counted(run, batch, loss):
        count(run, batch, loss)
        if run.at.step in left:
            left.discard(run.at.step)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "count", counted)


def steps_done(monkeypatch):
    """The global steps of trainings in this process from now on."""
    done, count = [], Run.count
    monkeypatch.setattr(Run, "count", lambda run, *told: (count(run, *told), done.append(run.at.step)))
    return done
