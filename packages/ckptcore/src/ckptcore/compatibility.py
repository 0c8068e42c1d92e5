"""Whether a saved state fits the object that is to take it: asked before anything is changed.

torch's own ``load_state_dict`` of optimizers and schedulers takes nearly anything and fails steps later, or
never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from ckptcore.errors import some_of

ELEMENTWISE = frozenset(
    {
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg"),
        *("grad_avg", "acc_delta", "sum", "prev", "step_size", "ax"),
    }
)
"""State of torch's own optimizers that has the shape of its parameter."""

_IMPLEMENTATION_KEYS = frozenset(
    {
        *("params", "param_names", "foreach", "fused", "maximize", "capturable", "differentiable"),
        *("decoupled_weight_decay", "initial_lr"),
    }
)
"""Keys of a parameter group that come and go with torch's version and with schedulers."""


def module_problems(live: Mapping[str, Any], saved: Any, strict: bool) -> tuple[list[str], list[str]]:
    """Compare a saved state dict with a module's own.

    Args:
        live: the state dict of the module to load into.
        saved: the same, as saved.
        strict: whether names that only one side has, and other dtypes, are problems.

    Returns:
        Problems, and with ``strict=False`` the differences that are tolerated.
    """
    if not isinstance(saved, Mapping):
        return [f"expected a dict of tensors, got {type(saved).__name__}."], []
    shapes, softer = [], []
    missing = [name for name in live if name not in saved]
    unexpected = [name for name in saved if name not in live]
    if missing:
        softer.append(f"not in the checkpoint, but in the model: {some_of(missing)}.")
    if unexpected:
        softer.append(f"in the checkpoint, but not in the model: {some_of(unexpected)}.")
    for name, own in live.items():
        if name not in saved or not isinstance(own, torch.Tensor) or is_lazy(own):
            continue
        got = saved[name]
        if not isinstance(got, torch.Tensor):
            shapes.append(f"{name}: expected a tensor, got {type(got).__name__}.")
        elif got.shape != own.shape and not (own.ndim == 0 and got.shape == (1,)):
            shapes.append(
                f"{name}: expected shape {tuple(own.shape)} as in the model, got {tuple(got.shape)}."
            )
        elif got.dtype != own.dtype:
            softer.append(f"{name}: expected {own.dtype} as in the model, got {got.dtype}.")
    return ([*softer, *shapes], []) if strict else (shapes, softer)


def optimizer_problems(optimizer: Any, saved: Any, names: Mapping[int, str]) -> list[str]:
    """Compare a saved optimizer state with the groups and parameters of an optimizer.

    Args:
        optimizer: the optimizer to load into.
        saved: its state dict, as saved.
        names: the names of the model's parameters by ``id()``, as far as they are known.
    """
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        return ["expected an optimizer's state dict (state, param_groups)."]
    own_groups, groups = optimizer.param_groups, saved["param_groups"]
    if len(own_groups) != len(groups):
        return [f"expected {len(own_groups)} parameter group(s) as in the optimizer, got {len(groups)}."]
    problems = []
    for index, (own, group) in enumerate(zip(own_groups, groups, strict=True)):
        found = _group_problems(index, own, group, set(getattr(optimizer, "defaults", ())))
        problems += found or _shape_problems(index, optimizer, own, group, saved["state"], names)
    return problems


def _group_problems(
    index: int, own: Mapping[str, Any], group: Mapping[str, Any], hyperparameters: set[str]
) -> list[str]:
    problems = []
    if len(own["params"]) != len(group["params"]):
        problems.append(
            f"group {index}: expected {len(own['params'])} parameter(s) as in the optimizer, "
            f"got {len(group['params'])}."
        )
    absent = hyperparameters - group.keys() - _IMPLEMENTATION_KEYS
    foreign = group.keys() - own.keys() - _IMPLEMENTATION_KEYS
    # One-sided differences come from another torch version or from the caller's own keys; two-sided ones do
    # not.
    if absent and foreign:
        problems.append(
            f"group {index}: of another kind of optimizer: has {some_of(foreign)}, lacks {some_of(absent)}."
        )
    named, saved_names = own.get("param_names"), group.get("param_names")
    if named and saved_names and list(named) != list(saved_names):
        first = next((pair for pair in zip(named, saved_names, strict=False) if pair[0] != pair[1]), None)
        if first is not None:
            problems.append(
                f"group {index}: expected the parameter {first[0]} where the checkpoint has {first[1]}."
            )
    return problems


def _shape_problems(
    index: int,
    optimizer: Any,
    own: Mapping[str, Any],
    group: Mapping[str, Any],
    state: Mapping[Any, Any],
    names: Mapping[int, str],
) -> list[str]:
    listed = own.get("param_names") or [None] * len(own["params"])
    problems = []
    for position, (parameter, key) in enumerate(zip(own["params"], group["params"], strict=True)):
        name = names.get(id(parameter)) or listed[position] or f"parameter {position} of group {index}"
        for entry, value in state.get(key, {}).items():
            expected = _expected_shape(optimizer, parameter, entry)
            if isinstance(value, torch.Tensor) and expected is not None and value.shape != expected:
                problems.append(
                    f"{name}: {entry} has shape {tuple(value.shape)}, expected {tuple(expected)}."
                )
    return problems


def _expected_shape(optimizer: Any, parameter: torch.Tensor, entry: str) -> torch.Size | None:
    """The shape a state tensor must have, or None where only the optimizer's author knows."""
    own = getattr(optimizer, "state", {}).get(parameter, {}).get(entry)
    if isinstance(own, torch.Tensor):
        return own.shape
    of_torch = any(
        base.__module__.startswith("torch.optim.") and base is not torch.optim.Optimizer
        for base in type(optimizer).__mro__
    )
    return parameter.shape if of_torch and entry in ELEMENTWISE and not is_lazy(parameter) else None


def scheduler_problems(own: Any, saved: Any) -> list[str]:
    """Compare a saved scheduler state with a scheduler's own: its kind, and the number of learning rates."""
    if not isinstance(saved, Mapping):
        return [f"expected a scheduler's state dict, got {type(saved).__name__}."]
    if not isinstance(own, Mapping):
        return []
    # Keys with an underscore are torch's own and change with its version.
    absent = {key for key in own.keys() - saved.keys() if not str(key).startswith("_")}
    foreign = {key for key in saved.keys() - own.keys() - {"verbose"} if not str(key).startswith("_")}
    if absent and foreign:
        return [f"of another kind of scheduler: has {some_of(foreign)}, lacks {some_of(absent)}."]
    problems = []
    for key, what in (("base_lrs", "learning rate(s)"), ("_schedulers", "inner scheduler(s)")):
        ours, theirs = own.get(key), saved.get(key)
        if isinstance(ours, Sequence) and isinstance(theirs, Sequence) and len(ours) != len(theirs):
            problems.append(f"expected {len(ours)} {what}, got {len(theirs)}.")
        elif key == "_schedulers" and isinstance(ours, Sequence) and isinstance(theirs, Sequence):
            for inner, inner_saved in zip(ours, theirs, strict=True):
                problems += scheduler_problems(inner, inner_saved)
    return problems


def scaler_problems(own: Mapping[str, Any], saved: Any) -> list[str]:
    """Compare a saved gradient scaler state with a scaler's own: both enabled or both not, no figure gone."""
    if not isinstance(saved, Mapping):
        return [f"expected a scaler's state dict, got {type(saved).__name__}."]
    if own and not saved:
        return ["saved by a disabled scaler, and this one is enabled. Build it with enabled=False."]
    if saved and not own:
        return [
            "saved by an enabled scaler, and this one is disabled: it would drop the state. "
            "Build it with enabled=True."
        ]
    missing = own.keys() - saved.keys()
    return [f"lacks {some_of(missing)}."] if missing else []


def tree_problems(own: Any, saved: Any, name: str = "") -> list[str]:
    """Compare two nested states by names, lengths and tensor shapes, as far as both sides say something."""
    at = f"{name}: " if name else ""
    if isinstance(own, torch.Tensor) and isinstance(saved, torch.Tensor):
        if own.shape != saved.shape and not is_lazy(own):
            return [f"{at}expected shape {tuple(own.shape)}, got {tuple(saved.shape)}."]
    elif isinstance(own, Mapping):
        if not isinstance(saved, Mapping):
            return [f"{at}expected a dict, got {type(saved).__name__}."]
        missing = [key for key in own if key not in saved]
        problems = [f"{at}lacks {some_of(missing)}."] if missing else []
        for key in own.keys() & saved.keys():
            problems += tree_problems(own[key], saved[key], f"{name}.{key}" if name else str(key))
        return problems
    elif isinstance(own, (list, tuple)) and isinstance(saved, (list, tuple)) and own:
        if len(own) != len(saved):
            return [f"{at}expected {len(own)} items, got {len(saved)}."]
        pairs = enumerate(zip(own, saved, strict=True))
        return [line for index, (a, b) in pairs for line in tree_problems(a, b, f"{name}[{index}]")]
    return []
