"""A graph as TorchScript, and the one way to load such a file: after its digest is compared with its card."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from radfuse.engine.export.cards import UntrustedExport, digest_on_card
from radfuse.engine.export.graph import require_evaluation

if TYPE_CHECKING:
    from torch import Tensor, nn

    from radfuse.engine.export.parity import Answers


_DEBUG = ".debug_pkl"
_TRACED = "traced_inputs"
_WRITERS_OWN = ("version", "byteorder", ".data/")
"""Records that torch's writer of archives adds by itself."""
_NUMBERED = re.compile(r"(?<=___torch_mangle_)\d+")
"""How torch tells classes of the same name apart: by how many it has met in this process."""


def torchscript_bytes(graph: nn.Module, example: Tensor) -> bytes:
    """The graph traced; the same bytes each time, whatever this process has traced before.

    Args:
        graph: in evaluation mode; its weights take no gradients afterwards, as those in the file.
        example: (B, C, ...) with B of at least 2.

    Raises:
        StillTraining: a layer of the graph is in training mode.
    """
    require_evaluation(graph)
    graph.requires_grad_(False)
    buffer = io.BytesIO()
    with _quiet(), torch.no_grad():
        # The first class of a name gets no number. After a first time every class of this graph has one.
        for _ in range(2):
            # torch's own check repeats the traced example; ours (`parity`) takes other batches and sizes.
            traced = torch.jit.trace(graph, (example,), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, buffer)
    return _stripped(buffer.getvalue())


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """Load a TorchScript export on the CPU. What is loaded are the very bytes whose digest was compared.

    Args:
        path: ``xray_torchscript.pt`` with its card ``xray_torchscript.json`` beside it.

    Raises:
        UntrustedExport: there is no card, or the file is not the one that it speaks of. Nothing of the file
            was run or unpickled.
    """
    expected = digest_on_card(path)
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise UntrustedExport(
            f"{path.name}: expected the file with digest {expected[:12]} that its card speaks of, got "
            f"{found[:12]}. It was changed after the export; do not load it, run `radfuse export` again."
        )
    with _quiet():
        return torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call, no-any-return]


def runner(path: Path) -> Answers:
    """What a TorchScript file answers that this process has just written."""
    with _quiet():
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]

    def answer(batch: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(batch)).numpy())

    return answer


def _stripped(data: bytes) -> bytes:
    """The same archive without what is there for debugging: paths of this machine, the traced sample.

    Its classes are numbered from 0.
    """
    reader = torch._C.PyTorchFileReader(io.BytesIO(data))
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    names = [
        name
        for name in reader.get_all_records()
        if not name.startswith(_WRITERS_OWN) and not name.startswith(_TRACED) and not name.endswith(_DEBUG)
    ]
    numbers = sorted({int(found) for name in names for found in _NUMBERED.findall(name)})
    place = {str(number): str(at) for at, number in enumerate(numbers)}

    def renumbered(text: str) -> str:
        return _NUMBERED.sub(lambda found: place[found[0]], text)

    for name in names:
        record = reader.get_record(name)
        if name.endswith((".py", ".pkl")):
            # A pickle names a class without saying how long its name is.
            record = renumbered(record.decode("latin-1")).encode("latin-1")
        writer.write_record(renumbered(name), record, len(record))
    writer.write_end_of_file()
    return buffer.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's advice to use torch.export: TorchScript is what programs in C++ still load."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)", DeprecationWarning
        )
        # Tracing fixes what Python computed from sizes; `parity` tries other sizes and finds what matters.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield
