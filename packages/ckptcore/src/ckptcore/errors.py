"""Every error that ckptcore raises on purpose: one base class, one class a kind of trouble.

A message says what was expected, what came, and what to do. Errors of the operating system that no class here
describes (EIO, for one) pass through unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


class CheckpointError(Exception):
    """Base of every error raised by ckptcore."""


class UsageError(CheckpointError):
    """A call or a command was given arguments that make no sense."""


class NothingThere(UsageError):
    """A folder holds nothing of what was to be worked on; for a command that is a finding."""


class UnsavableValue(CheckpointError):
    """A value of the state cannot be stored so that ``torch.load`` (weights_only) opens it again.

    Attributes:
        key_path: where the value sits, as ``optimizer_state_dict/param_groups/0/lr``.
    """

    def __init__(self, key_path: str, problem: str) -> None:
        self.key_path = key_path
        super().__init__(f"cannot save {key_path or 'the state'}: {problem}")


class DamagedCheckpoint(CheckpointError):
    """A file is not, byte for byte, what was written.

    Attributes:
        path: the file.
        findings: one line for each damaged tensor, record or structure.
    """

    def __init__(self, path: str | Path, findings: Sequence[str]) -> None:
        self.path = Path(path)
        self.findings = tuple(findings)
        shown = "; ".join(self.findings[:5])
        more = f"; and {len(self.findings) - 5} more" if len(self.findings) > 5 else ""
        super().__init__(f"{self.path.name} is damaged: {shown}{more}. Use another checkpoint of the run.")


class UnknownFormat(CheckpointError):
    """A file is in no format that ckptcore reads."""


class NewerFormat(UnknownFormat):
    """A file was written by a newer ckptcore: whole, and not for this one to judge."""


class RefusedContent(CheckpointError):
    """A file asks for something that loading data never needs: foreign classes, code, another place on disk.

    Attributes:
        names: the classes and functions that the file names, as far as they are known.
    """

    def __init__(self, path: str | Path, problem: str, names: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self.names = tuple(names)
        super().__init__(f"{self.path.name} was refused: {problem}")


class MissingState(CheckpointError):
    """A piece of the training state is missing at resume, and was not waived.

    Attributes:
        missing: the names of the pieces.
    """

    def __init__(self, missing: Sequence[str], message: str) -> None:
        self.missing = tuple(missing)
        super().__init__(message)


def holder_text(holder: Mapping[str, object]) -> str:
    """Who holds a folder, in words."""
    return ", ".join(f"{key} {value}" for key, value in holder.items()) or "an unknown process"


class FolderBusy(CheckpointError):
    """Another writer holds the folder.

    Attributes:
        holder: what is known of it (``pid``, ``host``, ``command``, ``since``).
    """

    def __init__(self, folder: str | Path, holder: dict[str, object]) -> None:
        self.holder = dict(holder)
        super().__init__(
            f"{folder} has a writer already ({holder_text(holder)}). "
            "One writer a folder: wait for it, stop it, or use another folder."
        )


class FolderNotWritable(CheckpointError):
    """The checkpoint folder cannot be made or written."""


class DiskFull(CheckpointError):
    """There is no room for a file; whatever was there before is untouched.

    Attributes:
        needed: bytes that the file needs.
        free: bytes that were free.
    """

    def __init__(self, path: str | Path, needed: int, free: int) -> None:
        self.needed, self.free = needed, free
        super().__init__(
            f"no space for {Path(path).name}: needs {needed:,} bytes, {free:,} are free. "
            "Nothing was changed. Free some space ('ckpt plan' shows what may go), save less often, "
            "or use another folder."
        )


class VersionRefused(CheckpointError):
    """A promotion was refused: the number, the file or the architecture does not allow it."""


class WeightsMismatch(CheckpointError):
    """The weights of a checkpoint are not, name for name and shape for shape, those of a model.

    Attributes:
        path: the checkpoint.
        missing: names that the model has and the checkpoint has not.
        unexpected: names that the checkpoint has and the model has not.
        other_shape: one line for each tensor of another shape.
    """

    def __init__(
        self, path: str | Path, missing: Sequence[str], unexpected: Sequence[str], other_shape: Sequence[str]
    ) -> None:
        self.path = Path(path)
        self.missing, self.unexpected = tuple(missing), tuple(unexpected)
        self.other_shape = tuple(other_shape)
        kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", other_shape))
        parts = [f"{len(names)} {kind}: {some_of(names)}" for kind, names in kinds if names]
        super().__init__(
            f"{self.path.name} does not fit the model: {'; '.join(parts)}. Nothing was loaded. "
            "Build the model as it was when it was saved, or load what fits with strict=False."
        )


def some_of(names: Iterable[Any]) -> str:
    """The first five names, and how many more there are."""
    listed = sorted(map(str, names)) if isinstance(names, (set, frozenset)) else [str(name) for name in names]
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
