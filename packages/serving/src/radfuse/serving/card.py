"""The card beside an exported model: what it takes, what its answers mean, and which file it describes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from radfuse.serving.errors import CardError

FORMAT = 1
MAX_CARD_BYTES = 1 << 20
"""Real cards have a few kilobytes."""
_LONGEST_REASON = 500
CLASSIFICATION, SEGMENTATION, FEATURES = "classification", "segmentation", "features"
TASKS = (CLASSIFICATION, SEGMENTATION, FEATURES)
NOT_APPLICABLE = "not_applicable"
"""``status`` on a card without a model: the pipeline has none of the kind, and ``why`` says the reason."""
AVAILABLE = "available:"
"""Begins the feature that says with 1 or 0 whether a modality's others are there: ``available:xray``."""


class NoModel(CardError):
    """The card says that there is no model to describe, and why; the file beside it is empty."""


@dataclass(frozen=True)
class Card:
    """What an exported model is and how it is used.

    Attributes:
        modality: ``xray``.
        name: of the model: ``resnet50``.
        version: ``1.1.0``; empty where it was not promoted.
        digest_sha256: of the model file.
        model_digest: of the weights, whatever file they are in.
        split_digest: of the split that it was trained and calibrated on.
        opset: of the ONNX file; None for TorchScript.
        inputs: the images that it takes: ``image``, or MR sequences; names of features for the task
            ``features``, in the order of the graph's columns.
        preprocessing: the recipe of `radfuse.serving.preprocess`; not used for the task ``features``.
        task: ``classification`` and ``features`` answer with a probability for each label, ``segmentation``
            with one for each class at each voxel.
        labels: names of the outputs of a classification.
        classes: names of the classes of a segmentation, background first.
        regions: what volumes are reported of: name to indices of classes.
        calibration: by label: method, temperature, bias. It is inside the graph, and here to be read.
        thresholds: by label: a probability from which on the answer is yes.
        sliding_window: ``size`` (D, H, W) and ``overlap`` (0 to below 1) of windows; None to take a volume
            whole.
        parity: ``samples``, ``max_abs_difference`` and ``tolerance`` of the comparison with the checkpoint.
        created: UTC, ISO 8601.
        format: of the card.
    """

    modality: str
    name: str
    version: str
    digest_sha256: str
    model_digest: str
    split_digest: str
    inputs: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    task: str
    created: str
    opset: int | None = None
    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    sliding_window: Mapping[str, Any] | None = None
    parity: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name in ("inputs", "labels", "classes"):
            object.__setattr__(self, name, _tuple(getattr(self, name)))
        if isinstance(self.regions, Mapping):
            object.__setattr__(self, "regions", {key: _tuple(value) for key, value in self.regions.items()})
        for name, (expected, holds) in _RULES.items():
            value = getattr(self, name)
            if not holds(value):
                raise CardError(f"{name}: expected {expected}, got {_shown(value)}; export the model again")
        _check_task(self)

    def as_json(self) -> dict[str, Any]:
        """For a file; `from_json` reads it."""
        return {"format": self.format, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> Card:
        """A card from what JSON gave.

        Raises:
            NoModel: it says that there is no model.
            CardError: it is of another format, has unknown or missing fields, or one that makes no sense.
        """
        if not isinstance(data, dict):
            raise CardError(f"expected a card as a JSON object, got {_shown(data)}")
        if data.get("status") == NOT_APPLICABLE:
            raise NoModel(f"there is no such model, as it is not applicable here: {_reason(data.get('why'))}")
        if data.get("format") != FORMAT:
            raise CardError(
                f"expected a card of format {FORMAT}, got {_shown(data.get('format'))}; update "
                "radfuse-serving, or export the model with the version that is installed"
            )
        known = {each.name for each in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise CardError(f"the card has fields that are not known: {', '.join(map(_shown, unknown[:5]))}")
        needed = [each.name for each in fields(cls) if _is_needed(each) and each.name not in data]
        if needed:
            raise CardError(f"the card lacks {', '.join(needed)}; export the model again")
        return cls(**data)

    @classmethod
    def read(cls, path: str | Path) -> Card:
        """Read a card.

        Raises:
            NoModel: it says that there is no model.
            CardError: the file is missing, too large, no JSON, or no card.
        """
        path = Path(path)
        try:
            if path.stat().st_size > MAX_CARD_BYTES:
                raise CardError(f"{path.name}: the card has more than {MAX_CARD_BYTES} bytes")
            data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        except OSError as error:
            reason = f"{path.name}: the card cannot be read ({type(error).__name__})"
            raise CardError(f"{reason}; it belongs beside its model file") from error
        except (ValueError, RecursionError) as error:
            raise CardError(f"{path.name}: the card is no JSON; export the model again") from error
        try:
            return cls.from_json(data)
        except CardError as error:
            raise type(error)(f"{path.name}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Write the card as JSON."""
        text = json.dumps(self.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")


def no_model(why: str) -> dict[str, Any]:
    """What stands on a card where there is no model, and why."""
    return {"format": FORMAT, "status": NOT_APPLICABLE, "why": why}


def card_path(model: str | Path) -> Path:
    """Where a model file's card is: beside it, of the same name but for the ending."""
    return Path(model).with_suffix(".json")


def _check_task(card: Card) -> None:
    """What the task needs, and that thresholds and regions speak of what there is."""
    if card.task == SEGMENTATION:
        _demand(len(card.classes) >= 2, "a segmentation has at least two classes, background first")
        _demand(not card.labels, "a segmentation has classes, no labels")
        reached = {index for indices in card.regions.values() for index in indices}
        _demand(
            all(index < len(card.classes) for index in reached), "a region names a class that is not there"
        )
    else:
        _demand(len(card.labels) >= 1, f"the task {card.task} has at least one label")
        _demand(not card.classes and not card.regions, f"the task {card.task} has no classes and no regions")
        _demand(card.sliding_window is None, f"the task {card.task} has no sliding window")
    _demand(set(card.thresholds) <= set(card.labels), "a threshold is for a label that is not there")
    _demand(set(card.calibration) <= set(card.labels), "a calibration is for a label that is not there")
    if card.task != FEATURES:
        _demand("kind" in card.preprocessing, "the preprocessing names no kind")


def _demand(holds: bool, rule: str) -> None:
    if not holds:
        raise CardError(f"{rule}; export the model again")


def _is_needed(each: Field[Any]) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    """A value short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _reason(why: Any) -> str:
    """What a card gives as a reason, short enough for a message and in one line."""
    text = " ".join(why.split()) if isinstance(why, str) else ""
    return text[:_LONGEST_REASON] or "the card gives no reason"


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_text, value)) and len(set(value)) == len(value) <= 10_000


def _are_regions(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_text(name)
        and isinstance(indices, tuple)
        and indices
        and all(_is_whole(i) and i >= 0 for i in indices)
        for name, indices in value.items()
    )


def _are_thresholds(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_number(each) for each in value.values())


def _is_object(value: Any) -> bool:
    """A mapping that JSON can hold as it is; NaN it cannot."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_window(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, Mapping) or set(value) != {"size", "overlap"}:
        return False
    size, overlap = value["size"], value["overlap"]
    sized = (
        isinstance(size, list | tuple)
        and len(size) == 3
        and all(_is_whole(n) and 1 <= n <= 1024 for n in size)
    )
    return sized and _is_number(overlap) and 0 <= overlap < 1


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "format": (str(FORMAT), lambda value: _is_whole(value) and value == FORMAT),
    "modality": ("a name", _is_text),
    "name": ("a name", _is_text),
    "version": ("text", lambda value: isinstance(value, str) and len(value) <= 200),
    "digest_sha256": ("64 hexadecimal digits", _is_digest),
    "model_digest": ("text", _is_text),
    "split_digest": ("text", _is_text),
    "opset": ("a whole number or null", lambda value: value is None or (_is_whole(value) and value > 0)),
    "inputs": ("a list of different names", lambda value: _are_names(value) and len(value) > 0),
    "preprocessing": ("an object", _is_object),
    "task": (f"one of {', '.join(TASKS)}", lambda value: value in TASKS),
    "labels": ("a list of different names", _are_names),
    "classes": ("a list of different names", _are_names),
    "regions": ("names with lists of class indices", _are_regions),
    "calibration": ("an object", _is_object),
    "thresholds": ("a number for each label", _are_thresholds),
    "sliding_window": ("null, or size (three lengths) and overlap (0 to below 1)", _is_window),
    "parity": ("an object", _is_object),
    "created": ("a time with its zone, ISO 8601", _is_time),
}
"""What each field must be, in words and as a test."""
