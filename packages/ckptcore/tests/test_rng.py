import copy
import importlib.util
import io
import random
import subprocess
import sys

import numpy
import pytest
import torch

from ckptcore.errors import MissingState, UsageError
from ckptcore.rng import capture_rng, find_rng_gaps, restore_rng


def stored(state):
    """The state after a trip through a file that torch opens without trusting it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def draw_globals():
    return (
        *([random.random() for _ in range(5)], random.gauss(0, 1)),
        *(numpy.random.rand(5).tolist(), float(numpy.random.randn())),
        torch.rand(5).tolist(),
    )


def make_generators():
    return {
        "torch": torch.Generator().manual_seed(1),
        "python": random.Random(2),
        "pcg": numpy.random.default_rng(3),
        "philox": numpy.random.Generator(numpy.random.Philox(4)),
        "sfc": numpy.random.Generator(numpy.random.SFC64(5)),
        "mt": numpy.random.Generator(numpy.random.MT19937(6)),
        "dxsm": numpy.random.Generator(numpy.random.PCG64DXSM(7)),
        "legacy": numpy.random.RandomState(8),
    }


def draw(generators):
    numpy_names = ("pcg", "philox", "sfc", "mt", "dxsm")
    return (
        torch.rand(3, generator=generators["torch"]).tolist(),
        [generators["python"].gauss(0, 1) for _ in range(3)],
        [
            (
                generators[name].random(3).tolist(),
                generators[name].integers(0, 99, 3, dtype="uint32").tolist(),
            )
            for name in numpy_names
        ],
        generators["legacy"].randn(3).tolist(),
    )


def test_global_generators_go_on_where_they_were() -> None:
    draw_globals()
    state = stored(capture_rng())
    expected = draw_globals(), draw_globals()
    draw_globals()
    restore_rng(state)
    assert (draw_globals(), draw_globals()) == expected


def test_named_generators_of_every_kind_go_on_where_they_were() -> None:
    generators = make_generators()
    draw(generators)
    state = stored(capture_rng(generators))
    expected = draw(generators)
    fresh = make_generators()
    restore_rng(state, fresh)
    assert draw(fresh) == expected
    restore_rng(state, generators)
    assert draw(generators) == expected


def test_captured_state_does_not_follow_the_generators() -> None:
    generators = make_generators()
    state = capture_rng(generators)
    before = stored(state)
    draw(generators), draw_globals()
    after = stored(state)
    assert torch.equal(before["torch_cpu"], after["torch_cpu"])
    assert torch.equal(before["generators"]["torch"]["state"], after["generators"]["torch"]["state"])
    assert str(before) == str(after)


def test_capturing_draws_nothing() -> None:
    restore_rng(state := capture_rng())
    expected = draw_globals()
    restore_rng(state)
    capture_rng(make_generators())
    assert draw_globals() == expected


def test_a_generator_the_checkpoint_holds_must_be_given() -> None:
    state = capture_rng({"loader": torch.Generator(), "augment": random.Random()})
    with pytest.raises(MissingState) as caught:
        restore_rng(state, {"loader": torch.Generator()})
    assert caught.value.missing == ("rng_state.generators.augment",)
    restore_rng(state, {"loader": torch.Generator()}, waive=["rng_state.generators.augment"])


def test_a_generator_given_must_be_in_the_checkpoint() -> None:
    with pytest.raises(MissingState, match=r"rng_state\.generators\.loader: not in the checkpoint"):
        restore_rng(capture_rng(), {"loader": torch.Generator()})


def test_another_kind_of_generator_is_named() -> None:
    state = capture_rng({"a": numpy.random.default_rng(1)})
    with pytest.raises(MissingState, match="holds a numpy PCG64 generator, got a python one"):
        restore_rng(state, {"a": random.Random()})
    with pytest.raises(MissingState, match="got a numpy Philox one"):
        restore_rng(state, {"a": numpy.random.Generator(numpy.random.Philox(1))})


def test_an_error_leaves_every_generator_alone() -> None:
    state = capture_rng({"a": random.Random(1)})
    draw_globals()
    here = capture_rng()
    with pytest.raises(MissingState):
        restore_rng(state)
    assert str(capture_rng()) == str(here)
    assert torch.equal(capture_rng()["torch_cpu"], here["torch_cpu"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_states_without_cuda_are_an_error_unless_waived() -> None:
    state = {**capture_rng(), "torch_cuda": [torch.zeros(16, dtype=torch.uint8)] * 2}
    with pytest.raises(
        MissingState, match=r"rng_state\.torch_cuda: expected 2 CUDA device\(s\).*got 0"
    ) as caught:
        restore_rng(state)
    assert caught.value.missing == ("rng_state.torch_cuda",)
    restore_rng(state, waive=["rng_state.torch_cuda"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: device generators are not tested")
def test_cuda_generators_go_on_where_they_were() -> None:
    torch.rand(3, device="cuda")
    own = {"own": torch.Generator("cuda").manual_seed(3)}
    state = stored(capture_rng(own))
    expected = (
        torch.rand(5, device="cuda").tolist(),
        torch.rand(5, device="cuda", generator=own["own"]).tolist(),
    )
    fresh = {"own": torch.Generator("cuda")}
    restore_rng(state, fresh)
    assert (
        torch.rand(5, device="cuda").tolist(),
        torch.rand(5, device="cuda", generator=fresh["own"]).tolist(),
    ) == expected
    with pytest.raises(MissingState, match="CUDA device"):
        restore_rng({**state, "torch_cuda": [*state["torch_cuda"], state["torch_cuda"][0]]}, fresh)


def _spoil(path, value):
    def spoil(state):
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return spoil


@pytest.mark.parametrize(
    ("spoil", "missing"),
    [
        (_spoil(["python", "words"], torch.zeros(3, dtype=torch.int64)), "rng_state.python"),
        (_spoil(["python", "words"], None), "rng_state.python"),
        (_spoil(["python"], 7), "rng_state.python"),
        (_spoil(["torch_cpu"], torch.zeros(9, dtype=torch.uint8)), "rng_state.torch_cpu"),
        (_spoil(["torch_cpu"], [1, 2]), "rng_state.torch_cpu"),
        (_spoil(["torch_cpu"], torch.zeros(5056)), "rng_state.torch_cpu"),
        (_spoil(["numpy", "state", "key", "dtype"], "S1000000000"), "rng_state.numpy"),
        (_spoil(["numpy", "state", "key", "items"], torch.zeros(2)), "rng_state.numpy"),
        (_spoil(["numpy", "bit_generator"], "PCG64"), "rng_state.numpy"),
        (_spoil(["generators", "pcg", "state"], {}), "rng_state.generators.pcg"),
        (
            _spoil(["generators", "torch", "state"], torch.zeros(3, dtype=torch.uint8)),
            "rng_state.generators.torch",
        ),
        (_spoil(["generators", "pcg"], 3), "rng_state"),
        (_spoil(["generators"], [1]), "rng_state"),
    ],
)
def test_a_spoiled_state_is_named_before_anything_changes(spoil, missing: str) -> None:
    generators = make_generators()
    state = copy.deepcopy(capture_rng(generators))
    spoil(state)
    draw_globals()
    here = capture_rng()
    with pytest.raises(MissingState) as caught:
        restore_rng(state, generators)
    assert caught.value.missing == (missing,)
    assert torch.equal(capture_rng()["torch_cpu"], here["torch_cpu"])
    restore_rng(state, generators, waive=[missing])


@pytest.mark.parametrize("foreign", [None, 3, {}, [torch.get_rng_state()], {"python": 1}])
def test_a_state_of_another_form_is_one_gap(foreign) -> None:
    assert list(find_rng_gaps(foreign)) == ["rng_state"]


def test_objects_without_a_state_are_refused_when_saving() -> None:
    with pytest.raises(UsageError, match=r"'entropy'.*no state"):
        capture_rng({"entropy": random.SystemRandom()})
    with pytest.raises(UsageError, match=r"'x': expected torch.Generator"):
        capture_rng({"x": 3})


def test_numpy_is_not_needed() -> None:
    assert importlib.util.find_spec("numpy")
    script = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'numpy': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import torch, random\n"
        "from ckptcore.rng import capture_rng, restore_rng, find_rng_gaps\n"
        "state = capture_rng({'a': random.Random(1), 'b': torch.Generator()})\n"
        "assert 'numpy' not in state\n"
        "restore_rng(state, {'a': random.Random(), 'b': torch.Generator()})\n"
        "gaps = find_rng_gaps({**capture_rng(), 'numpy': {}})\n"
        "assert list(gaps) == ['rng_state.numpy'] and 'not installed' in gaps['rng_state.numpy'], gaps\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
