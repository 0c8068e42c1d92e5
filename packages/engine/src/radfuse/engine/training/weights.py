"""Weights to begin from: a local file, mostly of another program."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

import ckptcore
from ckptcore.errors import CheckpointError
from ckptcore.weights import find_state_dict
from radfuse.engine.errors import SettingsError
from radfuse.engine.modality import Modality

_log = logging.getLogger(__name__)
_MOST = 4


@runtime_checkable
class TranslatesWeights(Protocol):
    """A modality that knows how other programs name the weights of its network."""

    def translate_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same weights under the network's names; what it has no use for keeps its own name.

        Args:
            weights: by the other program's names.
        """


def load_pretrained(network: nn.Module, modality: Modality, path: Path, setting: str) -> dict[str, list[str]]:
    """Load what fits of a weights file, and say what did not.

    The file is read by torch's restricted unpickler, or as safetensors: nothing in it is run.

    Args:
        network: to load into.
        modality: translates the names, where it knows how to.
        path: the file.
        setting: the dotted name of the setting that gave the path, for messages.

    Returns:
        Names by what became of them: ``loaded``, ``missing``, ``unexpected``, ``other_shape``.

    Raises:
        SettingsError: the file is not there, or holds no weights of this network.
    """
    try:
        _, found = find_state_dict(ckptcore.load(path), path=path)
    except (OSError, CheckpointError) as error:
        raise SettingsError(
            f"{setting}: expected a file of weights, and {path.name} cannot be used: {error}"
        ) from error
    given: Mapping[str, Any] = found
    if isinstance(modality, TranslatesWeights):
        given = modality.translate_weights(given)
    own = network.state_dict()
    fitting = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
    report = {
        "loaded": list(fitting),
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "other_shape": [name for name in own if name in given and name not in fitting],
    }
    if not fitting:
        raise SettingsError(
            f"{setting}: {path.name} has none of the network's weights; expected names such as "
            f"{', '.join(list(own)[:_MOST])}, got {', '.join(list(given)[:_MOST])}."
        )
    network.load_state_dict(fitting, strict=False)
    for what in ("missing", "unexpected", "other_shape"):
        if names := report[what]:
            more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
            _log.info(
                "%s: %d weights %s: %s%s",
                path.name,
                len(names),
                what.replace("_", " "),
                ", ".join(names[:_MOST]),
                more,
            )
    _log.info("%s: %d of %d tensors of the network were loaded", path.name, len(fitting), len(own))
    return report
