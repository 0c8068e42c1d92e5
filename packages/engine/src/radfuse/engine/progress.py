"""How far something has come: a bar with the time left on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from typing import Any, Generic, Literal, TextIO, TypeVar, cast

Item = TypeVar("Item")
Mode = Literal["auto", "bar", "lines", "none"]
SECONDS_BETWEEN_LINES = 10.0


class _Lasting:
    """A stream that may vanish, as a terminal does when its window is closed: what is shown is then lost.

    Work of hours does not end because nobody can see any more how far it is.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class Track(Generic[Item]):
    """Items handed on one by one while their progress is shown.

    Attributes:
        note: a few words that are shown beside the progress; whoever handles the items may change it.
    """

    def __init__(
        self,
        items: Iterable[Item],
        title: str,
        total: int | None = None,
        mode: Mode = "auto",
        *,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.note = ""
        self._items = items
        self._title = title
        self._done = done
        self._total = total if total is not None or not isinstance(items, Sized) else done + len(items)
        self._stream = stream
        self._clock = clock
        self._mode = mode

    def __iter__(self) -> Iterator[Item]:
        stream = cast("TextIO", _Lasting(self._stream or sys.stderr))
        mode = self._mode
        if mode == "auto":
            mode = "bar" if stream.isatty() else "lines"
        if mode == "none":
            return iter(self._items)
        return self._with_bar(stream) if mode == "bar" else self._with_lines(stream)

    def _with_bar(self, stream: TextIO) -> Iterator[Item]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        columns += [
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        ]
        with Progress(*columns, console=Console(file=stream), transient=True) as bar:
            task = bar.add_task(self._title, total=self._total, completed=self._done, note="")
            for item in self._items:
                yield item
                bar.update(task, advance=1, note=self.note)

    def _with_lines(self, stream: TextIO) -> Iterator[Item]:
        began = told = self._clock()
        done = self._done
        for item in self._items:
            yield item
            done += 1
            now = self._clock()
            if now - told >= SECONDS_BETWEEN_LINES and done != self._total:
                told = now
                stream.write(self._line(done, now - began) + "\n")
                stream.flush()

    def _line(self, done: int, seconds: float) -> str:
        """``train 12/50, 30 s, about 1 min 35 s left``."""
        here = done - self._done
        words = [
            f"{self._title} {done}" + (f"/{self._total}" if self._total is not None else ""),
            duration(seconds),
        ]
        if self._total is not None and here:
            words.append(f"about {duration(seconds / here * (self._total - done))} left")
        return ", ".join([*words, *([self.note] if self.note else [])])


def track(
    items: Iterable[Item], title: str, total: int | None = None, mode: Mode = "auto", *, done: int = 0
) -> Track[Item]:
    """Iterate over items and show how far that has come, on standard error.

    Args:
        items: what is iterated over.
        title: what is being done.
        total: how many there are, where ``len(items)`` does not say so; those already done included.
        mode: a bar, a line every ten seconds, or neither; ``auto`` takes the bar on a terminal.
        done: how many of them were done before.
    """
    return Track(items, title, total, mode, done=done)


def duration(seconds: float) -> str:
    """A time span as a person says it: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 9.5 or whole == seconds else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
