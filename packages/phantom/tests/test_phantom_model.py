"""The generating model keeps its promises, and the ceilings are what an oracle reaches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from radfuse.phantom import ceilings, model
from radfuse.phantom.diseases import CT, DISEASES, FINDINGS, MODALITIES, MRI, REGION_SIZES, SHIFT, XRAY

DRAWN = 6000


@pytest.fixture(scope="module")
def patients():
    return [model.draw(11, number) for number in range(DRAWN)]


@pytest.fixture(scope="module")
def limits():
    return ceilings.report()


def log_odds(patient, disease, having):
    return sum(
        SHIFT * patient.expressions[modality][disease.name] - SHIFT**2 / 2
        for modality in having
        if modality in disease.shows_in
    )


def test_every_disease_shows_in_two_modalities_or_more_and_there_are_four():
    assert len(DISEASES) >= 4
    assert all(len(disease.shows_in) >= 2 for disease in DISEASES)


def test_ceilings_lie_where_they_are_wanted(limits):
    for disease in DISEASES:
        of_disease = limits["diseases"][disease.name]
        for modality in MODALITIES:
            wanted = 0.85 if modality in disease.shows_in else 0.5
            assert of_disease["single"][modality] == pytest.approx(wanted, abs=0.03)
        assert of_disease["all"] == pytest.approx(0.95, abs=0.02)
        assert max(of_disease["single"].values()) < of_disease["available"] < of_disease["all"]
    assert 0.84 <= limits["means"]["findings"] <= 0.90
    assert limits["malignancy"] == pytest.approx(0.85, abs=0.03)


def test_ceilings_in_closed_form_equal_those_by_monte_carlo(limits):
    for of_disease in limits["diseases"].values():
        drawn = of_disease["monte_carlo"]
        assert drawn["single"] == pytest.approx(of_disease["single"], abs=0.006)
        assert drawn["all"] == pytest.approx(of_disease["all"], abs=0.005)
        assert drawn["available"] == pytest.approx(of_disease["available"], abs=0.005)


def test_ceiling_of_one_set_of_modalities_is_the_binormal_formula():
    from scipy.stats import norm

    for disease in DISEASES:
        count = len(disease.shows_in)
        whole = ceilings.exact(disease, {MODALITIES: 1.0})
        assert whole == pytest.approx(norm.cdf(SHIFT * np.sqrt(count) / np.sqrt(2)))


@pytest.mark.parametrize("disease", DISEASES, ids=lambda disease: disease.name)
def test_an_oracle_that_reads_the_expressions_reaches_the_ceiling(patients, limits, disease):
    sick = [patient.diseases[disease.name] for patient in patients]
    of_disease = limits["diseases"][disease.name]
    for modality in disease.shows_in:
        scores = [patient.expressions[modality][disease.name] for patient in patients]
        assert roc_auc_score(sick, scores) == pytest.approx(of_disease["single"][modality], abs=0.015)
    scores = [log_odds(patient, disease, MODALITIES) for patient in patients]
    assert roc_auc_score(sick, scores) == pytest.approx(of_disease["all"], abs=0.01)
    scores = [log_odds(p, disease, [name for name in MODALITIES if p.studies[name]]) for p in patients]
    assert roc_auc_score(sick, scores) == pytest.approx(of_disease["available"], abs=0.012)


@pytest.mark.parametrize("name", FINDINGS)
def test_severity_of_a_finding_reaches_the_ceiling_of_the_finding(patients, limits, name):
    reported = [patient.findings[name] for patient in patients]
    severities = [patient.severities[name] for patient in patients]
    assert 0.2 < np.mean(reported) < 0.45
    assert roc_auc_score(reported, severities) == pytest.approx(limits["findings"][name], abs=0.02)


def test_severity_of_a_nodule_reaches_the_ceiling_of_malignancy(patients, limits):
    severities = [value for patient in patients for value in patient.nodule_severities]
    malignant = [value for patient in patients for value in patient.malignant]
    assert roc_auc_score(malignant, severities) == pytest.approx(limits["malignancy"], abs=0.015)


def test_mean_severity_of_a_patients_nodules_is_the_expression_in_ct(patients):
    for patient in patients[:200]:
        (expression,) = patient.expressions[CT].values()
        assert np.mean(patient.nodule_severities) == pytest.approx(expression)


def test_leading_finding_of_a_disease_shows_its_expression_unchanged(patients):
    leading = {f.disease.name: name for name, f in FINDINGS.items() if f.disease and f.jitter == 0.0}
    assert set(leading) == {disease.name for disease in DISEASES}
    for disease, finding in leading.items():
        assert patients[0].severities[finding] == patients[0].expressions[XRAY][disease]


def test_a_quarter_of_the_patients_lack_one_or_two_modalities(patients):
    had = np.array([[patient.studies[name] > 0 for name in MODALITIES] for patient in patients]).sum(axis=1)
    assert had.min() >= 1
    assert np.mean(had < 3) == pytest.approx(0.25, abs=0.02)
    assert np.mean(had == 1) == pytest.approx(0.25 / 3, abs=0.015)


def test_a_few_studies_are_repeated(patients):
    counts = np.array([list(patient.studies.values()) for patient in patients])
    assert np.mean(counts[counts > 0] == 2) == pytest.approx(0.08, abs=0.01)


def test_diseases_are_independent_of_each_other_and_of_what_is_available(patients):
    columns = [[*p.diseases.values(), *(count > 0 for count in p.studies.values())] for p in patients]
    correlations = np.corrcoef(np.array(columns, float).T)[: len(DISEASES)]
    np.fill_diagonal(correlations, 0.0)
    assert np.abs(correlations).max() < 0.05
    assert np.mean([list(p.diseases.values()) for p in patients]) == pytest.approx(0.3, abs=0.01)


def test_a_patient_does_not_depend_on_which_others_are_drawn(patients):
    assert model.draw(11, 4321) == patients[4321]
    assert model.draw(12, 4321) != patients[4321]


def test_shares_of_availability_are_a_distribution():
    shares = model.availability(0.4)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares[MODALITIES] == pytest.approx(0.6)


@given(st.lists(st.floats(-4, 6), min_size=3, max_size=3))
def test_regions_are_nested_whatever_the_expressions(values):
    names = [size.disease.name for size in REGION_SIZES.values()]
    whole, core, enhancing = model.region_volumes(dict(zip(names, values, strict=True))).values()
    assert 300 > whole > core > enhancing > 0.3


@given(st.lists(st.floats(-2, 3), min_size=3, max_size=3))
def test_expressions_are_linear_in_the_logarithms_of_the_volumes(values):
    names = [size.disease.name for size in REGION_SIZES.values()]
    logs = np.log(list(model.region_volumes(dict(zip(names, values, strict=True))).values()))
    sizes = list(REGION_SIZES.values())
    found = [
        (log - np.log(size.typical)) / size.slope + 0.5
        for log, size in zip([logs[0], *np.diff(logs)], sizes, strict=True)
    ]
    assert found == pytest.approx(values, abs=1e-6)
    assert set(names) == {disease.name for disease in DISEASES if MRI in disease.shows_in}


def test_area_counts_ties_as_one_half():
    positive = np.array([True, True, False, False])
    assert ceilings.area(positive, np.array([2.0, 1.0, 1.0, 0.0])) == 0.875
    assert ceilings.area(positive, np.zeros(4)) == 0.5
