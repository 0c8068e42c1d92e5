"""One writer a folder: a kernel lock that dies with its process, and a note of who holds it."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path

from ckptcore import durable
from ckptcore.errors import DiskFull, FolderBusy
from ckptcore.folder import MAX_BYTES, hidden

_log = logging.getLogger(__name__)


class Lease:
    """The right to write to a folder, until `release` or the end of the process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock_file = hidden(directory) / "writer.lock"
        self._note = hidden(directory) / "writer.json"
        self._held_by: int | None = None

    def acquire(self, wait_seconds: float = 0.0) -> None:
        """Take the folder.

        Args:
            wait_seconds: how long to wait for another writer; 0 not at all.

        Raises:
            FolderBusy: another writer holds it, and who that is.
        """
        # filelock takes as long to import as a thousand headers to read, and only writers need it.
        from filelock import FileLock, Timeout

        durable.make_folder(hidden(self._directory))
        self._lock = FileLock(self._lock_file, timeout=wait_seconds, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise FolderBusy(self._directory, self.holder()) from error
        self._held_by = os.getpid()
        try:
            durable.write_text(self._note, json.dumps(_me(), indent=2) + "\n")
        except (DiskFull, IsADirectoryError) as error:
            # The lock is what counts; who has no room for the note may still read, resume and free some.
            _log.warning("who holds %s is not noted: %s", self._directory, error)
        except BaseException:
            self.release()
            raise

    def holder(self) -> dict[str, object]:
        """What the note says of the writer; empty when there is none or it cannot be read."""
        try:
            with open(self._note, encoding="utf-8") as file:
                found = json.loads(file.read(MAX_BYTES))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def release(self) -> None:
        """Give the folder back; harmless when it is not held."""
        # A forked child has a copy of this object, and no right to end what its parent holds.
        if self._held_by == os.getpid():
            self._held_by = None
            durable.remove_quietly(self._note)
            self._lock.release()


def _me() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "program": Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python",
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
