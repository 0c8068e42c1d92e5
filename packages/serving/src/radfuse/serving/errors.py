"""Errors that radfuse.serving raises on purpose: what was expected, what came, what to do."""

from __future__ import annotations


class ServingError(Exception):
    """Base of every error that a caller may show as one message, without a traceback."""


class InputError(ServingError):
    """A call was given inputs that do not fit the model: a missing role, a point where none is used."""


class SpecError(ServingError):
    """A preprocessing recipe says something that its kind does not know."""


class CardError(ServingError):
    """The card beside a model file is missing, malformed, or of a format that this version does not read."""


class ModelError(ServingError):
    """A model file is missing, is not the one that its card describes, or does not fit its card."""
