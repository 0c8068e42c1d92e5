from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import killed_stage
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit
from simulated_pipeline import DISEASES, pipeline, write_model, write_predictions

import ckptcore
from radfuse.engine import agreement, predictions, workfolder
from radfuse.engine.cli import run
from radfuse.engine.places import Places
from radfuse.ensemble import answering, stacking
from radfuse.ensemble.features import Feature, outputs_of

ID = re.compile(r"\b[psi][0-9a-f]{12}\b")


def command(name: str, places: Places, *arguments: str) -> int:
    return run([name, "--params", str(places.root / "params.yaml"), *arguments])


def said(places: Places) -> Any:
    return json.loads((places.saved_models("ensemble") / "weighted_average.json").read_text())


def report(places: Places, name: str = "ensemble") -> Any:
    return json.loads(places.report(name).read_text())


def rows_of(places: Places, modality: str) -> pd.DataFrame:
    return predictions.read(places.predictions(modality))[0]


def test_row_4_6_the_ensemble_gains_over_the_best_single_modality(fitted: Places) -> None:
    gain = report(fitted)["gain"]
    assert gain["against"] == "xray"
    assert gain["auroc"]["value"] >= 0.03
    assert gain["auroc"]["low"] > 0


def test_row_4_6_its_files_are_those_of_the_page(fitted: Places) -> None:
    folder = fitted.saved_models("ensemble")
    names = {path.name for path in folder.iterdir()}
    assert names == {"meta_learner.pth", "weighted_average.json", "ensemble_history.json"}


def test_row_4_2_the_checkpoint_has_the_keys_of_the_page(fitted: Places) -> None:
    state = torch.load(fitted.saved_models("ensemble") / "meta_learner.pth", weights_only=True)
    page = {
        "epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "train_loss", "val_loss",
        "val_auc", "best_metric", "hyperparameters", "timestamp",
    }  # fmt: skip
    assert page <= set(state)
    assert state["epoch"] == state["hyperparameters"]["epochs"] - 1
    assert state["hyperparameters"]["meta_parameters"] == pytest.approx(2000, rel=0.02)


def test_row_4_2_the_loaded_optimizer_takes_the_next_step_of_the_published_meta_learner(
    fitted: Places,
) -> None:
    state = torch.load(fitted.saved_models("ensemble") / "meta_learner.pth", weights_only=True)
    loaded = answering.load(fitted)
    assert loaded is not None
    parameters = dict(loaded.network.meta.named_parameters())
    optimizer = torch.optim.Adam(parameters.values())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, state["hyperparameters"]["epochs"])
    optimizer.load_state_dict(state["optimizer_state_dict"])
    schedule.load_state_dict(state["scheduler_state_dict"])
    epochs = state["epoch"] + 1
    assert schedule.last_epoch == epochs
    # The schedule has ended at nothing; with a rate, and without gradients, momentum alone moves weights.
    (group,) = optimizer.param_groups
    assert group["lr"] == pytest.approx(0)
    group["lr"], (slow, fast) = 1e-3, group["betas"]
    expected = {}
    for name, parameter in parameters.items():
        assert torch.equal(parameter, state["model_state_dict"][f"meta.{name}"])
        moments = optimizer.state[parameter]
        assert moments["step"] == epochs
        assert moments["exp_avg"].shape == moments["exp_avg_sq"].shape == parameter.shape
        mean = slow * moments["exp_avg"] / (1 - slow ** (epochs + 1))
        square = fast * moments["exp_avg_sq"] / (1 - fast ** (epochs + 1))
        expected[name] = (parameter - 1e-3 * mean / (square.sqrt() + group["eps"])).detach()
        assert not torch.equal(expected[name], parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), expected[name])


def test_everything_is_stamped_with_one_model(fitted: Places) -> None:
    digest = said(fitted)["model_digest"]
    stamp = predictions.read_stamp(fitted.predictions("ensemble"))
    header = ckptcore.read_header(fitted.saved_models("ensemble") / "meta_learner.pth")
    assert digest == stamp.model_digest == header.model_digest
    assert stamp.labels == DISEASES
    assert stamp.run_key == header.run_key


def test_answers_can_be_computed_again_from_the_weights_in_words(fitted: Places) -> None:
    """`weighted_average.json` alone is enough to replay the weighted average of a test patient."""
    words, table = said(fitted), rows_of(fitted, "ensemble")
    features = [Feature(f["modality"], f["output"], f["kind"], f["pooling"]) for f in words["features"]]
    outputs = outputs_of(agreement.agreeing_tables(fitted), features)
    tested = table[table["split"] == "test"].set_index("patient_id")
    places = {name: at for at, name in enumerate(outputs.patients)}
    disease = DISEASES[1]
    prior = words["prior_log_odds"][disease]
    for patient in tested.index[:40]:
        row = outputs.values[places[patient]]
        shares, evidences = [], []
        for m, modality in enumerate(outputs.modalities):
            if not outputs.mask[places[patient], m]:
                continue
            head = words["heads"][modality]
            evidence = head["intercepts"][disease]
            for at, feature in enumerate(words["features"]):
                if feature["modality"] == modality:
                    scaled = np.clip((row[at] - feature["mean"]) / feature["scale"], -5, 5)
                    evidence += head["coefficients"][disease][feature["name"]] * scaled
            shares.append(words["weights"][disease][modality])
            evidences.append(evidence)
            assert tested.loc[patient, f"head:{modality}:{disease}"] == pytest.approx(expit(prior + evidence))
        share = np.array(shares) / sum(shares)
        effective = 1 / (share**2).sum()
        expected = prior + effective ** words["independence"] * (share * evidences).sum()
        assert logit(tested.loc[patient, f"weighted_average:{disease}"]) == pytest.approx(expected)


def test_a_loaded_ensemble_says_the_same_of_the_same_patients(fitted: Places) -> None:
    """And so it can be asked about patients of another cohort."""
    loaded = answering.load(fitted)
    assert loaded is not None
    found = answering.probabilities(loaded, agreement.agreeing_tables(fitted)).set_index("patient_id")
    table = rows_of(fitted, "ensemble")
    tested = table[table["split"] == "test"].set_index("patient_id")
    shared = [name for name in found.columns if name in tested.columns]
    pd.testing.assert_frame_equal(found.loc[tested.index, shared], tested[shared], check_names=False)
    assert set(tested.columns) - set(shared) == {"split", *(f"disease:{name}" for name in DISEASES)}


def test_the_table_says_what_there_is_and_leaves_training_patients_out(fitted: Places) -> None:
    table = rows_of(fitted, "ensemble")
    assert set(table["split"]) <= {"val", "calibration", "test"}
    for modality in ("ct", "mri", "xray"):
        has = set(rows_of(fitted, modality)["patient_id"])
        told = table[f"available:{modality}"] == 1
        assert set(table.loc[told, "patient_id"]) == has & set(table["patient_id"])
        assert table.loc[~told, f"head:{modality}:{DISEASES[0]}"].isna().all()
        assert table.loc[told, f"head:{modality}:{DISEASES[0]}"].notna().all()


def test_answers_of_the_fitted_patients_are_out_of_fold(fitted: Places) -> None:
    """In-sample answers would look better among them than among the test patients; these do not."""
    words = said(fitted)
    assert words["fitted_on"] == "calibration (cross-fitted)"
    table = rows_of(fitted, "ensemble")
    own = table[table["split"] == "calibration"]
    average = logit(own[[f"weighted_average:{name}" for name in DISEASES]].to_numpy())
    truth = own[[f"disease:{name}" for name in DISEASES]].to_numpy()
    expected = words["cross_fitted"]["weighted_average"]["log_loss"]
    assert stacking.cross_entropy(average, truth) == pytest.approx(expected)


def test_every_method_has_its_figures_beside_its_ceiling(fitted: Places) -> None:
    found = report(fitted)
    assert list(found["mean"]) == ["ct", "mri", "xray", "weighted_average", "meta"]
    for method, one in found["mean"].items():
        assert one["auroc"]["low"] < one["auroc"]["value"] < one["auroc"]["high"]
        assert one["auroc"]["low"] < one["ceiling"] + 0.02, method
    assert set(found["diseases"]) == set(DISEASES)


def test_figures_are_given_for_each_set_of_modalities(fitted: Places) -> None:
    found = {one["modalities"]: one for one in report(fitted)["availability"]}
    everything = found["ct+mri+xray"]
    assert everything["auroc"]["weighted_average"]["value"] > everything["auroc"]["xray"]["value"]
    alone = found.get("xray", {})
    if alone.get("patients"):
        assert "mri" not in alone["auroc"]
        assert alone["auroc"]["weighted_average"] == alone["auroc"]["xray"]
    counted = sum(one["patients"] or 0 for one in found.values())
    assert counted <= report(fitted)["patients"]
    assert all(one["patients"] is None or one["patients"] >= 5 for one in found.values())


def test_no_output_but_the_tables_tells_of_a_single_patient(fitted: Places) -> None:
    for folder in (fitted.reports, fitted.saved_models("ensemble")):
        for path in folder.rglob("*"):
            if path.is_file():
                assert not ID.search(path.read_bytes().decode("latin-1")), path.name


def test_a_second_run_writes_the_same_bytes(copied: Places) -> None:
    def written() -> dict[str, bytes]:
        paths = [*copied.saved_models("ensemble").iterdir(), copied.predictions("ensemble")]
        return {path.name: path.read_bytes() for path in paths}

    before = written()
    assert command("ensemble", copied) == 0
    assert written() == before


def test_an_ensemble_that_was_killed_leaves_nothing_when_it_is_fitted_again(copied: Places) -> None:
    (own,) = (path for path in copied.work("ensemble").iterdir() if path.is_dir())
    # What is published in the work folder is kept, and would not be on its way again.
    script = f"import shutil\nshutil.rmtree({str(own / 'published')!r})\n"
    script += killed_stage.command("ensemble", copied.root)
    names = ["ensemble_history.json", "meta_learner.pth"]
    killed_stage.check_nothing_is_left(copied.root, names, script, lambda: command("ensemble", copied))


def test_the_picture_of_the_weights_is_whole_when_its_drawing_was_killed(tmp_path: Path) -> None:
    killed_stage.check_figure_is_whole(
        tmp_path / "weights.png",
        "import numpy as np\nfrom radfuse.ensemble.pictures import weights_picture\n"
        "weights_picture(path, np.ones((1, 1)), ['xray'], ['copd'])\n",
    )


def test_an_older_ensemble_goes_when_another_one_is_fitted(copied: Places) -> None:
    shutil.rmtree(copied.work("ensemble"))  # It was made in another pipeline.
    assert command("ensemble", copied) == 0
    (own,) = (path for path in copied.work("ensemble").iterdir() if path.is_dir())
    record = json.loads((own / "run.json").read_text())
    assert record["finished"] and record["recipe"]["code"].keys() >= {"radfuse.engine.folds"}
    recipe = {**record["recipe"], "material": "another"}
    older = own.with_name(workfolder.key_of(recipe))
    older.mkdir()
    (older / "run.json").write_text(json.dumps({**record, "recipe": recipe}))
    os.utime(older / "run.json", (time.time() - 90_000,) * 2)
    assert command("ensemble", copied) == 0
    assert own.is_dir() and not older.exists()


@pytest.mark.parametrize(
    ("epochs", "rate", "what"),
    [(50, "1e25", "loss is inf at epoch 2"), (1, "3e37", "largest answer is inf at epoch 1")],
    ids=["within", "in the last step"],
)
def test_a_meta_learner_that_comes_to_no_number_stops_and_nothing_of_it_is_saved(
    copied: Places, capsys: Any, epochs: int, rate: str, what: str
) -> None:
    asked = ("--set", f"ensemble.epochs={epochs}", "--set", f"ensemble.learning_rate={rate}")
    shutil.rmtree(copied.work("ensemble"))
    shutil.rmtree(copied.saved_models("ensemble"))
    # The next start does not take the one that failed for a finished one.
    for _ in range(2):
        assert command("ensemble", copied, *asked) == 1
        said_then = capsys.readouterr().err
        assert f"the meta-learner's {what}, learning rate " in said_then
        assert "lower ensemble.learning_rate" in said_then and "Traceback" not in said_then
        assert not [*copied.work("ensemble").rglob("*.pth"), *copied.root.rglob("meta_learner.pth")]
        (record,) = copied.work("ensemble").glob("*/run.json")
        assert "finished" not in json.loads(record.read_text())
    assert command("ensemble", copied) == 0


def test_a_model_trained_anew_makes_the_ensemble_stale(copied: Places, capsys: Any) -> None:
    write_model(copied, "mri", value=3.0)
    write_predictions(copied, "mri", rows_of(copied, "mri"))
    assert command("evaluate", copied) == 1
    shown = capsys.readouterr().err
    assert "ensemble is stale" in shown and "mri" in shown and "radfuse ensemble" in shown


def test_another_checkpoint_in_the_place_of_the_meta_learner_is_noticed(copied: Places, capsys: Any) -> None:
    path = copied.saved_models("ensemble") / "meta_learner.pth"
    ckptcore.save(path, {"model_state_dict": {"weight": torch.ones(1)}})
    assert command("evaluate", copied) == 1
    assert "meta_learner.pth" in capsys.readouterr().err


def test_predictions_of_another_model_than_the_published_one_are_refused(copied: Places, capsys: Any) -> None:
    write_model(copied, "ct", value=9.0)
    assert command("ensemble", copied) == 1
    assert "predictions of ct are stale" in capsys.readouterr().err


def test_predictions_of_different_splits_are_refused(copied: Places, capsys: Any) -> None:
    write_predictions(copied, "mri", rows_of(copied, "mri"), split_digest="8" * 64)
    assert command("ensemble", copied) == 1
    assert "888888888888" in capsys.readouterr().err


def test_a_patient_in_two_splits_is_refused_by_name(copied: Places, capsys: Any) -> None:
    rows = rows_of(copied, "mri")
    patient = rows.loc[rows["split"] == "test", "patient_id"].iloc[0]
    rows.loc[rows["patient_id"] == patient, "split"] = "calibration"
    write_predictions(copied, "mri", rows)
    assert command("ensemble", copied) == 1
    assert patient in capsys.readouterr().err


def test_a_misspelt_setting_is_named_with_the_nearest_one(copied: Places, capsys: Any) -> None:
    assert command("ensemble", copied, "--set", "ensemble.epoch=3") == 2
    assert "ensemble.epoch; did you mean 'epochs'?" in capsys.readouterr().err


def not_applicable(places: Places, capsys: Any, why: str, *arguments: str) -> None:
    """The stage ends well and says why; evaluate goes on; no file of before is left to be taken for new."""
    assert command("ensemble", places, *arguments) == 0
    shown = capsys.readouterr().out
    assert "not applicable" in shown and why in shown
    assert said(places)["status"] == "not_applicable" and why in said(places)["why"]
    history = json.loads((places.saved_models("ensemble") / "ensemble_history.json").read_text())
    assert history["status"] == "not_applicable"
    assert ckptcore.read_header(places.saved_models("ensemble") / "meta_learner.pth").model_digest is None
    assert len(rows_of(places, "ensemble")) == 0
    assert command("evaluate", places) == 0
    assert report(places) == {"task": "ensemble", "status": "not_applicable", "why": said(places)["why"]}
    assert why in (places.reports / "report.html").read_text()
    assert json.loads(places.metrics.read_text())["ensemble"] == {"fitted": 0}


def test_too_few_patients_with_two_modalities_make_no_ensemble(copied: Places, capsys: Any) -> None:
    not_applicable(
        copied, capsys, "minimum_patients asks for 5000", "--set", "ensemble.minimum_patients=5000"
    )


def test_public_sets_that_share_no_patient_make_no_ensemble(copied: Places, capsys: Any) -> None:
    taken: set[str] = set()
    for modality in ("xray", "ct", "mri"):
        rows = rows_of(copied, modality).filter(regex="^(?!calibrated)")
        own = rows[~rows["patient_id"].isin(taken)]
        own = own[
            own["patient_id"].str[-1].isin(list({"xray": "01234", "ct": "56789", "mri": "abcdef"}[modality]))
        ]
        taken |= set(own["patient_id"])
        write_predictions(copied, modality, own.reset_index(drop=True))
    not_applicable(copied, capsys, "0 of the")


def test_a_cohort_without_diseases_makes_no_ensemble(copied: Places, capsys: Any) -> None:
    patients = pd.read_parquet(copied.patients)
    patients.filter(regex="^(?!disease)").to_parquet(copied.patients)
    not_applicable(copied, capsys, "no disease of whole patients")


def test_one_modality_alone_makes_no_ensemble(copied: Places, capsys: Any) -> None:
    for modality in ("ct", "mri"):
        copied.predictions(modality).unlink()
    not_applicable(copied, capsys, "one modality alone (xray)")


def test_a_rare_disease_is_left_out_and_named(tmp_path: Path) -> None:
    places = pipeline(tmp_path / "pipeline", 150)
    patients = pd.read_parquet(places.patients)
    patients["disease:first_disease"] = 0.0
    patients.to_parquet(places.patients)
    assert command("ensemble", places, "--set", "ensemble.epochs=2") == 0
    assert said(places)["diseases"] == list(DISEASES[1:])
    assert "minimum_positives" in said(places)["left_out"]["first_disease"]
    assert command("evaluate", places) == 0


def test_few_positives_in_calibration_bring_val_in(tmp_path: Path) -> None:
    places = pipeline(tmp_path / "pipeline", 150)
    assert command("ensemble", places, "--set", "ensemble.epochs=2") == 0
    assert said(places)["fitted_on"] == "val+calibration (cross-fitted)"
    patients = pd.read_parquet(places.patients)
    assert said(places)["patients"] <= patients["split"].isin(["val", "calibration"]).sum()
