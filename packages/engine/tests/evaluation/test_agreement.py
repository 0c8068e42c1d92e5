from __future__ import annotations

import json

import pandas as pd
import pytest
from simulated_pipeline import draw, write_model, write_predictions

from radfuse.engine import agreement, predictions
from radfuse.engine.errors import LeakageError, MissingStage, StaleError
from radfuse.engine.places import Places


def table(places: Places, modality: str) -> pd.DataFrame:
    return predictions.read(places.predictions(modality))[0]


def test_tables_of_one_split_and_the_models_at_hand_agree(places: Places) -> None:
    tables = agreement.agreeing_tables(places)
    assert list(tables) == ["ct", "mri", "xray"]
    assert [name for name, one in tables.items() if one.segments] == ["mri"]


def test_a_table_of_another_model_is_stale(places: Places) -> None:
    write_model(places, "ct", value=1.0)
    with pytest.raises(StaleError, match=r"predictions of ct are stale.*3dcnn_best\.pth.*predict-split ct"):
        agreement.agreeing_tables(places)


def test_a_promoted_version_beside_the_best_is_not_taken_for_it(places: Places) -> None:
    best = places.saved_models("ct") / "3dcnn_best.pth"
    write_model(places, "ct", value=1.0)
    best.rename(best.with_name("3dcnn_v1.0.0_best.pth"))
    write_model(places, "ct", value=0.0)
    assert "ct" in agreement.agreeing_tables(places)


def test_a_table_whose_model_is_gone_says_what_makes_one(places: Places) -> None:
    (places.saved_models("mri") / "unet_best.pth").unlink()
    with pytest.raises(MissingStage, match="radfuse train mri"):
        agreement.agreeing_tables(places)


def test_a_table_of_another_split_is_stale(places: Places) -> None:
    write_predictions(
        places, "xray", table(places, "xray").filter(regex="^(?!calibrated)"), split_digest="6" * 64
    )
    with pytest.raises(StaleError, match=r"xray were made on the split 666666666666.*555555555555"):
        agreement.agreeing_tables(places)


def test_a_new_split_makes_every_table_stale(places: Places) -> None:
    places.splits.write_text(json.dumps({"digest": "7" * 64}))
    with pytest.raises(StaleError, match="777777777777"):
        agreement.agreeing_tables(places)


def test_a_patient_in_two_splits_across_modalities_is_named(places: Places) -> None:
    rows = table(places, "mri")
    patient = rows.loc[rows["split"] == "test", "patient_id"].iloc[0]
    rows.loc[rows["patient_id"] == patient, "split"] = "calibration"
    write_predictions(places, "mri", rows)
    with pytest.raises(LeakageError, match=patient):
        agreement.agreeing_tables(places)


def test_a_patient_in_two_splits_within_one_table_is_named(places: Places) -> None:
    rows = table(places, "ct").filter(regex="^(?!calibrated)")
    several = rows[rows.duplicated("patient_id")].iloc[0]
    rows.loc[rows["sample_id"] == several["sample_id"], "split"] = "train"
    write_predictions(places, "ct", rows)
    with pytest.raises(LeakageError, match=several["patient_id"]):
        agreement.agreeing_tables(places)


def test_labels_that_were_corrected_since_make_a_table_stale(places: Places) -> None:
    cohort = pd.read_parquet(places.cohort)
    of_ct = cohort.index[cohort["modality"] == "ct"]
    cohort.loc[of_ct[3], "label:malignant"] = 1 - cohort.loc[of_ct[3], "label:malignant"]
    cohort.to_parquet(places.cohort)
    said = (
        r"predictions of ct are stale: .*label:malignant of 1 samples.*`radfuse prepare ct`.*predict-split ct"
    )
    with pytest.raises(StaleError, match=said):
        agreement.agreeing_tables(places)


@pytest.mark.parametrize("change", ["a label more", "a label less"])
def test_other_labels_in_the_cohort_make_a_table_stale(places: Places, change: str) -> None:
    cohort = pd.read_parquet(places.cohort)
    of_ct = cohort["modality"] == "ct"
    if change == "a label more":
        cohort["label:spiculated"] = of_ct.astype(float)
    else:
        cohort = cohort.drop(columns="label:malignant")
    cohort.to_parquet(places.cohort)
    with pytest.raises(StaleError, match="predictions of ct are stale: the cohort at hand has the labels"):
        agreement.agreeing_tables(places)


def test_a_sample_that_the_cohort_lost_makes_a_table_stale(places: Places) -> None:
    cohort = pd.read_parquet(places.cohort)
    lost = cohort.loc[cohort["modality"] == "mri", "sample_id"].iloc[0]
    cohort[cohort["sample_id"] != lost].to_parquet(places.cohort)
    with pytest.raises(StaleError, match=f"mri are stale: 1 of its samples are not .* {lost}"):
        agreement.agreeing_tables(places)


def test_tables_without_a_cohort_are_compared_with_nothing(places: Places) -> None:
    places.cohort.unlink()
    assert list(agreement.agreeing_tables(places)) == ["ct", "mri", "xray"]


def test_no_tables_at_all_say_what_makes_them(places: Places) -> None:
    for path in places.predictions_folder.glob("*.parquet"):
        path.unlink()
    with pytest.raises(MissingStage, match="radfuse predict-split"):
        agreement.agreeing_tables(places)


def test_no_split_says_what_makes_it(places: Places) -> None:
    places.splits.unlink()
    with pytest.raises(MissingStage, match="radfuse cohort"):
        agreement.agreeing_tables(places)


def test_the_drawn_cohort_is_the_same_for_the_same_seed() -> None:
    first, second = (draw(20, 3, (0.0, 0.1, 0.3, 0.6), 0.25) for _ in range(2))
    pd.testing.assert_frame_equal(first.patients, second.patients)
