"""What a checkpoint file is for, as far as its name tells: asked where no recorded layout knows better."""

from __future__ import annotations

import re

from ckptcore.semver import SUFFIXES, is_version

VERSION, EXPORT, PERIODIC, OTHER = "version", "export", "periodic", "other"
BEST, LATEST = "best", "latest"
ROLES = (BEST, LATEST, "final", "stage", "exception")
_EXPORTS = (".onnx", ".safetensors", ".torchscript", ".engine")
_EXPORTED = re.compile(r"torchscript|onnx|traced|scripted", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+", re.IGNORECASE)
_ROLE_OF = {**{role: role for role in ROLES}, "last": LATEST}
_MADE_ON_PURPOSE = {"ema", "swa", "export", "init", "pretrained"}
_COUNTED = re.compile(
    r"(?:^|[^a-z])(?:epochs?|steps?|iter(?:ation)?s?|checkpoint|ckpt)[-_.= ]*\d|(?:^|[-_= ])\d+$",
    re.IGNORECASE,
)


def kind_of_name(name: str) -> str:
    """A version, an export, one of `ROLES`, a periodic file (it has a count of epochs or steps), or other."""
    if is_version(name):
        return VERSION
    if name.endswith(_EXPORTS) or _EXPORTED.search(name):
        return EXPORT
    if not name.endswith(SUFFIXES):
        return OTHER
    stem = name.rpartition(".")[0]
    words = {word.lower() for word in _WORD.findall(stem)}
    role = next((role for word, role in _ROLE_OF.items() if word in words), None)
    if role is not None:
        return role
    return PERIODIC if _COUNTED.search(stem) and not words & _MADE_ON_PURPOSE else OTHER
