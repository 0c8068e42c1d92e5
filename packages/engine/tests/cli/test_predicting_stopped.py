"""`radfuse predict-split` that is stopped goes on with what it lacks, and ends as if it had not been."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from killed_in_publish import KILLED_IN_PUBLISH

from ckptcore import durable
from ckptcore.errors import DiskFull
from ckptcore.lease import Lease
from radfuse.engine import kept_answers, predicting
from radfuse.engine.cli import run
from radfuse.engine.digests import file_digest
from radfuse.engine.kept_answers import FILE, KeptAnswers
from radfuse.engine.prepared import Prepared

if TYPE_CHECKING:
    from trained_pipeline import TrainedPipeline

TOY = Path(__file__).parents[1] / "export" / "toy"
FOUR = ("--set", "train.film.batch_size=4")
"""26 samples in 7 batches."""
CHILD = """
import sys
from radfuse.engine import predicting
from radfuse.engine.cli import run
from radfuse.engine.kept_answers import KeptAnswers
forward, add = predicting.Whole.forward, KeptAnswers.add
def counted(self, image):
    print("pass", flush=True)
    return forward(self, image)
def told(self, number, found):
    add(self, number, found)
    if number == int(sys.argv[1]):
        print("kept", flush=True)
        sys.stdin.read()
predicting.Whole.forward, KeptAnswers.add = counted, told
sys.exit(run(sys.argv[2:]))
"""


def command(pipeline: TrainedPipeline, name: str, *more: str) -> list[str]:
    return ["predict-split", name, "--params", str(pipeline.file), *more]


def child(
    pipeline: TrainedPipeline,
    name: str,
    *more: str,
    halt: int = -1,
    how: int | None = None,
    loading: bool = False,
) -> tuple[int, int, str]:
    """The real command as a process: its exit code, how many batches went through the network, what it said.

    It halts when a batch is kept, and is then sent a signal; or those that load for it are, and not itself.
    """
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(halt), *command(pipeline, name, *more)],
        env={**os.environ, "PYTHONPATH": str(TOY)}, start_new_session=True, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        passes = 0
        for line in running.stdout:
            passes += line == "pass\n"
            if line == "kept\n" and loading:
                for process in psutil.Process(running.pid).children():
                    process.kill()
            elif line == "kept\n":
                os.killpg(running.pid, how or signal.SIGKILL)
        _, said = running.communicate(timeout=60)
    return running.returncode, passes, said


def copied(pipeline: TrainedPipeline, folder: Path) -> TrainedPipeline:
    from trained_pipeline import Places, TrainedPipeline

    root = Path(shutil.copytree(pipeline.places.root, folder))
    copy = object.__new__(TrainedPipeline)
    copy.places, copy.file = Places(root), root / "params.yaml"
    return copy


def tables(pipeline: TrainedPipeline, name: str) -> tuple[bytes, bytes]:
    return pipeline.places.predictions(name).read_bytes(), pipeline.places.calibration(name).read_bytes()


def predicted(pipeline: TrainedPipeline, name: str, *more: str) -> tuple[bytes, bytes]:
    """What a prediction comes to that nobody stops, and that finds nothing."""
    shutil.rmtree(pipeline.places.work(name), ignore_errors=True)
    assert run(command(pipeline, name, *more)) == 0
    return tables(pipeline, name)


def without_tables(pipeline: TrainedPipeline) -> None:
    """As DVC leaves it before it runs the stage."""
    for file in pipeline.places.predictions_folder.iterdir():
        file.unlink()


def kept(pipeline: TrainedPipeline, name: str) -> list[Path]:
    root = pipeline.places.work(name) / "predictions"
    return sorted(root.iterdir()) if root.is_dir() else []


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that went through the network."""
    forward, seen = predicting.Whole.forward, []

    def counted(self: Any, image: Any) -> Any:
        seen.append(len(image))
        return forward(self, image)

    monkeypatch.setattr(predicting.Whole, "forward", counted)
    return seen


@pytest.fixture
def stopped(trained: TrainedPipeline, passes: list[int]) -> Callable[..., Path]:
    """A prediction that was interrupted after the fifth batch; answers with the file of its answers."""

    def begun(name: str = "film", *more: str, after: int = 5) -> Path:
        add = KeptAnswers.add

        def interrupted(self: KeptAnswers, number: int, found: kept_answers.Answers) -> None:
            add(self, number, found)
            if number == after - 1:
                raise KeyboardInterrupt

        without_tables(trained)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KeptAnswers, "add", interrupted)
            assert run(command(trained, name, *more)) == 130
        passes.clear()
        (folder,) = kept(trained, name)
        return folder / FILE

    return begun


def test_killed_and_told_to_stop_again_and_again_it_answers_each_batch_once_and_the_table_is_the_same(
    trained: TrainedPipeline, tmp_path: Path
) -> None:
    whole = predicted(copied(trained, tmp_path / "whole"), "film", *FOUR)
    without_tables(trained)
    asked, before = 0, 0
    for halt, how, code in ((1, signal.SIGKILL, -9), (4, signal.SIGTERM, -15)):
        returned, passes, said = child(trained, "film", *FOUR, halt=halt, how=how)
        assert (returned, passes) == (code, halt + 1 - before), said
        assert ("samples were predicted before" in said) == (before > 0)
        assert not trained.places.predictions("film").exists()
        asked, before = asked + passes, halt + 1
    returned, passes, said = child(trained, "film", *FOUR)
    assert returned == 0, said
    assert "20 of 26 samples were predicted before" in said
    assert asked + passes == 7
    assert tables(trained, "film") == whole
    assert kept(trained, "film") == []


def test_volumes_that_were_segmented_before_a_stop_are_not_segmented_again(
    trained: TrainedPipeline,
    stopped: Callable[..., Path],
    passes: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = predicted(trained, "scan")
    windows = len(passes)
    stopped("scan", after=1)
    assert run(command(trained, "scan")) == 0
    assert "1 of 2 samples were predicted before" in capsys.readouterr().err
    assert 0 < len(passes) < windows
    assert tables(trained, "scan") == whole


def test_table_that_a_kill_kept_from_being_written_takes_no_prediction(
    trained: TrainedPipeline, stopped: Callable[..., Path], passes: list[int]
) -> None:
    stopped("film", *FOUR, after=7)
    assert run(command(trained, "film", *FOUR)) == 0
    assert passes == [] and kept(trained, "film") == []
    assert tables(trained, "film") == predicted(trained, "film", *FOUR)


def test_loading_processes_go_on_too(
    trained: TrainedPipeline, stopped: Callable[..., Path], passes: list[int]
) -> None:
    stopped("film", *FOUR)
    assert run(command(trained, "film", *FOUR, "--set", "predict.workers=2")) == 0
    assert passes == [4, 2]
    assert tables(trained, "film") == predicted(trained, "film", *FOUR)


def test_prediction_whose_process_that_loads_is_killed_says_so_and_goes_on(
    trained: TrainedPipeline, tmp_path: Path
) -> None:
    whole = predicted(copied(trained, tmp_path / "whole"), "film", *FOUR)
    without_tables(trained)
    returned, _, said = child(
        trained, "film", *FOUR, "--set", "predict.workers=1", halt=2, loading=True
    )  # fmt: skip
    assert returned == 1
    assert "a process that loads samples was killed" in said and "fewer predict.workers" in said
    assert "Traceback" not in said
    returned, passes, said = child(trained, "film", *FOUR)
    assert (returned, passes) == (0, 4), said
    assert tables(trained, "film") == whole


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def middle(content: bytes) -> int:
    """A place within the third line."""
    lines = content.splitlines(keepends=True)
    return len(lines[0]) + len(lines[1]) + len(lines[2]) // 2


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda content: content[:-40], [4, 4, 2]),
        (lambda content: content[:-1], [4, 2]),
        (lambda content: flip(content, middle(content)), [4, 4, 2]),
        (lambda content: content[: middle(content)] + content[middle(content) + 9 :], [4, 4, 2]),
        (lambda content: content.replace(b"\n", b" ", 1), [4, 4, 4, 2]),
        (lambda content: b"\0" * len(content), [4] * 6 + [2]),
        (lambda content: b"", [4] * 6 + [2]),
    ],
    ids=["cut off", "without its end", "other bit", "bytes gone", "two lines in one", "zeros", "empty"],
)
def test_answers_that_were_damaged_are_asked_for_again_and_no_others(
    trained: TrainedPipeline,
    stopped: Callable[..., Path],
    passes: list[int],
    damage: Callable[[bytes], bytes],
    again: list[int],
) -> None:
    file = stopped("film", *FOUR)
    file.write_bytes(damage(file.read_bytes()))
    assert run(command(trained, "film", *FOUR)) == 0
    assert passes == again
    assert tables(trained, "film") == predicted(trained, "film", *FOUR)


def test_answers_added_after_a_line_that_was_cut_off_are_found_again(
    trained: TrainedPipeline, stopped: Callable[..., Path], passes: list[int]
) -> None:
    file = stopped("film", *FOUR, after=3)
    file.write_bytes(file.read_bytes()[:-40])
    stopped("film", *FOUR, after=5)
    assert run(command(trained, "film", *FOUR)) == 0
    assert passes == [4, 2]


def other_array(pipeline: TrainedPipeline) -> None:
    (sample,) = Prepared(pipeline.places, "film").samples("val")[:1]
    file = pipeline.places.arrays("film") / f"{sample}.npy"
    file.write_bytes(flip(file.read_bytes(), -1))
    rows = Prepared(pipeline.places, "film").rows()
    rows.loc[rows["sample_id"] == sample, "sha256"] = file_digest(file)
    rows.to_parquet(pipeline.places.manifest("film"), index=False)


def other_label(pipeline: TrainedPipeline) -> None:
    rows = Prepared(pipeline.places, "film").rows()
    rows.loc[len(rows) - 1, "label:Mass"] = 1 - rows.loc[len(rows) - 1, "label:Mass"]
    rows.to_parquet(pipeline.places.manifest("film"), index=False)


def other_average(pipeline: TrainedPipeline) -> None:
    """Weights that the model digest of the file does not tell."""
    import ckptcore

    model = pipeline.places.saved_models("film") / "filmnet_best.pth"
    average = {**ckptcore.load(model)["model_state_dict"]}
    average["6.bias"] = average["6.bias"] + 1
    pipeline.train("film", ema_state_dict=average)


CHANGES: dict[str, Callable[[TrainedPipeline], object]] = {
    "model": lambda pipeline: pipeline.train("film", seed=1),
    "averaged weights": other_average,
    "array": other_array,
    "label": other_label,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_another_model_or_image_meets_no_old_answer(
    trained: TrainedPipeline,
    stopped: Callable[..., Path],
    passes: list[int],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[TrainedPipeline], object],
) -> None:
    stopped("film", *FOUR)
    change(trained)
    assert run(command(trained, "film", *FOUR)) == 0
    assert passes == [4] * 6 + [2]
    assert "is not taken over, as it differs in:" in capsys.readouterr().err
    assert tables(trained, "film") == predicted(trained, "film", *FOUR)


@pytest.mark.parametrize("setting", ["train.film.batch_size=5", "train.film.dropout=0.3"])
def test_other_parameters_meet_no_old_answer(
    trained: TrainedPipeline, stopped: Callable[..., Path], passes: list[int], setting: str
) -> None:
    stopped("film", *FOUR)
    assert run(command(trained, "film", *FOUR, "--set", setting)) == 0
    assert sum(passes) == 26


def test_other_code_meets_no_old_answer(
    trained: TrainedPipeline, stopped: Callable[..., Path], passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped("film", *FOUR)
    digests = kept_answers.code.digests
    monkeypatch.setattr(kept_answers.code, "digests", lambda *names: {**digests(*names), "more.py": "0"})
    assert run(command(trained, "film", *FOUR)) == 0
    assert sum(passes) == 26


def test_other_machine_meets_no_old_answer_and_is_told_why(
    trained: TrainedPipeline,
    stopped: Callable[..., Path],
    passes: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch

    threads = torch.get_num_threads()
    stopped("film", *FOUR)
    torch.set_num_threads(threads + 1)
    try:
        capsys.readouterr()
        assert run(command(trained, "film", *FOUR)) == 0
    finally:
        torch.set_num_threads(threads)
    assert sum(passes) == 26
    assert f"numerics.threads: {threads} then, {threads + 1} now" in capsys.readouterr().err


def test_overlap_of_the_windows_is_a_parameter_that_counts(
    trained: TrainedPipeline, stopped: Callable[..., Path], passes: list[int]
) -> None:
    stopped("scan", after=1)
    assert run(command(trained, "scan", "--set", "train.scan.overlap=0.5")) == 0
    with_other = len(passes)
    passes.clear()
    predicted(trained, "scan", "--set", "train.scan.overlap=0.5")
    assert len(passes) == with_other


def test_arrays_that_the_manifest_has_no_digests_of_are_told_apart_by_their_bytes(
    trained: TrainedPipeline, stopped: Callable[..., Path], passes: list[int]
) -> None:
    rows = Prepared(trained.places, "film").rows()
    rows.assign(sha256="").to_parquet(trained.places.manifest("film"), index=False)
    stopped("film", *FOUR)
    (sample,) = Prepared(trained.places, "film").samples("val")[:1]
    file = trained.places.arrays("film") / f"{sample}.npy"
    file.write_bytes(flip(file.read_bytes(), -1))
    assert run(command(trained, "film", *FOUR)) == 0
    assert sum(passes) == 26


def test_answers_that_are_no_numbers_are_asked_for_again(
    trained: TrainedPipeline, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine may have been at fault."""
    counted = predicting.Whole.forward

    def broken(self: Any, image: Any) -> Any:
        found = counted(self, image)
        return found * float("nan") if len(passes) == 2 else found

    monkeypatch.setattr(predicting.Whole, "forward", broken)
    assert run(command(trained, "film", *FOUR)) == 1
    monkeypatch.setattr(predicting.Whole, "forward", counted)
    passes.clear()
    assert run(command(trained, "film", *FOUR)) == 0
    assert passes == [4]
    assert tables(trained, "film") == predicted(trained, "film", *FOUR)


def test_second_command_at_the_same_prediction_is_told_who_is_at_it(
    trained: TrainedPipeline,
    stopped: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = stopped("film", *FOUR)
    before = file.read_bytes()
    monkeypatch.setattr("radfuse.engine.kept.LONGEST_WAIT", 0.1)
    lease = Lease(file.parent)
    lease.acquire()
    try:
        capsys.readouterr()
        assert run(command(trained, "film", *FOUR)) == 1
        said = capsys.readouterr().err
    finally:
        lease.release()
    assert f"another process is at exactly these predictions of film (pid {os.getpid()}, host " in said
    assert "waiting for it to end" in said and "wait for it, or end it." in said
    assert "Traceback" not in said and file.read_bytes() == before
    assert run(command(trained, "film", *FOUR)) == 0


def test_earlier_predictions_of_this_pipeline_go_after_a_day_unless_somebody_is_at_them(
    trained: TrainedPipeline, stopped: Callable[..., Path]
) -> None:
    template = stopped("film", *FOUR).parent
    root, theirs = template.parent, {"pipeline": "0" * 16}
    for name in ("old", "young", "held", "theirs", "halfway"):
        folder = Path(shutil.copytree(template, root / name))
        if name == "theirs":
            (folder / "run.json").write_text(json.dumps(theirs))
        if name == "halfway":
            (folder / "run.json").unlink()
        for path in (*folder.iterdir(), folder):
            if name != "young":
                os.utime(path, (1e9, 1e9))
    lease = Lease(root / "held")
    lease.acquire()
    for path in (*(root / "held").iterdir(), root / "held"):
        os.utime(path, (1e9, 1e9))
    try:
        assert run(command(trained, "film", *FOUR)) == 0
    finally:
        lease.release()
    assert [path.name for path in kept(trained, "film")] == ["held", "theirs", "young"]


def in_the_place_of_its_folder(hidden: Path) -> None:
    hidden.write_text("in the way")


def in_the_place_of_its_lock(hidden: Path) -> None:
    (hidden / "writer.lock").mkdir(parents=True)


@pytest.mark.parametrize("block", [in_the_place_of_its_folder, in_the_place_of_its_lock])
def test_what_an_earlier_prediction_left_and_cannot_be_deleted_fails_no_prediction(
    trained: TrainedPipeline,
    stopped: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    block: Callable[[Path], None],
) -> None:
    """Files in the way, as permissions stop nobody who is root."""
    template = stopped("film", *FOUR).parent
    root = template.parent
    for name in ("blocked", "old"):
        folder = Path(shutil.copytree(template, root / name))
        if name == "blocked":
            shutil.rmtree(folder / ".ckptcore", ignore_errors=True)
            block(folder / ".ckptcore")
        for path in (*folder.iterdir(), folder):
            os.utime(path, (1e9, 1e9))
    capsys.readouterr()
    assert run(command(trained, "film", *FOUR)) == 0
    said = capsys.readouterr().err
    assert "what was kept of earlier predictions of film, blocked, was not deleted" in said
    assert "deleted what was kept of earlier, unfinished predictions of film: old\n" in said
    assert [path.name for path in kept(trained, "film")] == ["blocked"]


def test_nothing_that_is_kept_tells_of_patients_or_places(
    trained: TrainedPipeline, stopped: Callable[..., Path]
) -> None:
    file = stopped("film", *FOUR)
    said = file.read_text() + (file.parent / "run.json").read_text()
    rows = Prepared(trained.places, "film").rows()
    for name in [*rows["patient_id"], *rows["sample_id"], *rows["study_id"], str(trained.places.root)]:
        assert str(name) not in said


def test_columns_come_back_bit_for_bit_and_what_is_no_number_is_not_kept(tmp_path: Path) -> None:
    odd = np.array([0x7FF8000000000000, 0xFFF8000000000001, 0x8000000000000000, 1], np.uint64).view(
        np.float64
    )
    answers = {"a": odd, "b": np.array([1.5, -2], np.float32), "c": np.array([True]), "ä": np.array(["ö"])}
    kept = KeptAnswers(tmp_path)
    kept.add(3, answers)
    kept.add(4, {"a": np.array([None, "x"])})
    found = KeptAnswers(tmp_path).answers
    assert list(found) == [3] and list(found[3]) == list(answers)
    for name, column in answers.items():
        assert found[3][name].dtype == column.dtype
        assert found[3][name].tobytes() == column.tobytes()


def test_full_disk_is_told_and_what_was_kept_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptAnswers(tmp_path)
    kept.add(0, {"a": np.ones(3)})
    write_all = durable.write_all

    def half(fd: int, data: bytes) -> None:
        write_all(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write_all", half)
    with pytest.raises(DiskFull):
        kept.add(1, {"a": np.ones(3)})
    monkeypatch.undo()
    again = KeptAnswers(tmp_path)
    assert list(again.answers) == [0]
    again.add(1, {"a": np.zeros(3)})
    assert list(KeptAnswers(tmp_path).answers) == [0, 1]


@pytest.mark.parametrize("name", ["film.parquet", "film.calibration.json"])
def test_killed_while_it_publishes_the_next_one_leaves_nothing_of_it(
    trained: TrainedPipeline, name: str
) -> None:
    whole = predicted(trained, "film", *FOUR)
    without_tables(trained)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_PUBLISH, name, *command(trained, "film", *FOUR)],
        env={**os.environ, "PYTHONPATH": str(TOY)}, start_new_session=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    folder = trained.places.predictions_folder
    assert any(durable.is_temporary(path.name) for path in folder.iterdir()) and not (folder / name).exists()
    assert run(command(trained, "film", *FOUR)) == 0
    assert tables(trained, "film") == whole
    assert sorted(path.name for path in folder.iterdir()) == ["film.calibration.json", "film.parquet"]
    assert kept(trained, "film") == []
