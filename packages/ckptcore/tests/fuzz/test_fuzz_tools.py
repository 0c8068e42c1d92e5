"""Whatever lies in a file, a card or a record: the tools that read it raise errors of ours alone."""

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from every_tool import make_bench, use_every_tool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutants import MUTATORS, Seeds, mutated_bytes, mutated_json
from trained_folders import train

import ckptcore
from ckptcore import folder
from ckptcore.cards import VersionCard, check_version, list_versions, read_card
from ckptcore.cli import run
from ckptcore.errors import CheckpointError, UsageError
from ckptcore.pruning import keep_newest, layout_of
from ckptcore.rotation import plan_folder

by_chance = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], database=None
)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Seeds:
    """Good files to start from."""
    return Seeds(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good file; every mutant gets the same name in it."""
    return make_bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("mutator", MUTATORS, ids=lambda mutator: mutator.__name__)
@given(seed=st.integers(0, 2**64))
@settings(by_chance)
def test_no_mutant_brings_anything_but_errors_of_ours_out_of_the_tools(
    seeds: Seeds, bench: Path, mutator: Callable[[Seeds, random.Random], bytes], seed: int
) -> None:
    use_every_tool(bench, mutator(seeds, random.Random(seed)))


def test_a_sealed_table_that_lists_no_records_is_damage_to_every_tool(seeds: Seeds, bench: Path) -> None:
    mutator = next(m for m in MUTATORS if m.__name__ == "native_table")
    use_every_tool(bench, mutator(seeds, random.Random(1483667711076536778)))


def mutated_text(good: bytes, chance: random.Random) -> bytes:
    """JSON in which a value is another, or whose bytes are."""
    if chance.random() < 0.3:
        return mutated_bytes(good, chance)
    value: Any = json.loads(good)
    for _ in range(chance.choice((1, 1, 2, 5))):
        value = mutated_json(value, chance)
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> VersionCard:
    """The second of two versions."""
    made = tmp_path_factory.mktemp("published")
    state = {
        "epoch": 1,
        "model_state_dict": {"w": torch.ones(2)},
        "hyperparameters": {"lr": 0.1},
        "val_auc": 0.5,
    }
    ckptcore.save(made / "net_best.pth", state)
    for notes in ("first", "second"):
        card = ckptcore.promote(made / "net_best.pth", bump="minor", notes=notes)
    card.card_path.chmod(0o644)
    return card


@pytest.fixture(scope="module")
def good_card(published: VersionCard) -> bytes:
    return published.card_path.read_bytes()


@given(seed=st.integers(0, 2**64))
@settings(by_chance)
def test_no_card_brings_anything_but_errors_of_ours(
    published: VersionCard, good_card: bytes, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    published.card_path.write_bytes(mutated_text(good_card, random.Random(seed)))
    with suppress(UsageError):
        repr(read_card(published.card_path))
    found = list_versions(published.directory)
    assert [card.version for card in found][:1] == ["1.0.0"] and len(found) == 2
    for card in found:
        assert isinstance(check_version(card), tuple)
    with suppress(CheckpointError):
        ckptcore.promote(published.directory / "net_best.pth", version="1.0.0")
    for arguments in (["versions"], ["versions", "--json"], ["list"], ["verify"]):
        assert run([*arguments, str(published.directory)]) in (0, 1)
    capsys.readouterr()


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a manager wrote."""
    return train(tmp_path_factory.mktemp("managed") / "run", "a1", (0.5, 0.7, 0.6), last=2)


@pytest.fixture(scope="module")
def good_policy(managed: Path) -> bytes:
    return (managed / ".ckptcore" / "policy.json").read_bytes()


@given(seed=st.integers(0, 2**64))
@settings(by_chance)
def test_no_recorded_policy_brings_anything_but_errors_of_ours(
    managed: Path, good_policy: bytes, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    (managed / ".ckptcore" / "policy.json").write_bytes(mutated_text(good_policy, random.Random(seed)))
    with suppress(UsageError):
        layout = folder.read_policy(managed)
        assert layout is not None
        repr((layout, layout.policy()))
        plan_folder(managed, layout, None)
        plan_folder(managed, layout_of(managed), None, keep_newest(1))
    for arguments in (["plan"], ["plan", "--keep", "1", "--json"], ["list"]):
        assert run([*arguments, str(managed)]) in (0, 1, 2)
    capsys.readouterr()
