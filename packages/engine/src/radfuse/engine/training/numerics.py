"""What decides the bits of a result besides the parameters: device, precision, threads, layout of memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from radfuse.engine.errors import RadfuseError, SettingsError


class OtherNumerics(RadfuseError):
    """A run would go on under conditions that change the bits of its results."""


@dataclass(frozen=True)
class Numerics:
    """The conditions of a training, as stamped into its checkpoints.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: ``32`` or ``bf16``.
        threads: of one operation on the CPU; 0 on another device.
        deterministic: whether only algorithms are used that give the same bits every time.
        processes: that train together.
        hardware: the GPU's name, or the CPU's vector instructions that torch uses.
        torch: its version.
        monai: its version.
        numpy: its version.
    """

    device: str
    precision: str
    threads: int
    deterministic: bool
    processes: int = 1
    hardware: str = ""
    torch: str = ""
    monai: str = ""
    numpy: str = ""

    @property
    def fabric_precision(self) -> Any:
        """The same in Lightning Fabric's words."""
        return "bf16-mixed" if self.precision == "bf16" else "32-true"

    def stamp(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def choose(
    device: str,
    precision: str,
    deterministic: bool = False,
    network: nn.Module | None = None,
    processes: int = 1,
) -> Numerics:
    """The conditions that params.yaml asks for, on this machine.

    Args:
        device: ``auto`` (a GPU when there is one), ``cpu`` or ``cuda``.
        precision: ``auto`` (bf16 where the device computes in it), ``32`` or ``bf16``.
        deterministic: only algorithms that give the same bits every time.
        network: what is to be trained, where it is.
        processes: that train together.

    Raises:
        SettingsError: there is no such device here, or it trains the network wrongly in that precision.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"train.device: expected auto, cpu or cuda, got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("train.device: expected a GPU for 'cuda', got none here. Say cpu, or auto.")
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    unsafe = kind == "cpu" and network is not None and has_volumes(network)
    if precision == "bf16" and unsafe:
        raise SettingsError(
            "train.precision: bf16 is not for networks with 3D convolutions on a CPU: torch computes wrong "
            "gradients for them there. Say 32, or auto."
        )
    if precision == "auto":
        precision = "bf16" if computes_in_bf16(kind) and not unsafe else "32"
    threads = torch.get_num_threads() if kind == "cpu" else 0
    hardware = torch.cuda.get_device_name() if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
    versions = {name: version(name) for name in ("torch", "monai", "numpy")}
    return Numerics(kind, precision, threads, deterministic, processes, hardware, **versions)


def computes_in_bf16(device: str) -> bool:
    """Whether the hardware multiplies in bf16; where it is emulated it only costs time and precision."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # AVX-512 alone emulates it; these two have instructions for it.
    has: Mapping[str, Any] = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def has_volumes(network: nn.Module) -> bool:
    """Whether a network has 3D convolutions, whose weight gradients torch gets wrong in bf16 on a CPU.

    torch 2.13 with AVX512-BF16, 3D ResNet-18, batch 16 of 16 or 32 voxels an edge: gradients of up to 1e36
    and infinity in some of the weights, others in every run, as if memory were read that nobody wrote. With
    float32 there is none.
    """
    return any(isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)) for layer in network.modules())


def differences(before: Mapping[str, Any], now: Numerics) -> list[str]:
    """What differs between the stamp of a checkpoint and the conditions of this process, in words."""
    return [
        f"{name} {before.get(name)!r} then, {value!r} now"
        for name, value in now.stamp().items()
        if before.get(name) != value
    ]


def check_same(other: Sequence[str]) -> None:
    """Refuse to go on under other conditions than before.

    Args:
        other: `differences`.

    Raises:
        OtherNumerics: saying what differs.
    """
    if other:
        raise OtherNumerics(
            f"this run was trained under other conditions: {'; '.join(other)}. Its result would be that of "
            "neither. Set them as they were (train.device, OMP_NUM_THREADS, what is installed), "
            "or go on nevertheless: radfuse train MODALITY --accept-other-hardware, after which `dvc repro` "
            "takes up the rest."
        )


def memory_format(network: nn.Module) -> torch.memory_format:
    """How the tensors of a network lie in memory: channels last where that is faster.

    Networks of two dimensions always gain (ResNet-50, one CPU core: 5 to 15 % in fp32, up to 30 % in bf16;
    tensor cores want it). Of three they lose on a CPU in fp32 (U-Net 20 %), and stay as they are.
    """
    flat = any(isinstance(layer, nn.Conv2d) for layer in network.modules())
    return torch.channels_last if flat else torch.contiguous_format


def laid_out(image: Tensor, layout: torch.memory_format) -> Tensor:
    """The same image (B, C, ...) with its memory in that order."""
    return image.contiguous(memory_format=layout) if image.ndim == 4 else image.contiguous()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute by one thread of torch: sums that threads share have other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
