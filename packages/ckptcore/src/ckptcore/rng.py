"""The states of every random number generator of a training run, as plain values and tensors.

``torch.load(weights_only=True)`` opens what `capture_rng` returns; NumPy's own tuples and arrays it would
refuse.
"""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from ckptcore.errors import MissingState, UsageError

PREFIX = "rng_state"
"""The key of these states in a checkpoint; a part of them is named as ``rng_state.torch_cuda``."""

_ARRAY_DTYPES = ("uint8", "uint32", "uint64", "int64")
"""What NumPy's bit generators keep in arrays; a file may not ask for any other."""

_REFUSALS = (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError)
"""What the four kinds of generator raise when a state does not fit them."""


def capture_rng(generators: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, and of the ones given.

    NumPy counts when it has been imported, CUDA when it has been used (all its devices).

    Args:
        generators: by name: ``torch.Generator``, ``numpy.random.Generator``, ``numpy.random.RandomState`` or
            ``random.Random``.

    Raises:
        UsageError: a generator is of another kind, or cannot tell its state.
    """
    state: dict[str, Any] = {"python": _python_state(random.getstate()), "torch_cpu": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state["numpy"] = _to_plain(numpy.random.get_state(legacy=False))
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["torch_cuda"] = list(torch.cuda.get_rng_state_all())
    state["generators"] = {
        name: _generator_state(name, generator) for name, generator in (generators or {}).items()
    }
    return state


def restore_rng(
    state: Mapping[str, Any], generators: Mapping[str, Any] | None = None, *, waive: Collection[str] = ()
) -> None:
    """Put every generator back to a captured state; all of them or, on an error, none.

    Args:
        state: what `capture_rng` returned.
        generators: the objects to restore, under the names they were captured by.
        waive: names of parts that may stay as they are when they cannot be restored, as
            ``rng_state.torch_cuda``.

    Raises:
        MissingState: naming each part that this machine or this call has no place for, or the state does not
            hold.
    """
    gaps = find_rng_gaps(state, generators)
    open_gaps = {name: why for name, why in gaps.items() if name not in waive and PREFIX not in waive}
    if open_gaps:
        lines = "".join(f"\n  {name}: {why}" for name, why in open_gaps.items())
        raise MissingState(
            list(open_gaps),
            f"the random state cannot be restored:{lines}\nTo go on without them: waive={list(open_gaps)}.",
        )
    if PREFIX in gaps:
        return
    for name, (_, apply) in _plan(state, generators or {}).items():
        if name not in gaps:
            apply()


def find_rng_gaps(state: Any, generators: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What of a captured state cannot be restored here: name of each part and why. Changes nothing."""
    if not _is_captured(state):
        return {PREFIX: "expected what capture_rng() returns, got something else. Waive it."}
    gaps = {}
    for name, (check, _) in _plan(state, generators or {}).items():
        why = check()
        if why is not None:
            gaps[name] = why
    return gaps


def _is_captured(state: Any) -> bool:
    if not isinstance(state, Mapping) or not {"python", "torch_cpu"} <= state.keys():
        return False
    saved = state.get("generators", {})
    return isinstance(saved, Mapping) and all(
        isinstance(one, Mapping) and {"kind", "state"} <= one.keys() for one in saved.values()
    )


Step = tuple[Callable[[], str | None], Callable[[], None]]


def _plan(state: Mapping[str, Any], generators: Mapping[str, Any]) -> dict[str, Step]:
    """For every part of the state and every generator given: how to check it, and how to restore it."""
    plan: dict[str, Step] = {
        f"{PREFIX}.python": (
            lambda: _why_not(lambda: random.Random().setstate(_python_tuple(state["python"]))),
            lambda: random.setstate(_python_tuple(state["python"])),
        ),
        f"{PREFIX}.torch_cpu": (
            lambda: _why_not(lambda: torch.Generator().set_state(_bytes(state["torch_cpu"]))),
            lambda: torch.set_rng_state(_bytes(state["torch_cpu"])),
        ),
    }
    if "numpy" in state:
        plan[f"{PREFIX}.numpy"] = (
            lambda: _numpy_gap(state["numpy"]),
            lambda: _set_numpy_global(state["numpy"]),
        )
    if "torch_cuda" in state:
        cuda = state["torch_cuda"]
        plan[f"{PREFIX}.torch_cuda"] = (
            lambda: _cuda_gap(cuda),
            lambda: torch.cuda.set_rng_state_all([_bytes(one) for one in cuda]),
        )
    saved = state.get("generators", {})
    for name in [*saved, *(name for name in generators if name not in saved)]:
        plan[f"{PREFIX}.generators.{name}"] = _generator_step(name, saved, generators)
    return plan


def _generator_step(name: str, saved: Mapping[str, Any], generators: Mapping[str, Any]) -> Step:
    def check() -> str | None:
        if name not in generators:
            return f"the checkpoint holds this generator, none was given. Pass generators={{{name!r}: ...}}."
        if name not in saved:
            return f"not in the checkpoint, which holds {sorted(saved) or 'no named generators'}."
        kind = _kind(name, generators[name])
        if saved[name].get("kind") != kind:
            return f"the checkpoint holds a {saved[name].get('kind')} generator, got a {kind} one."
        return _why_not(lambda: _try_generator(generators[name], saved[name]))

    return check, lambda: _set_generator(generators[name], saved[name])


def _why_not(attempt: Callable[[], object]) -> str | None:
    """The complaint of a restore tried on a throwaway generator, or None."""
    try:
        attempt()
    except _REFUSALS as error:
        return f"the state does not fit ({type(error).__name__}: {error})."
    return None


def _cuda_gap(states: Any) -> str | None:
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not isinstance(states, (list, tuple)) or len(states) != here:
        count = len(states) if isinstance(states, (list, tuple)) else "unreadable"
        return (
            f"expected {count} CUDA device(s), as when it was saved, got {here}. "
            "Resume on as many, or waive it."
        )
    return _why_not(
        lambda: [torch.Generator(f"cuda:{index}").set_state(_bytes(one)) for index, one in enumerate(states)]
    )


def _numpy_gap(state: Any) -> str | None:
    try:
        numpy = importlib.import_module("numpy")
    except ImportError:
        return "NumPy was used when this was saved and is not installed here. Install it, or waive it."
    here = numpy.random.get_state(legacy=False)["bit_generator"]
    if not isinstance(state, Mapping) or state.get("bit_generator") != here:
        return f"expected the state of NumPy's global {here}, got another. Set that bit generator first."
    bits = type(numpy.random.get_bit_generator())
    return _why_not(lambda: numpy.random.RandomState(bits()).set_state(_from_plain(state)))


def _set_numpy_global(state: Mapping[str, Any]) -> None:
    importlib.import_module("numpy").random.set_state(_from_plain(state))


def _python_state(state: tuple[Any, ...]) -> dict[str, Any]:
    version, words, gauss = state
    return {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss_next": gauss}


def _python_tuple(state: Mapping[str, Any]) -> tuple[Any, ...]:
    return state["version"], tuple(state["words"].tolist()), state["gauss_next"]


def _bytes(state: Any) -> torch.Tensor:
    """A torch generator's state where torch wants it: on the CPU, whatever map_location moved it to."""
    if not isinstance(state, torch.Tensor):
        raise TypeError(f"expected a tensor of bytes, got {type(state).__name__}")
    return state.to("cpu")


def _kind(name: str, generator: Any) -> str:
    if isinstance(generator, torch.Generator):
        return f"torch {generator.device.type}"
    if isinstance(generator, random.Random):
        return "python"
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(generator, numpy.random.Generator):
        return f"numpy {generator.bit_generator.state['bit_generator']}"
    if numpy is not None and isinstance(generator, numpy.random.RandomState):
        return f"numpy legacy {generator.get_state(legacy=False)['bit_generator']}"
    raise UsageError(
        f"generator {name!r}: expected torch.Generator, numpy.random.Generator or RandomState, or "
        f"random.Random, got {type(generator).__module__}.{type(generator).__qualname__}."
    )


def _generator_state(name: str, generator: Any) -> dict[str, Any]:
    kind = _kind(name, generator)
    if kind.startswith("torch"):
        return {"kind": kind, "state": generator.get_state()}
    if kind == "python":
        try:
            return {"kind": kind, "state": _python_state(generator.getstate())}
        except NotImplementedError as error:
            raise UsageError(
                f"generator {name!r}: {type(generator).__name__} has no state to save. Leave it out."
            ) from error
    legacy = kind.startswith("numpy legacy")
    return {
        "kind": kind,
        "state": _to_plain(generator.get_state(legacy=False) if legacy else generator.bit_generator.state),
    }


def _set_generator(generator: Any, saved: Mapping[str, Any]) -> None:
    kind, state = saved["kind"], saved["state"]
    if kind.startswith("torch"):
        generator.set_state(_bytes(state))
    elif kind == "python":
        generator.setstate(_python_tuple(state))
    elif kind.startswith("numpy legacy"):
        generator.set_state(_from_plain(state))
    else:
        generator.bit_generator.state = _from_plain(state)


def _try_generator(like: Any, saved: Mapping[str, Any]) -> None:
    """Restore into a new generator of the same kind."""
    if isinstance(like, torch.Generator):
        _set_generator(torch.Generator(like.device), saved)
    elif isinstance(like, random.Random):
        _set_generator(random.Random(), saved)
    else:
        legacy = saved["kind"].startswith("numpy legacy")
        bits = like._bit_generator if legacy else like.bit_generator
        _set_generator(type(like)(type(bits)()), saved)


def _to_plain(value: Any) -> Any:
    """NumPy's state dict without NumPy: arrays as int64 tensors, those of 64 bits as lists of ints."""
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        listed = value.tolist()
        if not isinstance(listed, list):
            return listed
        if value.dtype.itemsize > 4:
            return {"dtype": str(value.dtype), "items": listed}
        return {"dtype": str(value.dtype), "items": torch.tensor(listed, dtype=torch.int64)}
    return value


def _from_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {"dtype", "items"}:
            items = value["items"]
            listed = items.tolist() if isinstance(items, torch.Tensor) else items
            if value["dtype"] not in _ARRAY_DTYPES:
                raise ValueError(
                    f"an array of {value['dtype']!r}, expected one of {', '.join(_ARRAY_DTYPES)}"
                )
            return importlib.import_module("numpy").array(listed, dtype=value["dtype"])
        return {key: _from_plain(item) for key, item in value.items()}
    return value
