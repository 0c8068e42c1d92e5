"""Checkpoints that cannot be lost, mistaken or faked.

`save`, `load`, `read_header` and `verify` work on files; `CheckpointManager` keeps a folder of them during
training. Nothing here imports torch before it is needed: headers are read without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "save": "ckptcore.writing",
    "load": "ckptcore.loading",
    "Checkpoint": "ckptcore.loading",
    "read_header": "ckptcore.loading",
    "Header": "ckptcore.header",
    "verify": "ckptcore.verifying",
    "Report": "ckptcore.verifying",
    "load_weights": "ckptcore.weights",
    "model_digest": "ckptcore.weights",
    "capture": "ckptcore.training_state",
    "restore": "ckptcore.training_state",
    "CheckpointManager": "ckptcore.manager",
    "Catalogue": "ckptcore.catalogue",
    "announce": "ckptcore.announce",
    "write_history": "ckptcore.history",
    "promote": "ckptcore.versions",
    "publish": "ckptcore.publishing",
    "pin": "ckptcore.folder",
    "unpin": "ckptcore.folder",
}
_MODULES = ("errors", "layouts", "rules")

__all__ = sorted([*_HOME, *_MODULES, "CheckpointError"])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        found = import_module(f"ckptcore.{name}")
    elif name == "CheckpointError":
        found = import_module("ckptcore.errors").CheckpointError
    else:
        raise AttributeError(f"module 'ckptcore' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
