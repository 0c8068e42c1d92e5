"""Reads a YAML file of parameters, and changes single values of it as ``--set`` asks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from radfuse.engine.errors import SettingsError


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once: PyYAML alone would keep the last of two and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read(path: Path) -> dict[str, Any]:
    """The parameters in a file.

    Raises:
        SettingsError: there is no such file, or it is no YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(
            f"expected the parameters in {path}, and there is no such file; "
            "go to its folder, name another one with --params, or make one with `radfuse init DIR`."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}.") from error
    try:
        # The loader is a SafeLoader: it makes plain values only.
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: expected blocks such as 'split:', got a {type(data).__name__}.")
    return data


def override(data: dict[str, Any], assignments: Sequence[str]) -> list[str]:
    """Carry out ``a.b=c`` in place.

    Args:
        data: parameters as read.
        assignments: dotted key, ``=``, YAML value; an item of a list by its number from 0.

    Returns:
        The dotted keys that were set.

    Raises:
        SettingsError: an assignment is none, or leads through a value that has no parts.
    """
    keys = []
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise SettingsError(f"--set: expected dotted.key=value, got {text!r}.")
        try:
            _put(data, key.split("."), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise SettingsError(
                f"--set {key}: {value!r} is no YAML: {' '.join(str(error).split())}."
            ) from None
        keys.append(key)
    return keys


def _put(data: Any, parts: Sequence[str], value: Any) -> None:
    *above, last = parts
    place = data
    for depth, part in enumerate(above):
        if isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
        place = place[_index(place, part, parts[: depth + 1])]
    place[_index(place, last, parts)] = value


def _index(place: Any, part: str, path: Sequence[str]) -> str | int:
    """A part of a dotted key as the value at hand is indexed."""
    if isinstance(place, dict):
        return part
    if isinstance(place, list):
        if part.isdecimal() and int(part) < len(place):
            return int(part)
        raise SettingsError(
            f"--set {'.'.join(path)}: expected the number of an item, below {len(place)}, got {part!r}."
        )
    raise SettingsError(
        f"--set {'.'.join(path)}: {'.'.join(path[:-1])} is {place!r}, which has no parts to set."
    )
