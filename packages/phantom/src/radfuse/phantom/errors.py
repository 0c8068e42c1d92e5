"""Errors that the command shows as one message: what was expected, what came, what to do."""

from __future__ import annotations


class PhantomError(Exception):
    """Base of every error that this package raises on purpose."""


class SettingsError(PhantomError):
    """The ``phantom:`` block of params.yaml, or a ``--set``, says something that makes no sense."""


class ForeignFolder(PhantomError):
    """The folder to write to holds what this package did not write, or another call goes on writing it."""
