"""Whether what earlier stages made still belongs together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from radfuse.engine.config import digest
from radfuse.engine.errors import StaleError
from radfuse.engine.modality import Modality
from radfuse.engine.places import Places
from radfuse.engine.prepared import Prepared

if TYPE_CHECKING:
    from radfuse.engine.settings import PrepareSettings


def check_prepared(places: Places, modality: Modality, settings: PrepareSettings, prepared: Prepared) -> None:
    """Refuse arrays that were made from another split, or in another way, than is asked for now.

    Args:
        places: of the pipeline.
        modality: whose arrays.
        settings: ``prepare.<modality>`` of params.yaml.
        prepared: the arrays.

    Raises:
        MissingStage: there are none.
        StaleError: they are not those of this split and these settings.
    """
    again = f"run `radfuse prepare {modality.name}` again."
    if digest(modality.preprocessing(settings)) != digest(prepared.spec):
        raise StaleError(
            f"the prepared images of {modality.name} were made with other settings than "
            f"prepare.{modality.name}; {again}"
        )
    if places.splits.is_file():
        now = json.loads(places.splits.read_text(encoding="utf-8"))["digest"]
        if now != prepared.split_digest:
            raise StaleError(
                f"the prepared images of {modality.name} belong to the split {prepared.split_digest[:12]}, "
                f"and the split at hand is {str(now)[:12]}; {again}"
            )


def check_checkpoint(file_name: str, provenance: Mapping[str, Any], prepared: Prepared) -> None:
    """Refuse a model that was trained on other arrays or another split than those at hand.

    Args:
        file_name: of the checkpoint.
        provenance: as it says.
        prepared: the arrays.

    Raises:
        StaleError: naming what differs.
    """
    for what, key, now in (
        ("the split", "split_digest", prepared.split_digest),
        ("the prepared images", "prepared_digest", prepared.digest),
    ):
        before = str(provenance.get(key) or "none")
        if before != now:
            raise StaleError(
                f"{file_name} is stale: {what} it was trained on ({before[:12]}) are not those at hand "
                f"({now[:12]}); run `radfuse train {prepared.modality}` again."
            )
