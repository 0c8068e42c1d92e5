"""A pipeline folder as it is after `radfuse predict-split`, with predictions drawn from normal distributions.

Every disease shifts what the modalities that show it say by `SHIFT` standard deviations, so one modality
tells it with AUROC Phi(SHIFT / sqrt 2) and two with Phi(SHIFT). No image and no network is involved.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from scipy.stats import norm

import ckptcore
from radfuse.engine import calibration, predictions
from radfuse.engine.digests import file_digest
from radfuse.engine.places import Places

SHIFT = 1.6
PREVALENCE = 0.3
DISEASES = ("first_disease", "second_disease", "third_disease", "fourth_disease")
SHOWN = {"xray": (0, 1, 2, 3), "ct": (0,), "mri": (1, 2, 3)}
FINDINGS = ("Mass", "Effusion", "Edema", "Fibrosis", "Hernia")
REGIONS = ("whole_tumour", "tumour_core", "enhancing_tumour")
MODELS = {"xray": "resnet50", "ct": "3dcnn", "mri": "unet"}
SPLITS = ("train", "val", "calibration", "test")
SPLIT_DIGEST = "5" * 64
SINGLE = float(norm.cdf(SHIFT / np.sqrt(2)))

PARAMS = """\
sources: [{kind: phantom, name: phantom, root: data/phantom, public: true}]
train: {mlflow: false}
evaluate: {bootstrap: 60}
ensemble: {parameters: 2000, epochs: 20, strengths: [0.03, 0.3]}
"""


@dataclass(frozen=True)
class Drawn:
    """What was drawn.

    Attributes:
        patients: one row a patient, as in patients.parquet.
        tables: prediction table by modality, not yet calibrated.
    """

    patients: pd.DataFrame
    tables: dict[str, pd.DataFrame]


def pipeline(
    root: Path,
    patients: int = 600,
    seed: int = 0,
    shares: Sequence[float] = (0.0, 0.1, 0.3, 0.6),
    lacking: float = 0.25,
) -> Places:
    """Write a pipeline folder.

    Args:
        root: an empty folder.
        patients: in all splits together.
        seed: of everything.
        shares: of the splits train, val, calibration and test.
        lacking: share of the patients who lack one modality or two.
    """
    places = Places(root)
    drawn = draw(patients, seed, shares, lacking)
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(PARAMS)
    write_cohort(places, drawn)
    for name, table in drawn.tables.items():
        write_model(places, name)
        write_predictions(places, name, table)
    write_ceilings(places)
    return places


def draw(patients: int, seed: int, shares: Sequence[float], lacking: float) -> Drawn:
    """Draw patients and what the networks say of them."""
    random = np.random.default_rng(seed)
    truth = (random.random((patients, len(DISEASES))) < PREVALENCE).astype(float)
    has = _has(random, patients, lacking)
    known = pd.DataFrame(
        {
            "patient_id": [f"p{number:012x}" for number in random.permutation(10 * patients)[:patients]],
            "split": random.choice(SPLITS, patients, p=shares),
            "age_years": random.uniform(20, 90, patients).round(1),
            "sex": random.choice(["F", "M"], patients),
            "site": random.choice(["north", "south"], patients),
        }
    )
    tables = {}
    for m, (name, shown) in enumerate(SHOWN.items()):
        said = random.normal(size=(patients, len(shown))) + SHIFT * truth[:, shown]
        make = {"xray": _xray, "ct": _ct, "mri": _mri}[name]
        tables[name] = make(random, known[has[:, m]], said[has[:, m]])
    diseases = {f"disease:{name}": truth[:, d] for d, name in enumerate(DISEASES)}
    return Drawn(known.assign(**diseases), tables)


def _has(random: np.random.Generator, patients: int, lacking: float) -> np.ndarray[Any, Any]:
    has = np.ones((patients, len(SHOWN)), dtype=bool)
    for row in np.flatnonzero(random.random(patients) < lacking):
        has[row, random.choice(len(SHOWN), random.integers(1, 3), replace=False)] = False
    return has


def _rows(known: pd.DataFrame, letter: str, repeats: np.ndarray[Any, Any]) -> pd.DataFrame:
    """Ids and split of so many samples of each patient."""
    rows = known.loc[known.index.repeat(repeats), ["patient_id", "split"]].reset_index(drop=True)
    rows.insert(1, "study_id", ["s" + name[1:] for name in rows["patient_id"]])
    rows.insert(2, "sample_id", [f"i{letter}{number:011x}" for number in range(len(rows))])
    return rows


def _labelled(rows: pd.DataFrame, labels: dict[str, Any], logits: dict[str, Any]) -> pd.DataFrame:
    found = {f"label:{name}": values for name, values in labels.items()}
    found |= {f"logit:{name}": values for name, values in logits.items()}
    found |= {f"probability:{name}": expit(values) for name, values in logits.items()}
    return rows.assign(**found)


def _xray(random: np.random.Generator, known: pd.DataFrame, said: np.ndarray[Any, Any]) -> pd.DataFrame:
    """One film, of every tenth patient two; a finding a disease, and one that goes with none."""
    repeats = np.where(random.random(len(known)) < 0.1, 2, 1)
    severity = np.concatenate([said, random.normal(size=(len(said), 1))], axis=1).repeat(repeats, axis=0)
    severity = severity + 0.1 * random.normal(size=severity.shape)
    chance = expit(1.5 * (severity - 1.2))
    labels = (random.random(chance.shape) < chance).astype(float)
    logits = 2.5 * (severity - 1.2) + 1.0
    rows = _rows(known, "a", repeats)
    return _labelled(
        rows, dict(zip(FINDINGS, labels.T, strict=True)), dict(zip(FINDINGS, logits.T, strict=True))
    )


def _ct(random: np.random.Generator, known: pd.DataFrame, said: np.ndarray[Any, Any]) -> pd.DataFrame:
    """One to three nodules."""
    repeats = random.choice([1, 2, 3], len(known), p=[0.5, 0.3, 0.2])
    severity = said[:, 0].repeat(repeats) + 0.3 * random.normal(size=int(repeats.sum()))
    label = (random.random(len(severity)) < expit(1.4 * (severity - 0.9))).astype(float)
    return _labelled(_rows(known, "b", repeats), {"malignant": label}, {"malignant": 1.4 * (severity - 0.9)})


def _mri(random: np.random.Generator, known: pd.DataFrame, said: np.ndarray[Any, Any]) -> pd.DataFrame:
    rows = _rows(known, "c", np.ones(len(known), dtype=int))
    volume = np.exp(np.array([11.0, 10.0, 9.0]) + 0.3 * said)
    true = volume * np.exp(0.05 * random.normal(size=volume.shape))
    for r, region in enumerate(REGIONS):
        rows[f"volume_mm3:{region}"] = volume[:, r]
        rows[f"true_volume_mm3:{region}"] = true[:, r]
        rows[f"dice:{region}"] = np.clip(random.normal(0.9 - 0.1 * r, 0.05, len(rows)), 0, 1)
    return rows


def write_cohort(places: Places, drawn: Drawn) -> None:
    places.cohort_folder.mkdir(parents=True, exist_ok=True)
    drawn.patients.to_parquet(places.patients)
    places.splits.write_text(json.dumps({"digest": SPLIT_DIGEST, "merged_calibration": False}))
    known = drawn.patients[["patient_id", "age_years", "sex", "site"]]
    parts = []
    for name, table in drawn.tables.items():
        part = table[["patient_id", "study_id", "sample_id", "split"]].merge(known, on="patient_id")
        parts.append(part.assign(modality=name, source="phantom", view="PA", scanner_model=f"{name}-1"))
    pd.concat(parts, ignore_index=True).to_parquet(places.cohort)


def write_model(places: Places, modality: str, value: float = 0.0) -> str:
    """A checkpoint with one weight; returns its model digest."""
    path = places.saved_models(modality) / f"{MODELS[modality]}_best.pth"
    ckptcore.save(path, {"epoch": 0, "model_state_dict": {"weight": torch.tensor([value])}})
    return str(ckptcore.read_header(path).model_digest)


def write_predictions(
    places: Places, modality: str, table: pd.DataFrame, split_digest: str = SPLIT_DIGEST
) -> None:
    """The prediction table of the model that is published, calibrated; the cohort is told its labels."""
    tell_cohort(places, modality, table)
    best = places.saved_models(modality) / f"{MODELS[modality]}_best.pth"
    labels = tuple(name.partition(":")[2] for name in table if name.startswith(("label:", "dice:")))
    fitted = calibration.Calibration({})
    if modality != "mri":
        fitted = calibration.fit(table, labels)
        table = fitted.apply(table)
    fitted.write(places.calibration(modality))
    stamp = predictions.Stamp(
        modality=modality,
        model_digest=str(ckptcore.read_header(best).model_digest),
        split_digest=split_digest,
        run_key="0" * 16,
        labels=labels,
        calibration=file_digest(places.calibration(modality)),
    )
    predictions.write(places.predictions(modality), table, stamp)


def tell_cohort(places: Places, modality: str, table: pd.DataFrame) -> None:
    """Give the cohort's samples of a modality the labels of a table, and no others."""
    cohort = pd.read_parquet(places.cohort)
    told = table.set_index("sample_id").filter(regex="^label:")
    of_modality = cohort["modality"] == modality
    cohort.loc[of_modality, list(cohort.filter(regex="^label:"))] = np.nan
    for name in told:
        new = cohort["sample_id"].map(told[name])
        cohort[name] = new.where(of_modality, cohort.get(name, np.nan))
    cohort.to_parquet(places.cohort)


def write_ceilings(places: Places) -> None:
    """In the form of a phantom's ceilings.json."""
    two = float(norm.cdf(SHIFT))
    diseases = {
        name: {
            "single": {modality: SINGLE if d in shown else 0.5 for modality, shown in SHOWN.items()},
            "all": two,
            "available": two - 0.02,
        }
        for d, name in enumerate(DISEASES)
    }
    folder = places.data / "phantom"
    folder.mkdir(parents=True, exist_ok=True)
    found = {"format": 1, "diseases": diseases, "findings": dict.fromkeys(FINDINGS, 0.84), "malignancy": 0.84}
    (folder / "ceilings.json").write_text(json.dumps(found))
