from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radfuse.engine import split
from radfuse.engine.blocks import Fractions, SplitSettings
from radfuse.engine.errors import LeakageError, SettingsError
from radfuse.engine.sources.source import DEVELOPMENT
from radfuse.engine.tables import SPLITS

patients = st.sets(st.from_regex(r"p[0-9a-f]{12}", fullmatch=True), max_size=30)


@given(patients, patients, st.integers())
def test_adding_patients_moves_nobody(some: set[str], more: set[str], seed: int) -> None:
    settings = SplitSettings(seed=seed)
    before = split.assign(dict.fromkeys(some), settings, {})
    after = split.assign(dict.fromkeys(some | more), settings, {})
    assert all(after[patient] == before[patient] for patient in some)


@given(patients, st.integers())
def test_digest_is_that_of_the_assignment_whatever_its_order(some: set[str], seed: int) -> None:
    assigned = split.assign(dict.fromkeys(sorted(some)), SplitSettings(seed=seed), {})
    backwards = dict(reversed(assigned.items()))
    assert split.digest(assigned) == split.digest(backwards)
    for patient in list(some)[:1]:
        other = next(name for name in SPLITS if name != assigned[patient])
        assert split.digest({**assigned, patient: other}) != split.digest(assigned)


def test_shares_are_as_asked() -> None:
    names = [f"p{number:012x}" for number in range(20_000)]
    fractions = Fractions(train=0.5, val=0.2, calibration=0.2, test=0.1)
    assigned = split.assign(dict.fromkeys(names), SplitSettings(fractions=fractions), {})
    for name, share in fractions.items():
        found = sum(1 for value in assigned.values() if value == name) / len(names)
        assert found == pytest.approx(share, abs=0.01)


def test_split_with_no_share_gets_nobody() -> None:
    fractions = Fractions(train=0.8, val=0.2, calibration=0, test=0)
    found = {split.place(f"p{number:012x}", 0, fractions) for number in range(500)}
    assert found == {"train", "val"}


def test_another_seed_deals_anew() -> None:
    names = dict.fromkeys(f"p{number:012x}" for number in range(200))
    first, second = (split.assign(names, SplitSettings(seed=seed), {}) for seed in (0, 1))
    assert sum(first[name] != second[name] for name in names) > 50


def test_lock_stands_above_wishes_and_wishes_above_the_hash() -> None:
    wishes = {"pa": "test", "pb": "test", "pc": None}
    assigned = split.assign(wishes, SplitSettings(), {"pa": "train", "pz": "val"})
    assert assigned["pa"] == "train"
    assert assigned["pb"] == "test"
    assert set(assigned) == set(wishes)


@given(patients)
def test_patient_of_the_development_list_is_never_in_test(some: set[str]) -> None:
    assigned = split.assign(dict.fromkeys(some, DEVELOPMENT), SplitSettings(), {})
    assert "test" not in assigned.values()


def test_development_without_any_share_is_refused() -> None:
    fractions = Fractions(train=0, val=0, calibration=0, test=1)
    with pytest.raises(SettingsError, match=r"split\.fractions"):
        split.assign({"pa": DEVELOPMENT}, SplitSettings(fractions=fractions), {})


def lock(folder: Path, *lines: str) -> Path:
    path = folder / "splits.lock.csv"
    path.write_text("\n".join(["patient_id,split", *lines]) + "\n")
    return path


def test_lock_is_read(tmp_path: Path) -> None:
    path = lock(tmp_path, "p00000000000a,train", "p00000000000b,test", "p00000000000a,train")
    assert split.read_lock(path) == {"p00000000000a": "train", "p00000000000b": "test"}


def test_lock_with_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    path = lock(tmp_path, "p00000000000a,train", "p00000000000a,test")
    with pytest.raises(LeakageError, match=r"p00000000000a in test and train"):
        split.read_lock(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [("MRN0042,train", "pseudonymous"), ("p00000000000a,trian", "'train'"), (",test", "pseudonymous")],
)
def test_lock_that_makes_no_sense_is_refused_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        split.read_lock(lock(tmp_path, "p00000000000b,test", line))
    assert "line 3" in str(caught.value)


def test_missing_lock_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.csv"):
        split.read_lock(tmp_path / "absent.csv")


def test_wishes_of_two_sources_agree_when_one_says_development() -> None:
    wishes = [("pa", "xray", DEVELOPMENT), ("pa", "ct", "val"), ("pb", "ct", None)]
    assert split.agreed(wishes) == {"pa": "val", "pb": None}


@pytest.mark.parametrize("clash", [("train", "test"), (DEVELOPMENT, "test"), ("train", "val")])
def test_wishes_that_disagree_name_the_patient_and_where(clash: tuple[str, str]) -> None:
    with pytest.raises(LeakageError, match="pa in") as caught:
        split.agreed([("pa", "xray", clash[0]), ("pa", "ct", clash[1]), ("pb", "ct", None)])
    assert "(xray)" in str(caught.value)
    assert "(ct)" in str(caught.value)
    assert "pb" not in str(caught.value)


def table(*rows: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["patient_id", "split"])


def test_disjoint_tables_pass() -> None:
    split.check_disjoint({"xray": table(("pa", "train"), ("pa", "train")), "ct": table(("pa", "train"))})


def test_patient_in_two_splits_of_one_table_is_named() -> None:
    with pytest.raises(LeakageError, match=r"1 patient .* pa in test \(xray\) and train \(xray\)"):
        split.check_disjoint({"xray": table(("pa", "train"), ("pa", "test"), ("pb", "val"))})


def test_patient_in_two_splits_across_tables_is_named() -> None:
    tables = {"xray": table(("pa", "train"), ("pb", "val")), "ct": table(("pa", "test"), ("pb", "val"))}
    with pytest.raises(LeakageError, match=r"1 patient .* pa in test \(ct\) and train \(xray\)"):
        split.check_disjoint(tables)
