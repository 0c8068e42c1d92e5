"""What one save writes: the state taken apart, copied away from the loop, and the names of its files."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ckptcore.layouts.layout import Layout, Moment
from ckptcore.package import own_version
from ckptcore.writing import Encoded, encode

if TYPE_CHECKING:
    import torch

    from ckptcore.snapshot import SnapshotBuffers

_HEAVY = ("optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "rng_state", "loader_state")


@dataclass(frozen=True)
class Job:
    """One file to write: what goes in, and the names it gets."""

    encoded: Encoded
    names: tuple[str, ...]


@dataclass(frozen=True)
class Saved:
    """What one call of `CheckpointManager.step` set out to save.

    Attributes:
        names: file names by role.
        stall_seconds: how long the loop waited for it.
    """

    names: Mapping[str, str]
    stall_seconds: float


class Packer:
    """Makes the jobs of one save after the other.

    Args:
        layout: says what a file holds.
        copies: whether tensors are copied, for a writer that works beside the loop.
    """

    def __init__(self, layout: Layout, copies: bool) -> None:
        self._layout = layout
        self._copies = copies
        self._buffers: SnapshotBuffers | None = None

    def pack(
        self, state: dict[str, Any], moment: Moment, names: Mapping[str, str], metadata: dict[str, Any]
    ) -> list[Job]:
        """The files to write; what they hold stays as it is now until the next call.

        Args:
            state: what the loop gave; completed in place.
            moment: where the loop is.
            names: file names by role.
            metadata: for the headers.
        """
        finished = moment.progress.epochs_finished
        # A loop that saves itself under another convention would contradict the header; the manager knows.
        state["epoch"] = finished if self._layout.epoch_counts == "finished" else finished - 1
        state.setdefault("global_step", moment.progress.global_step)
        state.setdefault("timestamp", moment.timestamp)
        state.setdefault("provenance", dict(_provenance()))
        whole = self._layout.complete(state, moment)
        whole.setdefault("history", dict(moment.history))
        encoded = encode(whole, metadata)
        if self._copies:
            encoded = replace(encoded, tensors=self._copied(encoded.tensors))
        slim = {role: name for role, name in names.items() if role in self._layout.weights_only}
        full = {role: name for role, name in names.items() if role not in slim}
        # The weights alone come first: what a run goes on from comes when all that belongs to it is there.
        jobs = [_job(replace(encoded, tree=_without(encoded.tree, _HEAVY)).compacted(), slim)] if slim else []
        return [*jobs, _job(encoded, full)] if full else jobs

    def _copied(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        from ckptcore.snapshot import SnapshotBuffers

        if self._buffers is None:
            self._buffers = SnapshotBuffers()
        return self._buffers.copy(tensors)


@lru_cache(maxsize=1)
def _provenance() -> dict[str, str]:
    """What the numbers were made with; nothing that tells a person or a machine."""
    found = {"ckptcore": own_version(), "python": platform.python_version(), "platform": platform.system()}
    found["machine"] = platform.machine()
    return found | {
        name: str(getattr(sys.modules[name], "__version__", ""))
        for name in ("torch", "numpy", "lightning")
        if name in sys.modules
    }


def _job(encoded: Encoded, names: Mapping[str, str]) -> Job:
    told = tuple(dict.fromkeys(names.values()))
    return Job(
        replace(encoded, metadata=encoded.metadata | {"roles": list(names), "names": list(told)}), told
    )


def _without(tree: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in keys}
