"""The one error of reading images, and the guard that lets no other out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from radfuse.serving.errors import ServingError
from radfuse.serving.images.silence import silenced


class UnreadableImage(ServingError):
    """A file, or a folder of files, cannot be read as the image that was asked for.

    Attributes:
        path: the file or folder.
        reason: what was expected, what came, what to do. It holds neither file names nor values of
            identifying tags, so it may be written where only pseudonymous ids may stand.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{self.path.name}: {reason}")

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[Path, str]]:
        """Errors cross from worker processes by pickle, which would call the class with the message alone."""
        return type(self), (self.path, self.reason)


@contextmanager
def guarded(path: str | Path, what: str) -> Iterator[None]:
    """Turn whatever a decoding library raises into `UnreadableImage`.

    Libraries put values of tags into their messages and warnings, and with them names and birth dates. So the
    reason names the kind of error alone; the error itself stays reachable as ``__cause__`` for debugging.

    Args:
        path: the file that is being read.
        what: the reason's beginning: ``the DICOM header cannot be parsed``.

    Raises:
        UnreadableImage: in the place of any error that is not one of ours.
    """
    try:
        with silenced():
            yield
    except ServingError:
        raise
    except MemoryError as error:
        raise UnreadableImage(path, f"{what}: there is not enough memory for it") from error
    except PermissionError as error:
        raise UnreadableImage(path, "permission to read it is missing; change the file's mode") from error
    except FileNotFoundError as error:
        raise UnreadableImage(path, "there is no such file; check the list that names it") from error
    except Exception as error:
        reason = f"{what} ({type(error).__name__}); the file may be damaged: copy it again from its origin"
        raise UnreadableImage(path, reason) from error
