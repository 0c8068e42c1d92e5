"""Which of the files on a command line is which image of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from radfuse.serving.errors import InputError

if TYPE_CHECKING:
    from radfuse.serving.card import Card

_ENDINGS = (".nii.gz", ".nii", ".hdr", ".dcm")


def inputs_for(card: Card, paths: Sequence[str | Path], named: Mapping[str, str | Path]) -> dict[str, Path]:
    """Paths by role, for one sample.

    A model of one image takes the one path. For several, a path's role is what its name ends in, after ``_``
    or ``-`` or alone: ``case7_t1ce.nii.gz`` is ``t1ce``; one folder stands for what it holds.

    Args:
        card: of the model.
        paths: files or folders without a role.
        named: those whose role is said.

    Raises:
        InputError: a role is missing, doubled or unknown, or a path has none.
    """
    roles = card.inputs
    unknown = [role for role in named if role not in roles]
    if unknown:
        raise InputError(f"the model takes {', '.join(roles)}, not {', '.join(unknown)}")
    found = {role: Path(path) for role, path in named.items()}
    if len(roles) == 1:
        if len(paths) + len(found) != 1:
            raise InputError(f"the model takes one image, {roles[0]}; {len(paths) + len(found)} are given")
        return found or {roles[0]: Path(paths[0])}
    for path in _spread(roles, paths):
        role = role_of(path, roles)
        if role is None:
            raise InputError(
                f"{path.name}: which of {', '.join(roles)} it is, its name does not say; give it as --input "
                f"{roles[0]}=FILE"
            )
        if role in found:
            raise InputError(f"{role} is given twice: {found[role].name} and {path.name}")
        found[role] = path
    missing = [role for role in roles if role not in found]
    if missing:
        raise InputError(f"the model takes {', '.join(roles)}; missing: {', '.join(missing)}")
    return {role: found[role] for role in roles}


def role_of(path: Path, roles: Sequence[str]) -> str | None:
    """The role that a name ends in; None where there is none."""
    stem = path.name.lower()
    for ending in _ENDINGS:
        stem = stem.removesuffix(ending)
    for role in roles:
        if stem == role.lower() or stem.endswith((f"_{role.lower()}", f"-{role.lower()}")):
            return role
    return None


def _spread(roles: Sequence[str], paths: Sequence[str | Path]) -> list[Path]:
    """The paths; instead of a single folder, what in it has a role."""
    if len(paths) == 1 and Path(paths[0]).is_dir():
        return [path for path in sorted(Path(paths[0]).iterdir()) if role_of(path, roles) is not None]
    return [Path(path) for path in paths]
