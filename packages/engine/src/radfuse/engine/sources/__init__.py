"""Where images come from: one kind of source a module, each turning a publisher's layout into `Record`s.

Kinds of other packages register a `Source` subclass under the entry-point group ``radfuse.sources``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from radfuse.engine.errors import SettingsError, SourceError, did_you_mean
from radfuse.engine.sources.source import Attributes, LeftOut, Record, Source, SourceSettings
from radfuse.engine.validation import validated

__all__ = [
    "GROUP",
    "Attributes",
    "LeftOut",
    "Record",
    "Source",
    "SourceSettings",
    "kinds",
    "open_source",
    "open_sources",
    "sources_by_name",
]

GROUP = "radfuse.sources"
_BUILT_IN = {
    "brats": "BratsSource",
    "decathlon": "DecathlonSource",
    "nih_chestxray14": "NihChestXray14Source",
    "phantom": "PhantomSource",
    "table": "TableSource",
}


def kinds() -> list[str]:
    """Names of the kinds of source that can be read."""
    return sorted({*_BUILT_IN, *entry_points(group=GROUP).names})


def open_source(
    options: Mapping[str, Any], root: Path, origin: str, place: Sequence[str | int] = ("sources", 0)
) -> Source:
    """A source, its options checked and its folder there.

    Args:
        options: one item of ``sources`` of params.yaml.
        root: of the pipeline; a relative ``root`` of the source begins there.
        origin: where the options stand, for messages: ``params.yaml``.
        place: keys that lead to the options.

    Raises:
        SettingsError: the options make no sense.
        SourceError: there is no such folder.
    """
    source = _make(options, root, origin, place)
    if not source.root.is_dir():
        raise SourceError(
            f"source {source.name}: expected a folder at {source.settings.root}, and there is none; "
            f"{source.missing_advice}"
        )
    return source


def open_sources(items: Sequence[Mapping[str, Any]], root: Path, origin: str) -> list[Source]:
    """Every source of params.yaml.

    Raises:
        SettingsError: their options make no sense, two have one name, or there are none.
        SourceError: a folder is missing.
    """
    if not items:
        raise SettingsError(
            f"{origin}: expected at least one item in sources, such as {{kind: phantom, root: "
            "data/phantom}}, got none."
        )
    opened = [open_source(item, root, origin, ("sources", place)) for place, item in enumerate(items)]
    names = [source.name for source in opened]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(
            f"{origin}: two sources are named {', '.join(twice)}; give each a name: of its own, as ids are "
            "made from it."
        )
    return opened


def sources_by_name(items: Sequence[Mapping[str, Any]], root: Path, origin: str) -> dict[str, Source]:
    """Every source of params.yaml by name, whether or not its folder is there.

    Raises:
        SettingsError: their options make no sense.
    """
    made = (_make(item, root, origin, ("sources", place)) for place, item in enumerate(items))
    return {source.name: source for source in made}


def _make(options: Mapping[str, Any], root: Path, origin: str, place: Sequence[str | int]) -> Source:
    kind = _source_class(options.get("kind"), origin, place)
    settings = validated(kind.settings_class, dict(options), origin, place)
    return kind(settings, root / settings.root.expanduser())


def _source_class(kind: Any, origin: str, place: Sequence[str | int]) -> type[Source]:
    where = ".".join(str(part) for part in place)
    if kind in _BUILT_IN:
        found = getattr(import_module(f"{__name__}.{kind}"), _BUILT_IN[kind])
    elif kind in entry_points(group=GROUP).names:
        found = entry_points(group=GROUP)[kind].load()
    else:
        said = "is missing" if kind is None else f"{kind!r} is no kind of source"
        raise SettingsError(f"{origin}: {where}.kind {said}{did_you_mean(str(kind), kinds())}")
    source_class: type[Source] = found
    return source_class
