"""Errors that radfuse raises on purpose: what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


class RadfuseError(Exception):
    """Base of every error that a command shows as one message, without a traceback."""


class UnknownModality(RadfuseError):
    """No installed package registers a modality of that name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"no modality {name!r} is installed{did_you_mean(name, known)}")


class SettingsError(RadfuseError):
    """params.yaml, or a ``--set``, says something that makes no sense."""


class SourceError(RadfuseError):
    """A source of images cannot be read as its kind demands."""


class LeakageError(RadfuseError):
    """A patient is in more than one split."""


class StaleError(RadfuseError):
    """A table was made from another model or another split than the one at hand."""


class MissingStage(RadfuseError):
    """What an earlier stage makes is not there."""


class CannotGoOn(RadfuseError):
    """A checkpoint is not one that this training can be gone on from."""


class DamagedArray(RadfuseError):
    """An array that was prepared is gone, cut or not like the others."""


class TooManySkipped(RadfuseError):
    """More images could not be read than ``prepare.max_skipped_fraction`` allows."""


class NonFiniteLoss(RadfuseError):
    """The loss is NaN or infinite."""


class LoaderDied(RadfuseError):
    """A process that loads samples was killed."""


class ParityError(RadfuseError):
    """An export does not answer as its checkpoint does."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of a message: the nearest known name, or all of them."""
    near = get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known) or 'none'}."
