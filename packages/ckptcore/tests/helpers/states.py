"""States to save, and the comparison that sees every difference which a file must not make."""

import struct
from collections import OrderedDict
from typing import Any

import torch

from ckptcore.dtypes import ITEM_SIZE

DTYPES = [getattr(torch, name) for name in ITEM_SIZE]


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """A tensor of random bits: NaNs, infinities and subnormals included."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    count = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


def raw(tensor: torch.Tensor) -> bytes:
    """The row-major bytes of a tensor."""
    plain = tensor.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg()
    plain = plain.clone(memory_format=torch.contiguous_format)  # contiguous() keeps odd strides of size 1
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def small_state() -> dict[str, Any]:
    """A small model with AdamW after one step, tied weights, and one tensor of every type."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 4, bias=False)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    weights = model.state_dict()
    weights["tied.weight"] = weights["0.weight"]
    return {
        "epoch": 4,
        "global_step": 120,
        "model_state_dict": weights,
        "optimizer_state_dict": optimizer.state_dict(),
        "val_metrics": {"f1": 0.5, "loss": float("nan"), "worst": float("-inf")},
        "odd": {str(dtype): random_tensor((3, 2), dtype) for dtype in DTYPES},
        "history": {
            "train_loss": [0.9, 0.5],
            "notes": ("a", None, True, -1, 2**80, 1 + 2j, b"\x00\xff", {1, "x"}),
        },
        "shape": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
    }


def tiny_state() -> dict[str, Any]:
    """Two tensors and a metric."""
    return {
        "epoch": 2,
        "model_state_dict": {"w": torch.arange(4, dtype=torch.int16)},
        "val_auc": 0.75,
        "note": "tiny",
        "step": torch.tensor([1.5]),
    }


def difference(one: Any, other: Any, path: str = "") -> str | None:
    """Where two states differ in type, value, order of keys or bits; None if nowhere."""
    if type(one) is not type(other):
        return f"{path}: {type(one)} and {type(other)}"
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and raw(one) == raw(other)
        return None if same else f"{path}: {one} and {other}"
    if isinstance(one, dict):
        return _dict_difference(one, other, path)
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return f"{path}: {len(one)} and {len(other)} items"
        pairs = enumerate(zip(one, other, strict=True))
        return next((found for i, (a, b) in pairs if (found := difference(a, b, f"{path}/{i}"))), None)
    if isinstance(one, complex):
        return difference((one.real, one.imag), (other.real, other.imag), path)
    if isinstance(one, float):
        return None if struct.pack("<d", one) == struct.pack("<d", other) else f"{path}: {one} and {other}"
    return None if one == other else f"{path}: {one!r} and {other!r}"


def _dict_difference(one: dict[Any, Any], other: dict[Any, Any], path: str) -> str | None:
    if list(map(repr, one)) != list(map(repr, other)):
        return f"{path}: keys {list(one)} and {list(other)}"
    for key, (a, b) in zip(one, zip(one.values(), other.values(), strict=True), strict=True):
        found = difference(a, b, f"{path}/{key}")
        if found:
            return found
    if isinstance(one, OrderedDict):
        missing = object()
        pair = getattr(one, "_metadata", missing), getattr(other, "_metadata", missing)
        if missing not in pair:
            return difference(*pair, f"{path}/_metadata")
        if pair[0] is not pair[1]:
            return f"{path}: _metadata in one only"
    return None
