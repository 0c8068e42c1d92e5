"""The command, run within this process, and a folder that a manager filled."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from trained_folders import copy_run, train

from ckptcore.cli import run


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        def refuse(word: str) -> None:
            raise AssertionError(f"{word} is no strict JSON")

        return json.loads(self.out, parse_constant=refuse)


@pytest.fixture
def ckpt(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("template") / "run", "0123456789abcdef")


@pytest.fixture
def trained(template: Path, tmp_path: Path) -> Path:
    """Six epochs, the third the best: epoch_3 = best, epoch_6 = final = latest."""
    return copy_run(template, tmp_path / "run")
