"""A whole training state in one dict, and back: model, optimizer, scheduler, scaler, EMA, RNG, loader.

A piece that is missing at resume stops the run with an error that names it, unless the caller waived it by
name.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ckptcore import compatibility
from ckptcore.errors import MissingState, UsageError
from ckptcore.pieces import PIECES, held_for, holds_several, is_several, pair, state_of, states_of, unwrap
from ckptcore.rng import capture_rng, find_rng_gaps, restore_rng

# The scheduler before the optimizer: one that sets learning rates while loading does not have the last word.
# Random numbers last: whatever the others draw while loading is undone.
_ORDER = ("model", "ema", "scheduler", "optimizer", "scaler", "loader", "rng")


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What `restore` did.

    Attributes:
        restored: names of the pieces that were put back.
        waived: pieces left as they were, because the caller waived them.
        absent: pieces that the checkpoint does not hold and nobody asked for.
        notes: differences of the model's names and dtypes that ``strict=False`` let pass.
    """

    restored: tuple[str, ...]
    waived: tuple[str, ...]
    absent: tuple[str, ...]
    notes: tuple[str, ...] = ()


def capture(
    *,
    model: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    ema: Any = None,
    rng: bool | Mapping[str, Any] = True,
    loader: Any = None,
    **extra: Any,
) -> dict[str, Any]:
    """Gather the state of everything given under the keys of a checkpoint; tensors are the live ones.

    Args:
        model: a module; DDP, DataParallel and torch.compile wrappers are taken off.
        optimizer: an optimizer, or a dict or list of several.
        scheduler: a learning rate scheduler, or a dict or list of several.
        scaler: a gradient scaler.
        ema: averaged weights: anything with ``state_dict()``, such as ``AveragedModel``, its counter
            included.
        rng: True for the global generators, a mapping for these and the named ones, False for none.
        loader: anything with ``state_dict()``, or a plain dict.
        extra: further top-level keys, kept as given (``epoch=3, history=...``).

    Raises:
        UsageError: an argument has no state, or an extra key is one of the pieces' own.
    """
    taken = extra.keys() & set(PIECES.values())
    if taken:
        raise UsageError(
            f"extra keys {sorted(taken)} are made from the arguments {list(PIECES)}. Pass the objects there."
        )
    objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "ema": ema}
    state = {PIECES[name]: states_of(name, target) for name, target in objects.items() if target is not None}
    if _wants_rng(rng):
        state["rng_state"] = capture_rng(_generators(rng))
    if loader is not None:
        state["loader_state"] = dict(loader) if isinstance(loader, Mapping) else state_of("loader", loader)
    return {**state, **extra}


def restore(
    checkpoint: Mapping[str, Any],
    *,
    model: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    ema: Any = None,
    rng: bool | Mapping[str, Any] = True,
    loader: Any = None,
    waive: Collection[str] = (),
    strict: bool = True,
) -> RestoreReport:
    """Put a saved training state back into new objects; everything is checked before anything is changed.

    Both a piece asked for that the checkpoint lacks and one that it holds and nobody asked for are missing.
    Build schedulers before the call: their constructors change learning rates. The objects share no memory
    with the checkpoint afterwards. The keys of a Lightning checkpoint are understood too.

    Args:
        checkpoint: what was saved, as loaded.
        model: as given to `capture`, and so are the next four.
        optimizer: one, or a dict or list of several under the same names.
        scheduler: one, or a dict or list of several under the same names.
        scaler: a gradient scaler, enabled or not as when it was saved.
        ema: averaged weights.
        rng: True for the global generators, a mapping for these and the named ones, False to leave them all
            alone.
        loader: an object with ``load_state_dict()``, or a plain dict, which is filled in place.
        waive: names of pieces to go on without, as the error names them (``optimizer``,
            ``rng_state.torch_cuda``).
        strict: whether the model must have exactly the names and dtypes of the checkpoint; shapes always must
            fit.

    Raises:
        MissingState: naming every piece that is missing or does not fit.
        UsageError: an argument has no state, or ``waive`` names no piece.
    """
    waived = _canonical(waive)
    given = dict(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, ema=ema, loader=loader)
    held = {name: held_for(checkpoint, name, given.get(name)) for name in PIECES}
    checks = _Checks(strict=strict, names=_parameter_names(model))
    for name in _ORDER:
        if name == "rng":
            checks.add_rng(held[name], rng)
        else:
            checks.add(name, given[name], held[name])
    unwaived = {piece: lines for piece, lines in checks.problems.items() if not _is_waived(piece, waived)}
    if unwaived:
        raise MissingState(list(unwaived), _complaint(unwaived))
    for apply in checks.steps.values():
        apply()
    given["rng"] = True if _wants_rng(rng) else None
    return RestoreReport(
        restored=tuple(checks.steps),
        waived=(*checks.problems, *checks.declined),
        absent=tuple(key for name, key in PIECES.items() if held[name] is None and given[name] is None),
        notes=tuple(checks.notes),
    )


@dataclass(slots=True)
class _Checks:
    """What stands against a restore, and the steps that would do it, both by name of piece."""

    strict: bool
    names: Mapping[int, str]
    problems: dict[str, list[str]] = field(default_factory=dict)
    steps: dict[str, Callable[[], object]] = field(default_factory=dict)
    declined: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, target: Any, state: Any) -> None:
        """Check one argument of `restore` against what the checkpoint holds for it."""
        key = PIECES[name]
        if target is None and state is not None:
            self.problems[key] = [f"the checkpoint holds it and no {name} was given. Pass {name}=..."]
        elif target is not None and state is None:
            self.problems[key] = ["asked for and not in the checkpoint."]
        elif target is None:
            return
        elif name in ("optimizer", "scheduler") and _are_several(name, target, state):
            self._add_several(name, target, state)
        else:
            self._add_one(key, name, target, state)

    def add_rng(self, state: Any, rng: bool | Mapping[str, Any]) -> None:
        """Check the random states part by part."""
        if not _wants_rng(rng):
            self.declined += [] if state is None else ["rng_state"]
        elif state is None:
            self.problems["rng_state"] = [
                "asked for and not in the checkpoint. rng=False leaves the generators alone."
            ]
        else:
            generators = _generators(rng)
            gaps = find_rng_gaps(state, generators)
            self.problems.update({part: [why] for part, why in gaps.items()})
            if "rng_state" not in gaps:
                self.steps["rng_state"] = lambda: restore_rng(state, generators, waive=list(gaps))

    def _add_several(self, name: str, targets: Any, states: Any) -> None:
        key = PIECES[name]
        pairs = pair(targets, states)
        if isinstance(pairs, str):
            self.problems[key] = [pairs]
            return
        for part, target, state in pairs:
            piece = f"{key}.{part}" if part else key
            if target is None:
                self.problems[piece] = [f"the checkpoint holds it and no {name} of this name was given."]
            elif state is None:
                self.problems[piece] = ["asked for and not in the checkpoint."]
            else:
                self._add_one(piece, name, target, state)

    def _add_one(self, piece: str, name: str, target: Any, state: Any) -> None:
        target = unwrap(target) if name in ("model", "ema") else target
        problems = self._compare(name, target, state)
        if problems:
            self.problems[piece] = problems
        elif name == "loader" and _is_plain_dict(target):
            self.steps[piece] = lambda: _refill(target, state)
        elif isinstance(target, torch.nn.Module):
            # A module copies into its own tensors, so its state needs no copy of its own.
            options = {"strict": False} if name == "model" and not self.strict else {}
            self.steps[piece] = lambda: target.load_state_dict(state, **options)
        else:
            self.steps[piece] = lambda: target.load_state_dict(_owned(state))

    def _compare(self, name: str, target: Any, state: Any) -> list[str]:
        if name == "loader" and _is_plain_dict(target):
            return [] if isinstance(state, Mapping) else [f"expected a dict, got {type(state).__name__}."]
        own = state_of(name, target, loads=True)
        if name == "optimizer":
            if hasattr(target, "param_groups"):
                return compatibility.optimizer_problems(target, state, self.names)
            return compatibility.tree_problems(own, state)
        if name == "scheduler":
            return compatibility.scheduler_problems(own, state)
        if name == "scaler":
            return compatibility.scaler_problems(own, state)
        if isinstance(target, torch.nn.Module):
            problems, notes = compatibility.module_problems(own, state, self.strict or name == "ema")
            self.notes += [f"{PIECES[name]}: {note}" for note in notes]
            return problems
        return compatibility.tree_problems(own, state) if name == "ema" else []


def _wants_rng(rng: bool | Mapping[str, Any]) -> bool:
    if not isinstance(rng, (bool, Mapping)):
        raise UsageError(
            f"rng: expected True, False or a mapping of generators by name, got {type(rng).__qualname__}."
        )
    return rng is not False


def _generators(rng: bool | Mapping[str, Any]) -> Mapping[str, Any]:
    return rng if isinstance(rng, Mapping) else {}


def _parameter_names(model: Any) -> dict[int, str]:
    if not isinstance(model, torch.nn.Module):
        return {}
    return {id(parameter): name for name, parameter in unwrap(model).named_parameters()}


def _canonical(waive: Collection[str]) -> set[str]:
    """The names of waived pieces with the checkpoint's key in front, whether given by key or by argument."""
    names = {waive} if isinstance(waive, str) else set(waive)
    canonical = set()
    for name in names:
        root, dot, part = name.partition(".")
        key = PIECES.get(root, root)
        if key not in PIECES.values():
            near = difflib.get_close_matches(root, [*PIECES, *PIECES.values()], 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"waive: expected pieces of {', '.join(PIECES.values())}, got {name!r}.{hint}")
        canonical.add(f"{key}{dot}{part}")
    return canonical


def _is_waived(piece: str, waived: set[str]) -> bool:
    return piece in waived or piece.partition(".")[0] in waived


def _complaint(problems: Mapping[str, Sequence[str]]) -> str:
    lines = []
    for piece, found in problems.items():
        more = [f"and {len(found) - 5} more."] if len(found) > 5 else []
        lines += [f"  {piece}: {line}" for line in [*found[:5], *more]]
    listed = "\n".join(lines)
    return (
        f"cannot restore the training state, nothing was changed:\n{listed}\n"
        f"To go on without them, waive them by name: waive={list(problems)}."
    )


def _are_several(name: str, target: Any, state: Any) -> bool:
    """Whether either side is several objects; one whose own state is a dict of dicts is a single one."""
    if is_several(target) or isinstance(state, (list, tuple)):
        return True
    return holds_several(state) and not holds_several(state_of(name, target))


def _is_plain_dict(target: Any) -> bool:
    return isinstance(target, MutableMapping) and not hasattr(target, "load_state_dict")


def _refill(target: MutableMapping[Any, Any], state: Mapping[Any, Any]) -> None:
    target.clear()
    target.update(_owned(state))


def _owned(value: Any) -> Any:
    """A deep copy that clones tensors one by one, not the file-wide storage that they may be views of.

    Optimizers and schedulers keep what they are given: without a copy, their next step would write into the
    checkpoint's memory, which may be a read-only map of the file.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _owned(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_owned(item) for item in value)
    return copy.deepcopy(value)
