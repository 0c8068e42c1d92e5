"""Progress on a terminal and elsewhere."""

import io
import os
from contextlib import suppress

import pytest

from radfuse.engine.progress import Track, duration, track


class Clock:
    """Seven seconds pass between two looks."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 7.0
        return self.now


def test_elsewhere_a_line_tells_now_and_then_how_much_is_left():
    stream = io.StringIO()
    steps = Track(range(4), "train 1/3", stream=stream, clock=Clock())
    for _ in steps:
        steps.note = "loss 0.5"
    assert stream.getvalue().splitlines() == ["train 1/3 2/4, 14 s, about 14 s left, loss 0.5"]


def test_what_was_done_before_counts_but_not_for_the_time_left():
    stream = io.StringIO()
    list(Track(range(4), "train", 10, stream=stream, clock=Clock(), done=6))
    assert stream.getvalue().splitlines() == ["train 8/10, 14 s, about 14 s left"]


def test_on_a_terminal_a_bar_shows_count_and_note(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setenv("COLUMNS", "120")
    steps = Track(range(3), "train", stream=stream)
    for _ in steps:
        steps.note = "loss 0.5"
    assert "3/3" in stream.getvalue() and "loss 0.5" in stream.getvalue()


@pytest.mark.parametrize("mode", ["auto", "bar", "lines", "none"])
def test_every_item_comes_in_its_order(mode):
    assert list(track(iter("abc"), "letters", 3, mode)) == ["a", "b", "c"]


@pytest.mark.parametrize("mode", ["bar", "lines"])
def test_a_terminal_that_is_gone_stops_nothing(mode):
    window, inside = os.openpty()
    # Its own end fails, as there is still something to be written.
    with suppress(OSError), open(inside, "w") as stream:
        for step in Track(range(4), "train", mode=mode, stream=stream, clock=Clock()):
            if step == 1:
                os.close(window)
            done = step
    assert done == 3


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.24, "0.2 s"), (12.3, "12 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said
