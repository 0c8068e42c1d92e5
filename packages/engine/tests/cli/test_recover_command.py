"""`radfuse recover`: DVC starts again after a kill within its own writing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from radfuse.engine import recovering
from radfuse.engine.cli import run
from radfuse.engine.recovering import DvcAtWork, NoRepository, recover

LOCK = """\
schema: '2.0'
stages:
  phantom:
    cmd: radfuse phantom
    outs:
    - path: data/phantom
      hash: md5
      md5: 4b1ad8e2a1b0f4f1fd33f9a2dca8d4a5.dir
      size: 1234567
      nfiles: 12
  cohort@one:
    cmd: radfuse cohort
    deps:
    - path: data/phantom
      hash: md5
      md5: 4b1ad8e2a1b0f4f1fd33f9a2dca8d4a5.dir
      size: 1234567
      nfiles: 12
    params:
      params.yaml:
        seed: 0
        split:
          fractions: {train: 0.6, test: 0.4}
          none_of_it:
    outs:
    - path: data/cohort/cohort.parquet
      hash: md5
      md5: '00000000000000000000000000000012'
      size: 99
      isexec: true
  report:
    cmd:
    - radfuse evaluate
    - echo done
    deps:
    - path: data/cohort/cohort.parquet
      hash: md5
      md5: '00000000000000000000000000000012'
      size: 99
"""
STAGES = yaml.safe_load(LOCK)["stages"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    return tmp_path


def rwlock(repository: Path, content: Any) -> Path:
    file = repository / ".dvc" / "tmp" / "rwlock"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def naming(pid: int) -> dict[str, Any]:
    info = {"pid": pid, "cmd": "dvc repro"}
    return {"write": {"/a/model.pth": info}, "read": {"/a/params.yaml": [info]}}


def wait_until_named(repository: Path, pid: int) -> Path:
    """A file that names a process, written when that process had begun."""
    time.sleep(0.1)
    return rwlock(repository, naming(pid))


def test_rwlock_that_was_cut_off_anywhere_is_removed(repository: Path) -> None:
    whole = json.dumps(naming(os.getpid()))
    for size in range(len(whole)):
        file = rwlock(repository, whole[:size])
        assert recover(repository) == [".dvc/tmp/rwlock: removed, as it was cut off; DVC begins a new one"]
        assert not file.exists()


def test_rwlock_of_a_dvc_that_lives_stays(repository: Path) -> None:
    living = subprocess.Popen([sys.executable, "-c", "input()", "dvc"], stdin=subprocess.PIPE)
    try:
        file = wait_until_named(repository, living.pid)
        before = file.read_bytes()
        assert recover(repository) == []
        assert file.read_bytes() == before
    finally:
        living.communicate(b"\n")
    assert recover(repository) == [".dvc/tmp/rwlock: removed, as every process that it names has ended"]


@pytest.mark.parametrize("why", ["another program", "begun later"])
def test_number_of_a_process_that_is_in_use_again_counts_as_nobody(repository: Path, why: str) -> None:
    word = "dvc" if why == "begun later" else "else"
    living = subprocess.Popen([sys.executable, "-c", "input()", word], stdin=subprocess.PIPE)
    try:
        file = wait_until_named(repository, living.pid)
        if why == "begun later":
            os.utime(file, (time.time() - 3600, time.time() - 3600))
        assert len(recover(repository)) == 1
        assert not file.exists()
    finally:
        living.communicate(b"\n")


@pytest.mark.parametrize("content", ["{}", '{"read": {}, "write": {}}'])
def test_rwlock_that_names_nobody_stays(repository: Path, content: str) -> None:
    file = rwlock(repository, content)
    assert recover(repository) == []
    assert file.read_text(encoding="utf-8") == content


def test_lock_that_was_cut_off_anywhere_keeps_the_stages_before_and_dvc_reads_it(repository: Path) -> None:
    schema = pytest.importorskip("dvc.schema").COMPILED_LOCKFILE_SCHEMA
    file = repository / "dvc.lock"
    names = list(STAGES)
    for size in range(len(LOCK)):
        file.write_text(LOCK[:size], encoding="utf-8")
        recover(repository)
        if not file.exists():
            assert LOCK[:size].count("\n    cmd") < 2
            continue
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        schema(found)
        stages = found.get("stages", {})
        assert list(stages) == names[: len(stages)]
        # The last one may be a part that reads like a whole: DVC finds it changed, and runs it.
        for name in list(stages)[:-1]:
            assert stages[name] == STAGES[name]
        complete = sum(LOCK[:size].find(f"  {name}:\n") >= 0 for name in names) - 1
        assert len(stages) >= complete, LOCK[:size]


def test_whole_lock_stays_byte_for_byte(repository: Path) -> None:
    file = repository / "dvc.lock"
    file.write_text(LOCK, encoding="utf-8")
    before = file.stat()
    assert recover(repository) == []
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file.read_text(encoding="utf-8") == LOCK


def test_locks_of_all_pipelines_are_mended_but_none_is_looked_for_among_data(repository: Path) -> None:
    mine, data = repository / "pipelines" / "mine", repository / "data"
    for folder in (mine, data):
        folder.mkdir(parents=True)
        (folder / "dvc.lock").write_text(LOCK[:-120], encoding="utf-8")
    assert recover(mine) == [
        "pipelines/mine/dvc.lock: cut off within report, which is looked at again; 2 other stages are kept"
    ]
    assert (data / "dvc.lock").read_text(encoding="utf-8") == LOCK[:-120]


@pytest.mark.parametrize(
    "text",
    [
        LOCK.replace("  cohort@one:\n", "<<<<<<< mine\n  cohort@one:\n"),
        LOCK.replace("    cmd: radfuse phantom\n", "    cmd: [\n"),
        "hello: [\n",
        "\0" * 100,
    ],
    ids=["merge", "within", "another file", "zeros"],
)
def test_lock_that_is_broken_otherwise_is_left_as_it_is(repository: Path, text: str) -> None:
    file = repository / "dvc.lock"
    file.write_text(text, encoding="utf-8")
    [told] = recover(repository)
    assert told.startswith("dvc.lock: left as it is") and "git checkout" in told
    assert file.read_text(encoding="utf-8") == text


def test_nothing_is_touched_while_a_dvc_writes(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovering, "_PATIENCE", 0.1)
    file = rwlock(repository, "")
    for name in ("lock", "rwlock.lock"):
        with FileLock(repository / ".dvc" / "tmp" / name), pytest.raises(DvcAtWork, match="at work here"):
            recover(repository)
        assert file.exists()


def test_folder_without_dvc_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoRepository, match=r"no \.dvc there or above"):
        recover(tmp_path)


def test_command_says_what_it_mended(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rwlock(repository, "")
    assert run(["recover", str(repository)]) == 0
    assert capsys.readouterr().out == ".dvc/tmp/rwlock: removed, as it was cut off; DVC begins a new one\n"
    assert run(["recover", str(repository)]) == 0
    assert capsys.readouterr().out == "Nothing was cut off.\n"
    assert run(["recover", "--quiet", str(repository)]) == 0
    assert capsys.readouterr().out == ""
    assert run(["recover", "--json", str(repository)]) == 0
    assert json.loads(capsys.readouterr().out) == {"mended": []}
