"""Reused CPU buffers into which the loop copies its tensors before a writer thread stores them.

The loop waits for this copy, so its cost counts. A first copy into fresh memory spends most of its time in
page faults: the buffers are therefore cut from one mapping of huge pages and used again at every save.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ckptcore.errors import UsageError
from ckptcore.memory import HUGE_PAGE, Arena, padded

_HOST_REGISTER_PORTABLE = 1
_log = logging.getLogger(__name__)


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


class _Arena(Arena):
    """Memory that a GPU may copy to by itself.

    Attributes:
        pinned: the CUDA driver knows the memory, so that copies from the GPU run beside the host.
    """

    pinned: bool = False

    def bytes_at(self, offset: int, nbytes: int) -> torch.Tensor:
        """A byte tensor over part of the mapping, with a storage of just that part."""
        return torch.frombuffer(self, dtype=torch.uint8, count=nbytes, offset=offset)

    def pin(self) -> None:
        """Page-lock the mapping; left pageable (slower, still right) where the driver refuses."""
        code = int(_cudart().cudaHostRegister(self._address(), len(self), _HOST_REGISTER_PORTABLE))
        self.pinned = code == 0
        if not self.pinned:
            _log.warning(
                "CUDA error %d: %d bytes of snapshot buffer could not be page-locked, copies will be slower. "
                "Raise the limit of locked memory (ulimit -l).",
                code,
                len(self),
            )

    def _address(self) -> int:
        return self.bytes_at(0, 1).data_ptr()

    def __del__(self) -> None:
        # Not a weakref callback: mmap unmaps before it calls those, and the driver needs the pages to still
        # be there.
        if self.pinned and not sys.is_finalizing():
            _cudart().cudaHostUnregister(self._address())


@dataclass(frozen=True, slots=True)
class _Slot:
    """The buffer of one position, and what it was made for."""

    shape: torch.Size
    dtype: torch.dtype
    on_cuda: bool
    buffer: torch.Tensor
    arena: _Arena | None

    def fits(self, tensor: torch.Tensor) -> bool:
        return self.shape == tensor.shape and self.dtype == tensor.dtype and self.on_cuda == tensor.is_cuda


class SnapshotBuffers:
    """Contiguous CPU copies of a list of tensors, in memory that is used again by the next copy.

    What `copy` returns is complete when it returns and stays valid, in this process, until the next `copy`. A
    forked child sees zeros in it. Two calls at once, or a caller who writes into the returned tensors while
    somebody reads them, are the caller's business.
    """

    def __init__(self) -> None:
        self._slots: list[_Slot] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of memory mapped for the buffers."""
        return sum(len(arena) for arena in self._arenas())

    def copy(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copy every tensor to the CPU.

        Args:
            tensors: dense tensors of any device, strides and dtype; conjugate and negative bits are resolved.

        Returns:
            One contiguous CPU tensor each, of the same shape and dtype. A position whose shape and dtype did
            not change since the last call gets the same memory.

        Raises:
            UsageError: a tensor is sparse, quantized or on the meta device.
        """
        for position, tensor in enumerate(tensors):
            _check(position, tensor)
        # Buffers born in inference mode could not be written outside it again.
        with torch.inference_mode(False), torch.no_grad():
            self._fit(tensors)
            buffers = [slot.buffer for slot in self._slots]
            self._fill(buffers, tensors)
            # New tensor objects: whoever resizes or re-points one of them does not reach the buffer list.
            return [buffer.detach() for buffer in buffers]

    def _arenas(self) -> list[_Arena]:
        return list({id(slot.arena): slot.arena for slot in self._slots if slot.arena is not None}.values())

    def _fit(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give every position a buffer of its shape and dtype, keeping those that have one."""
        slots: list[_Slot | None] = [
            slot if slot.fits(tensor) else None for slot, tensor in zip(self._slots, tensors, strict=False)
        ]
        slots += [None] * (len(tensors) - len(slots))
        self._slots = [slot for slot in slots if slot is not None]
        if self.nbytes > 2 * sum(padded(tensor.nbytes) for tensor in tensors) + 8 * HUGE_PAGE:
            # A few survivors keep large arenas alive: better to start anew than to hold the memory twice.
            self._slots, slots = [], [None] * len(tensors)
        missing = [position for position, slot in enumerate(slots) if slot is None]
        for on_cuda in (False, True):
            positions = [p for p in missing if tensors[p].is_cuda == on_cuda]
            for position, slot in zip(
                positions, _allocate([tensors[p] for p in positions], on_cuda), strict=True
            ):
                slots[position] = slot
        self._slots = [slot for slot in slots if slot is not None]

    def _fill(self, buffers: list[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
        groups: dict[torch.device, list[int]] = {}
        for position, tensor in enumerate(tensors):
            groups.setdefault(tensor.device, []).append(position)
        # Devices first: their copies run while the host copies its own tensors.
        events: list[torch.cuda.Event] = []
        for device, positions in sorted(groups.items(), key=lambda item: item[0].type == "cpu"):
            targets = [buffers[p] for p in positions]
            sources = [tensors[p] for p in positions]
            if device.type == "cuda":
                events.append(self._start_cuda_copy(device, targets, sources))
            else:
                torch._foreach_copy_(targets, [_resolved(source) for source in sources])
        for event in events:
            event.synchronize()

    def _start_cuda_copy(
        self, device: torch.device, targets: list[torch.Tensor], sources: list[torch.Tensor]
    ) -> torch.cuda.Event:
        """Queue the copies of one GPU on a stream of their own, behind the work that the loop has queued."""
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            torch._foreach_copy_(targets, [_resolved(source) for source in sources], non_blocking=True)
            event: torch.cuda.Event = stream.record_event()
        return event


def _check(position: int, tensor: torch.Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise UsageError(
            f"snapshot expected dense tensors that hold data, got at position {position} a tensor of layout "
            f"{tensor.layout}, dtype {tensor.dtype} on {tensor.device}. "
            "Convert it (to_dense, int_repr) or materialise it first."
        )


def _resolved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.resolve_conj().resolve_neg() if tensor.is_conj() or tensor.is_neg() else tensor


def _allocate(tensors: list[torch.Tensor], on_cuda: bool) -> list[_Slot]:
    """Buffers for tensors that are all on CUDA (page-locked memory) or all elsewhere, cut from one arena."""
    total = sum(padded(tensor.nbytes) for tensor in tensors)
    arena, offset = None, 0
    if total:
        # A fork (each epoch of a DataLoader with workers) would make the next copy 8 x slower: copy-on-write.
        arena = _Arena.of(total, wipe_on_fork=True)
        if on_cuda:
            arena.pin()
    slots = []
    for tensor in tensors:
        if arena is None or not tensor.nbytes:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype)
        else:
            buffer = arena.bytes_at(offset, tensor.nbytes).view(tensor.dtype).view(tensor.shape)
            offset += padded(tensor.nbytes)
        held = arena if tensor.nbytes else None
        slots.append(_Slot(tensor.shape, tensor.dtype, on_cuda, buffer, held))
    return slots
