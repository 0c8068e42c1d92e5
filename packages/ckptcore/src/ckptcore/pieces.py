"""The pieces of a training state: their names, what an object gives for one, what a checkpoint holds."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ckptcore.errors import UsageError

PIECES: Mapping[str, str] = {
    "model": "model_state_dict",
    "optimizer": "optimizer_state_dict",
    "scheduler": "scheduler_state_dict",
    "scaler": "scaler_state_dict",
    "ema": "ema_state_dict",
    "rng": "rng_state",
    "loader": "loader_state",
}
"""The pieces of a training state: the argument of `capture` and `restore`, and the key in the checkpoint."""

LIGHTNING_KEYS: Mapping[str, str] = {
    "model": "state_dict",
    "optimizer": "optimizer_states",
    "scheduler": "lr_schedulers",
    "scaler": "MixedPrecision",
}
"""Where a Lightning checkpoint keeps the same pieces."""


def unwrap(module: Any) -> Any:
    """The module inside DDP, DataParallel and torch.compile wrappers, in whatever order they were put on."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    while True:
        if isinstance(module, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
            module = module.module
        elif dynamo is not None and isinstance(module, dynamo.OptimizedModule):
            module = module._orig_mod
        else:
            return module


def state_of(name: str, target: Any, loads: bool = False) -> Any:
    """The state dict of one object; ``loads`` asks that it can take one back as well."""
    wanted = ["state_dict", *(["load_state_dict"] if loads else [])]
    absent = [method for method in wanted if not callable(getattr(target, method, None))]
    if absent:
        raise UsageError(
            f"{name}: expected an object with {' and '.join(wanted)}, got {type(target).__qualname__}."
        )
    return target.state_dict()


def states_of(name: str, target: Any) -> Any:
    """The state of one object, or of several optimizers or schedulers in the same dict or list."""
    if name in ("optimizer", "scheduler") and is_several(target):
        if isinstance(target, Mapping):
            return {str(part): state_of(f"{name}.{part}", one) for part, one in target.items()}
        return [state_of(f"{name}[{index}]", one) for index, one in enumerate(target)]
    return state_of(name, unwrap(target) if name in ("model", "ema") else target)


def is_several(target: Any) -> bool:
    """Whether an argument is a dict or list of objects, not one object."""
    return isinstance(target, (Mapping, list, tuple)) and not hasattr(target, "state_dict")


def holds_several(state: Any) -> bool:
    """Whether a saved optimizer or scheduler state is a list or a dict of such, not one of them."""
    if isinstance(state, Mapping):
        return (
            bool(state)
            and "param_groups" not in state
            and all(isinstance(one, Mapping) for one in state.values())
        )
    return isinstance(state, (list, tuple))


def pair(targets: Any, states: Any) -> list[tuple[str, Any, Any]] | str:
    """(name, object, its state) of several, None for what one side lacks; or why they cannot be paired."""
    by_name = isinstance(targets, Mapping) and isinstance(states, Mapping) and holds_several(states)
    if by_name:
        named = {str(part): one for part, one in targets.items()}
        return [
            (part, named.get(part), states.get(part))
            for part in [*named, *(p for p in states if p not in named)]
        ]
    if not is_several(targets):
        targets = [targets]
        if isinstance(states, Sequence) and len(states) == 1:
            return [("", targets[0], states[0])]
    wanted = f"{len(targets)} " + (
        f"named {', '.join(map(str, targets))}" if isinstance(targets, Mapping) else "in order"
    )
    if not isinstance(states, (list, tuple)):
        got = (
            f"{len(states)} named {', '.join(map(str, states))}" if holds_several(states) else "a single one"
        )
        return f"expected {wanted}, got {got}. Pass them as they were given when saving."
    if len(states) != len(targets):
        return f"expected {wanted}, got {len(states)}."
    names = list(targets) if isinstance(targets, Mapping) else range(len(states))
    objects = targets.values() if isinstance(targets, Mapping) else targets
    return [(str(part), one, state) for part, one, state in zip(names, objects, states, strict=True)]


def held_for(checkpoint: Mapping[str, Any], name: str, target: Any) -> Any:
    """What a checkpoint holds for an argument, under our key or Lightning's; None for nothing."""
    state = checkpoint.get(PIECES[name])
    if state is None and name in LIGHTNING_KEYS:
        state = checkpoint.get(LIGHTNING_KEYS[name])
    # Empty: a disabled scaler, a run without schedulers. Of no use to anyone who has not asked for it.
    nothing = (
        isinstance(state, (Mapping, list, tuple))
        and not state
        and name in ("optimizer", "scheduler", "scaler")
    )
    return None if nothing and target is None else state
