"""What ``data/format_v1.pt`` holds. Run as a script, it writes that file, which stays once it is released."""

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from ckptcore.dtypes import ITEM_SIZE

METADATA = {"roles": ["best", "latest"], "run_key": "0123456789abcdef", "metrics": {"f1": 0.75}}


def known_state() -> dict[str, Any]:
    """A state with one tensor of every type and one value of every kind, the same on every machine."""
    weights: OrderedDict[str, torch.Tensor] = OrderedDict()
    weights["layer.weight"] = torch.arange(6, dtype=torch.float32).reshape(2, 3) / 4
    weights["layer.bias"] = torch.tensor([-1.5, float("inf")], dtype=torch.bfloat16)
    weights["tied.weight"] = weights["layer.weight"]
    weights._metadata = OrderedDict({"": {"version": 1}, "layer": {"version": 1}})  # type: ignore[attr-defined]
    bits = torch.arange(16, dtype=torch.uint8)
    kinds = {
        name: bits.view(getattr(torch, name)) for name in ITEM_SIZE if name not in ("bool", "complex128")
    }
    return {
        "epoch": 4,
        "global_step": 1234,
        "model_state_dict": weights,
        "optimizer_state_dict": {
            "state": {0: {"step": torch.tensor(7.0)}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}],
        },
        "val_metrics": {"f1": 0.75, "loss": float("inf")},
        "history": {"train_loss": [0.5, 0.25]},
        "types": kinds
        | {"bool": torch.tensor([True, False]), "complex128": torch.tensor([1 + 2j], dtype=torch.complex128)},
        "empty": torch.empty(0, 3),
        "plain": [
            None,
            True,
            -1,
            300,
            70_000,
            2**80,
            0.1,
            "é\n",
            b"\x00\xff",
            1 + 2j,
            (1, "a", (2.5,), ()),
            [],
            {},
            {1},
        ],
        "torch": [torch.Size([1, 2]), torch.float16, torch.device("cuda", 1)],
        ("k" * 200): "long key",
        "keys": {0: "int", (1, "a"): "tuple", None: "none", True: "bool", 0.5: "float"},
        "timestamp": "2026-01-02T03:04:05+00:00",
    }


def main(path: Path) -> None:
    import ckptcore

    ckptcore.save(path, known_state(), METADATA)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "data" / "format_v1.pt")
