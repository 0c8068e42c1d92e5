"""Version numbers, the file names that carry them, and the names that they are made from."""

from __future__ import annotations

import re
from typing import NamedTuple

from ckptcore.errors import VersionRefused

PARTS = ("major", "minor", "patch")
SUFFIXES = (".pth", ".pt", ".ckpt")
"""The endings that native checkpoints may have."""

_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_SEMVER = re.compile(rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})", re.ASCII)
_ENDING = "|".join(map(re.escape, SUFFIXES))
_FILE = re.compile(
    rf"(?P<base>.+)_v(?P<version>{_NUMBER}\.{_NUMBER}\.{_NUMBER})_best(?P<suffix>{_ENDING})", re.ASCII
)

# What layouts put around the name of a model: roles, counts of epochs and steps, scores, versions.
_ROLE = "best|latest|last|final|checkpoint|ckpt"
_COUNT = r"(?:epoch|step|stage)[-_=]?\d+"
_SCORE = r"(?:(?:val|train|test)[-_])?[a-z]+[0-9]?[-_=]\d+\.\d+"
_LEADING = re.compile(rf"(?:{_ROLE}|{_COUNT})[-_]", re.IGNORECASE)
_TRAILING = re.compile(rf"[-_](?:{_ROLE}|{_COUNT}|{_SCORE}|v\d+\.\d+\.\d+)$", re.IGNORECASE)
_NO_NAME = re.compile(rf"(?:{_ROLE}|{_COUNT}|{_SCORE}|model)?", re.IGNORECASE)


class Semver(NamedTuple):
    """A version number of three parts, ordered as its numbers are.

    Source: Semantic Versioning 2.0.0, without pre-releases and build metadata.
    """

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @staticmethod
    def parse(text: str) -> Semver:
        """Read ``1.2.3``.

        Raises:
            VersionRefused: it is anything else.
        """
        found = _SEMVER.fullmatch(text)
        if found is None:
            raise VersionRefused(f"expected a version of three numbers such as 1.2.0, got {text[:40]!r}.")
        return Semver(*map(int, found.groups()))

    def bumped(self, part: str) -> Semver:
        """The next version: ``part`` is major, minor or patch.

        Raises:
            VersionRefused: it is another word.
        """
        if part not in PARTS:
            raise VersionRefused(f"expected one of {', '.join(PARTS)} to bump, got {part!r}.")
        index = PARTS.index(part)
        numbers = (*self[:index], self[index] + 1, 0, 0)
        return Semver(*numbers[:3])


class VersionName(NamedTuple):
    """The parts of a file name like ``resnet50_v1.1.0_best.pth``."""

    base: str
    version: Semver
    suffix: str

    def __str__(self) -> str:
        return f"{self.stem}{self.suffix}"

    @property
    def stem(self) -> str:
        """The name without its ending; version file and card share it."""
        return f"{self.base}_v{self.version}_best"


def split_name(name: str) -> VersionName | None:
    """The parts of a version's file name; None for any other name."""
    found = _FILE.fullmatch(name)
    return VersionName(found["base"], Semver.parse(found["version"]), found["suffix"]) if found else None


def is_version(name: str) -> bool:
    """Whether a name is that of a promoted version, which nothing moves or deletes."""
    return split_name(name) is not None


def version_of(name: str) -> Semver | None:
    """The version in a file name like ``resnet50_v1.1.0_best.pth``; None for any other name."""
    found = split_name(name)
    return found.version if found else None


def base_name(name: str) -> str:
    """What a checkpoint's versions are called: its name without role, epoch, score and ending.

    ``resnet50_epoch_15.pth`` gives ``resnet50``; a name that says nothing else gives ``model``.
    """
    stem = name
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    while _TRAILING.search(stem):
        stem = _TRAILING.sub("", stem)
    while _LEADING.match(stem):
        stem = _LEADING.sub("", stem, count=1)
    return "model" if _NO_NAME.fullmatch(stem) else stem
