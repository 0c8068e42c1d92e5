"""A synthetic cohort of patients, written as the DICOM and NIfTI files that scanners write.

`write` writes it; `radfuse.phantom.model` says by which law it is made, `radfuse.phantom.ceilings` how well
anybody can do on it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from radfuse.phantom.cohort import Report, write
    from radfuse.phantom.errors import ForeignFolder, PhantomError, SettingsError
    from radfuse.phantom.settings import Settings

__all__ = ["ForeignFolder", "PhantomError", "Report", "Settings", "SettingsError", "write"]

_HOMES = {
    "Report": "cohort",
    "write": "cohort",
    "ForeignFolder": "errors",
    "PhantomError": "errors",
    "SettingsError": "errors",
    "Settings": "settings",
}


def __getattr__(name: str) -> object:
    """Import what is asked for: `radfuse --help` loads this package and needs no picture library."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
