"""Checks a block of settings, and says what is wrong with it as its author needs it said."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar, Union

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from radfuse.engine.errors import SettingsError, did_you_mean

Block = TypeVar("Block", bound=BaseModel)
_MOST = 5


def validated(model: type[Block], data: Any, origin: str, place: Sequence[str | int] = ()) -> Block:
    """A block of settings, every key known and every value of its type.

    Args:
        model: what the block may say.
        data: what it says.
        origin: where it stands, for the message: ``params.yaml``.
        place: keys that lead to the block.

    Raises:
        SettingsError: it says something else; every trouble is named with its dotted key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        troubles = [_trouble(model, found, place) for found in error.errors()]
        more = f"\n  ... and {len(troubles) - _MOST} more" if len(troubles) > _MOST else ""
        lines = "\n  ".join(troubles[:_MOST])
        separator = "\n  " if len(troubles) > 1 else " "
        raise SettingsError(f"{origin}:{separator}{lines}{more}") from None


def dotted(place: Sequence[str | int]) -> str:
    """Keys as one name: ``train.xray.stages.0.epochs``."""
    return ".".join(str(part) for part in place)


def unknown_key(place: Sequence[str | int], known: Sequence[str]) -> str:
    """What to say of a key that nothing reads."""
    return f"unknown key {dotted(place)}{did_you_mean(str(place[-1]), known)}"


def _trouble(model: type[BaseModel], found: ErrorDetails, place: Sequence[str | int]) -> str:
    where = [*place, *found["loc"]]
    if found["type"] == "extra_forbidden":
        return unknown_key(where, _known(model, found["loc"][:-1]))
    if found["type"] == "missing":
        return f"{dotted(where)} is missing; add it"
    message = found["msg"].removeprefix("Value error, ")
    if message.startswith("expected"):
        return f"{dotted(where)}: {message}"
    return f"{dotted(where)}: {message[:1].lower()}{message[1:]}, got {found['input']!r}"


def _known(model: Any, path: Sequence[str | int]) -> list[str]:
    """The keys that the block at a path may have."""
    for part in path:
        model = _inside(model, part)
    return sorted(model.model_fields) if _is_model(model) else []


def _inside(kind: Any, part: str | int) -> Any:
    """The type of one part of a value: a field of a model, an item of a list or mapping."""
    if _is_model(kind):
        field = kind.model_fields.get(part)
        return _model_of(field.annotation) if field is not None else None
    arguments = [item for item in typing.get_args(kind) if item is not Ellipsis]
    return _model_of(arguments[-1]) if arguments else None


def _model_of(kind: Any) -> Any:
    """A type without what surrounds it: ``Annotated``, ``| None``."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _model_of(typing.get_args(kind)[0])
    if origin in (Union, types.UnionType):
        inside = [item for item in typing.get_args(kind) if item is not type(None)]
        return _model_of(inside[0])
    return kind


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
