"""Settings as JSON: what of a module, a dataclass or a mapping is a setting, and how it is written."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import io
import json
import logging
import math
import os
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence, Set
from datetime import date, datetime, time, timedelta
from typing import Any

from ckptcore.errors import UsageError

_log = logging.getLogger(__name__)
_LONGEST = 1000
_DEEPEST = 32
_NO_SETTING = (
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.GenericAlias,
    types.UnionType,
    type,
    logging.Logger,
    io.IOBase,
)
_SECRET = re.compile(
    r"(^|_)(api_?key|secret|secret_key|access_key|password|passwd|(api|auth|access)_token)$", re.I
)


def settings_of(source: Any) -> dict[str, Any]:
    """The settings of a configuration, as JSON values.

    Left out is what is no setting: private names, modules, functions, classes, loggers, and objects that have
    no value to tell. Passwords and keys of services are left out too.

    Args:
        source: a module, its variables (``vars(config)``), a dataclass, a mapping, or any object with
            attributes.

    Raises:
        UsageError: it has no names and values.
    """
    return {
        name: plain_json(value, name)
        for name, value in _variables(source).items()
        if not name.startswith("_") and not _is_secret(name) and is_setting(value)
    }


def _variables(source: Any) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return {str(name): value for name, value in source.items()}
    if dataclasses.is_dataclass(source) and not isinstance(source, type):
        return {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    if isinstance(source, type):  # class Config: LEARNING_RATE = 0.1
        return {name: value for kind in reversed(source.__mro__[:-1]) for name, value in vars(kind).items()}
    if hasattr(source, "__dict__"):
        return dict(vars(source))
    raise UsageError(f"expected a module, a dataclass or a mapping of settings, got {type(source).__name__}.")


def _is_secret(name: str) -> bool:
    if _SECRET.search(name):
        _log.warning("%s was left out of the settings: it looks like a secret", name)
        return True
    return False


def is_setting(value: Any) -> bool:
    """Whether a value says how something was set."""
    if (
        isinstance(value, _NO_SETTING)
        or inspect.isroutine(value)
        or isinstance(value, (property, staticmethod))
    ):
        return False
    if typing.get_origin(value) is not None or type(value).__module__ in ("typing", "__future__"):
        return False
    # An object that has nothing to say of itself but its address.
    return _has(value, "__repr__") or dataclasses.is_dataclass(value) or _is_tensor(value)


def _has(value: Any, method: str) -> bool:
    """Whether a value's class has more to say than what every object has."""
    return getattr(type(value), method) is not getattr(object, method)


def plain_json(value: Any, name: str = "") -> Any:
    """A value as strict JSON has it: NaN and infinities become null, what JSON does not know becomes text.

    Args:
        value: anything.
        name: where it sits, for the error.

    Raises:
        UsageError: it is nested too deeply, or holds itself.
    """
    if name.count("/") > _DEEPEST:
        raise UsageError(
            f"{name[:60]}...: nested deeper than {_DEEPEST} levels, or it holds itself. Flatten it."
        )
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, enum.Enum):
        return plain_json(value.value, name)
    if isinstance(value, (int, float)):
        return _number(value)
    if isinstance(value, Mapping):
        return {str(plain_json(key, name)): plain_json(item, f"{name}/{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: plain_json(getattr(value, f.name), f"{name}/{f.name}") for f in dataclasses.fields(value)
        }
    if _is_tensor(value):
        return _array(value)
    if isinstance(value, Set):
        return sorted(
            (plain_json(item, f"{name}/*") for item in value), key=lambda item: (str(type(item)), str(item))
        )
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain_json(item, f"{name}/{at}") for at, item in enumerate(value)]
    return _other(value)


def _text(value: str) -> str:
    return (
        (value.value if isinstance(value, enum.Enum) else str.__str__(value))
        .encode("utf-8", "replace")
        .decode()
    )


def _number(value: float) -> float | int | None:
    if isinstance(value, int):
        return int(value)
    return float(value) if math.isfinite(value) else None


def _is_tensor(value: Any) -> bool:
    """Whether it is a tensor, an array, or a NumPy scalar; none can be without its library being loaded."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        return True
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def _array(value: Any) -> Any:
    count = value.numel() if hasattr(value, "numel") else value.size
    if count > _LONGEST:
        return f"{type(value).__name__} of shape {tuple(value.shape)}, {value.dtype}"
    return plain_json(value.tolist())


def _other(value: Any) -> str:
    """Text for what JSON has no place for."""
    if isinstance(value, os.PathLike):
        return os.fsdecode(os.fspath(value))
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g} s"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return _text(str(value))


def to_text(value: Mapping[str, Any]) -> str:
    """Plain JSON values as the text of a file."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
