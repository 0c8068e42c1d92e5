"""The card beside an export: `radfuse.serving.card.Card`, filled with what the file was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from radfuse.engine.errors import RadfuseError
from radfuse.serving.card import Card, NoModel, card_path, no_model
from radfuse.serving.errors import CardError


class UntrustedExport(RadfuseError):
    """An exported file is not the one that its card speaks of."""


def metadata(card: Mapping[str, Any]) -> dict[str, str]:
    """What an ONNX file says of itself, so that one without its card can still be told from others.

    Args:
        card: fields of a card; labels or classes among them.
    """
    return {
        "name": str(card["name"]),
        "version": str(card["version"]),
        "labels_sha256": names_digest(card.get("labels") or card.get("classes") or ()),
    }


def names_digest(names: Sequence[str]) -> str:
    """SHA-256 of the names of the outputs in their order."""
    return hashlib.sha256(json.dumps(list(names), ensure_ascii=False).encode()).hexdigest()


def card_text(fields: Mapping[str, Any], digest: str, opset: int | None, parity: Mapping[str, Any]) -> str:
    """The card of one file.

    Args:
        fields: what does not depend on the file.
        digest: SHA-256 of the file.
        opset: of ONNX; None for TorchScript.
        parity: how far it is from the checkpoint.

    Raises:
        RadfuseError: the fields do not make a card.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        card = Card(**fields, digest_sha256=digest, opset=opset, parity=parity, created=created)
    except (CardError, TypeError) as error:
        raise RadfuseError(
            f"{fields.get('name')}: what is to stand on the export's card is no card: {error}"
        ) from error
    return json.dumps(card.as_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def card_without_model(why: str) -> str:
    """The card of a file that is there without a model in it.

    Args:
        why: there is none, in words.
    """
    return json.dumps(no_model(why), indent=2, ensure_ascii=False) + "\n"


def digest_on_card(model: Path) -> str:
    """The digest that the card beside an exported file gives for it.

    Raises:
        UntrustedExport: there is no card, or it is none, or it says that there is no model.
    """
    try:
        return Card.read(card_path(model)).digest_sha256
    except NoModel as error:
        raise UntrustedExport(str(error)) from error
    except CardError as error:
        raise UntrustedExport(
            f"{model.name} is not loaded without its card: {error}. Copy the two together, or run "
            "`radfuse export` again."
        ) from error
