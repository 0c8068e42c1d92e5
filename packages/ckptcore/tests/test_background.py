"""The writer thread: one job, its error kept until somebody asks."""

from __future__ import annotations

import threading

import pytest

from ckptcore.background import Writer


def test_a_synchronous_writer_runs_the_job_where_it_is_called() -> None:
    threads: list[threading.Thread] = []
    Writer(asynchronous=False).submit(lambda: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]


def test_a_synchronous_writer_raises_what_the_job_raises() -> None:
    writer = Writer(asynchronous=False)
    with pytest.raises(ZeroDivisionError):
        writer.submit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    writer.raise_error()


def test_an_asynchronous_writer_returns_before_the_job_ends_and_waits_on_demand() -> None:
    writer, gate, done = Writer(asynchronous=True), threading.Event(), []
    writer.submit(lambda: (gate.wait(20), done.append(threading.current_thread()))[0])  # type: ignore[arg-type, func-returns-value, return-value]
    assert done == []
    gate.set()
    writer.wait()
    assert len(done) == 1
    assert done[0] is not threading.current_thread()
    assert not done[0].daemon  # or the interpreter would not wait for it
    writer.wait()


def test_an_error_is_raised_once(caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer(asynchronous=True)
    writer.submit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    writer.wait()
    assert "division by zero" in caplog.text
    with pytest.raises(ZeroDivisionError):
        writer.raise_error()
    writer.raise_error()
