"""The writer thread: one save in flight, its error kept for the loop, waited for at exit."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Writer:
    """Runs one job at a time beside the loop, or in it when it is not asynchronous."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Start a job; the caller has waited for the one before.

        Raises:
            BaseException: in the synchronous case, what the job raised.
        """
        if not self.asynchronous:
            job()
            return
        # Not a daemon: the interpreter waits for it at exit, so that a save that was begun is finished.
        self._thread = threading.Thread(target=self._run, args=(job,), name="ckptcore-writer", daemon=False)
        self._thread.start()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            _log.error("a checkpoint could not be written: %s", error)
            self._error = error

    def wait(self) -> None:
        """Wait for the job in flight."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def raise_error(self) -> None:
        """Raise what the last job raised, once.

        Raises:
            BaseException: that error.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error
