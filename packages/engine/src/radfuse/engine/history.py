"""The JSON log of a run: where it began, went on and ended, and what each epoch brought."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptcore import durable

PATTERN = "training_????????_??????.json"
"""Others begin likewise: the history of checkpoints is training_history.json."""


class RunLog:
    """``training_YYYYMMDD_HHMMSS.json`` in the work folder; a run that goes on writes on in the same file.

    Args:
        folder: the work folder.
        facts: what is told of the run at its head: modality, key, digests.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        now = datetime.now(UTC)
        found = sorted(folder.glob(PATTERN))
        self.path = found[0] if found else folder / f"training_{now:%Y%m%d_%H%M%S}.json"
        self._told = _read(self.path) or {"started": _time(now), "sessions": [], "epochs": []}
        self._told |= dict(facts)

    def begin(self, session: Mapping[str, Any], epochs_finished: int) -> None:
        """Note that the run starts, or goes on after so many epochs; later ones are forgotten.

        Args:
            session: the conditions, and what it goes on from.
            epochs_finished: epochs that count.
        """
        self._told["sessions"].append({"started": _time(datetime.now(UTC)), **session})
        self._told["epochs"] = [one for one in self._told["epochs"] if one["epoch"] < epochs_finished]
        self._write()

    def fill(self, history: Mapping[str, Sequence[float]], until: int) -> None:
        """Add the epochs that are not noted, with what is known of them.

        Args:
            history: values by metric, one for each epoch.
            until: epochs that are finished.
        """
        noted = {one["epoch"] for one in self._told["epochs"]}
        lacking = [number for number in range(until) if number not in noted]
        for number in lacking:
            known = {name: values[number] for name, values in history.items() if number < len(values)}
            self._told["epochs"].append({"epoch": number, **known})
        if lacking:
            self._told["epochs"].sort(key=lambda one: int(one["epoch"]))
            self._write()

    def epoch(self, number: int, facts: Mapping[str, Any]) -> None:
        """Note what an epoch brought.

        Args:
            number: of the epoch, from 0.
            facts: metrics, stage, seconds.
        """
        self._told["epochs"].append({"epoch": number, **facts})
        self._write()

    def end(self, outcome: Mapping[str, Any]) -> None:
        """Note how the session ended."""
        self._told["sessions"][-1] |= {"ended": _time(datetime.now(UTC)), **outcome}
        self._write()

    def _write(self) -> None:
        durable.write_text(self.path, json.dumps(plain(self._told), indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """JSON values; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = (
        isinstance(found, dict)
        and isinstance(found.get("sessions"), list)
        and isinstance(found.get("epochs"), list)
    )
    return found if whole else None


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
