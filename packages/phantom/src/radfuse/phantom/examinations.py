"""From a patient's truth to files: one function a modality draws a study, encodes it and adds its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from radfuse.phantom import (
    brain,
    cases,
    chest_film,
    chest_volume,
    film_findings,
    nodules,
    radiographs,
    series,
)
from radfuse.phantom.chart import Chart
from radfuse.phantom.diseases import CT, FINDINGS, MRI, REGIONS, XRAY
from radfuse.phantom.people import Study
from radfuse.phantom.series import Layout
from radfuse.phantom.shapes import Picture

_NODULE_HEIGHTS = (-50.0, 12.0)
"""Lowest and highest centre of a nodule, mm, so that every series shows it whole."""


def radiograph(chart: Chart, study: Study) -> None:
    """Write a chest radiograph."""
    truth, person = chart.truth, chart.person
    rng = chart.rng(XRAY, study.repeat)
    width = int(rng.integers(chart.settings.xray_size[0], chart.settings.xray_size[1] + 1))
    height = round(width * rng.uniform(0.95, 1.2))
    view = "PA" if rng.random() < 0.75 else "AP"
    build = film_findings.build(truth.severities, chart.rng("build"), person.sex == "F")
    film = chest_film.draw((height, width), build, rng)
    film_findings.draw(film, truth.severities, chart.rng("findings"))
    picture = film_findings.exposed(film, rng)
    path = chart.place(f"{XRAY}/{person.patient_id}/{study.accession_number}.dcm")
    radiographs.write(path, picture, radiographs.Encoding.of(rng), person, study, view)
    severities = {f"severity:{name}": truth.severities[name] for name in FINDINGS}
    findings = {f"finding:{name}": truth.findings[name] for name in FINDINGS}
    chart.add_study(XRAY, study, path, {"view": view, **truth.findings}, {**severities, **findings})


def ct_series(chart: Chart, study: Study) -> None:
    """Write a chest CT series."""
    rng = chart.rng(CT, study.repeat)
    layout = Layout.of(rng, chart.settings.ct_matrix, chart.settings.ct_slices)
    volume, drawn = _chest_with_nodules(chart, layout, rng)
    folder = chart.place(f"{CT}/{chart.person.patient_id}/{study.accession_number}")
    folder.mkdir()
    series.write(folder, volume, layout, chart.person, study, rng)
    true = {"nodules": len(drawn), "malignant_nodules": sum(chart.truth.malignant)}
    chart.add_study(CT, study, folder, {"slices": layout.slices}, true)
    for index, nodule in enumerate(drawn):
        _add_nodule(chart, study, layout, index, nodule)


def _chest_with_nodules(
    chart: Chart, layout: Layout, rng: np.random.Generator
) -> tuple[Picture, list[nodules.Nodule]]:
    """A volume in Hounsfield units, (D, H, W): the patient's anatomy and nodules, the series' noise."""
    chest = chest_volume.Chest.of(chart.rng("chest"))
    grid = layout.grid
    volume = chest_volume.draw(chest, grid, chart.rng("lungs"))
    shaping, severities = chart.rng("nodules"), chart.truth.nodule_severities
    centres = nodules.places(chest, severities, _NODULE_HEIGHTS, shaping)
    drawn = [nodules.nodule(*pair, shaping) for pair in zip(severities, centres, strict=True)]
    for nodule in drawn:
        nodules.draw(volume, grid, nodule, rng)
    noise_hu = np.float32(rng.uniform(12.0, 24.0))
    volume += noise_hu * rng.standard_normal(volume.shape, dtype=np.float32)
    return volume, drawn


def _add_nodule(chart: Chart, study: Study, layout: Layout, index: int, nodule: nodules.Nodule) -> None:
    malignant = chart.truth.malignant[index]
    named = {**chart.ids(study), "nodule": index + 1, "malignant": malignant}
    place = dict(zip(("x_mm", "y_mm", "z_mm"), layout.to_patient(nodule.centre), strict=True))
    chart.rows["nodules"].append({**named, **place, "diameter_mm": round(nodule.diameter_mm, 1)})
    chart.rows["truth_nodules"].append(
        {
            **named,
            "severity": chart.truth.nodule_severities[index],
            "diameter_mm": nodule.diameter_mm,
            "spikes": nodule.spikes,
            "density": nodule.density,
        }
    )


def mr_case(chart: Chart, study: Study) -> None:
    """Write an MR case: four sequences and the segmentation."""
    truth, patient_id = chart.truth, chart.person.patient_id
    shaping = chart.rng("brain")
    low, high = chart.settings.mri_matrix
    space = brain.Space.of(int(shaping.integers(low, high + 1)), shaping.uniform(1.0, 1.3))
    anatomy = brain.anatomy(space, shaping)
    labels = brain.tumour(space, anatomy, truth.volumes_cm3, shaping)
    rng = chart.rng(MRI, study.repeat)
    codes = cases.orientation(rng)
    case = f"{patient_id}-MR{study.repeat + 1}"
    folder: Path = chart.place(f"{MRI}/{case}")
    folder.mkdir()
    for name, volume in brain.sequences(anatomy, labels, rng).items():
        cases.write(folder / f"{case}_{name}.nii.gz", volume, space, codes, patient_id)
    cases.write(folder / f"{case}_seg.nii.gz", labels, space, codes, patient_id)
    volumes = {f"volume_cm3:{name}": truth.volumes_cm3[name] for name in REGIONS}
    chart.add_study(MRI, study, folder, {"case": case}, volumes)
