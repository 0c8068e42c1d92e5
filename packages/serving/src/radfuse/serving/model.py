"""An exported ONNX file: checked against its card, then run by onnxruntime on the CPU."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.serving.card import Card, card_path
from radfuse.serving.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUT, OUTPUT = "input", "output"
"""Names of the graph's only input and output."""
MAX_MODEL_BYTES = (2 << 30) - 1
"""ONNX in one file ends at 2 GiB."""


class OnnxModel:
    """A model file that is the one its card describes.

    Args:
        path: the ``.onnx`` file; its card lies beside it.
        threads: that one run uses; 0 for as many as there are cores.

    Raises:
        NoModel: the card says that there is no model, and why.
        CardError: the card is missing or none.
        ModelError: the file is missing, is not the one on the card, or onnxruntime does not take it.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        self.path = Path(path)
        self.card = Card.read(card_path(self.path))
        # The bytes that were checked are the bytes that are run: the file is read once.
        self._session = _session(self.path, _checked(self.path, self.card), threads)
        self.input_shape = _input_shape(self.path, self._session)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The graph's answer.

        Args:
            batch: (B, ...) as the graph takes it.

        Raises:
            ModelError: the shape is not one that it takes, or the answer is not finite.
        """
        wanted = self.input_shape
        fits = len(wanted) == batch.ndim and all(
            length in (None, has) for length, has in zip(wanted, batch.shape, strict=True)
        )
        if not fits:
            raise ModelError(
                f"{self.path.name}: takes input of shape {wanted}, its preprocessing gave {batch.shape}"
            )
        try:
            answer = np.asarray(self._session.run([OUTPUT], {INPUT: batch})[0], np.float32)
        except Exception as error:  # onnxruntime's own errors have no common class but this
            reason = f"{self.path.name}: cannot be run on input of shape {batch.shape}"
            raise ModelError(f"{reason} ({type(error).__name__}); export the model again") from error
        if not np.isfinite(answer).all():
            raise ModelError(
                f"{self.path.name}: answered with NaN or infinity; look at the input or the training"
            )
        return answer


def _checked(path: Path, card: Card) -> bytes:
    """The file's bytes, whose digest is the card's."""
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise ModelError(f"{path.name}: has more than {MAX_MODEL_BYTES} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path.name}: cannot be read ({type(error).__name__}); name an exported .onnx"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.digest_sha256:
        raise ModelError(
            f"{path.name}: its SHA-256 begins {digest[:12]}, its card describes {card.digest_sha256[:12]}; "
            "the two do not belong together: copy both again, or export the model again"
        )
    return content


def _session(path: Path, content: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common class but this
        reason = f"{path.name}: onnxruntime cannot load it ({type(error).__name__})"
        raise ModelError(f"{reason}; export the model again, as one file without external data") from error


def _input_shape(path: Path, session: Any) -> tuple[int | None, ...]:
    """Shape of the graph's input, None where an axis is dynamic."""
    inputs, outputs = (
        [each.name for each in session.get_inputs()],
        [each.name for each in session.get_outputs()],
    )
    if inputs != [INPUT] or OUTPUT not in outputs:
        got = f"{', '.join(inputs)} and {', '.join(outputs)}"
        raise ModelError(f"{path.name}: expected one input 'input' and an output 'output', got {got}")
    return tuple(length if isinstance(length, int) else None for length in session.get_inputs()[0].shape)
