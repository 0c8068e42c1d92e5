"""Settings as commented YAML: every key with its default, and above it what its class says of it."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

_WIDTH = 110


def block(settings: BaseModel, indent: int = 2) -> str:
    """The YAML of a block of settings, without its own key.

    Args:
        settings: with the values to be written.
        indent: columns before each line.
    """
    remarks = _remarks(type(settings))
    lines: list[str] = []
    for name, value in settings.model_dump(mode="json", exclude=set(settings.model_extra or ())).items():
        if name in remarks:
            lines += [f"# {line}" for line in textwrap.wrap(remarks[name], _WIDTH - indent - 2)]
        lines.append(entry(name, value))
    return textwrap.indent("\n".join(lines), " " * indent) + "\n" if lines else ""


def entry(name: str, value: Any) -> str:
    """One key and its value as YAML; short lists and mappings on the key's own line."""
    flow = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip()
    flow = flow.removesuffix("...").strip()
    if not isinstance(value, (Mapping, list)) or len(name) + len(flow) < _WIDTH - 10:
        return f"{name}: {flow}"
    nested = yaml.safe_dump(value, default_flow_style=None, sort_keys=False, width=_WIDTH).rstrip()
    return f"{name}:\n" + textwrap.indent(nested, "  ")


def _remarks(kind: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each attribute, under ``Attributes:``."""
    remarks: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, _, section = text.partition("Attributes:\n")
        for names, remark in re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {8,}.*)*)", section, re.MULTILINE):
            plain = " ".join(remark.split()).replace("``", "").replace("`", "")
            remarks |= dict.fromkeys(names.split(", "), plain[:1].upper() + plain[1:])
    return remarks
