from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radfuse.engine import subgroups


def rows(groups: dict[str, int]) -> pd.DataFrame:
    """So many patients of each group, with two images each."""
    sites = [name for name, count in groups.items() for _ in range(count) for _ in range(2)]
    return pd.DataFrame({"patient_id": [f"p{place // 2}" for place in range(len(sites))], "site": sites})


def shown(groups: dict[str, int]) -> dict[str, bool]:
    return {group.name: group.rows is not None for group in subgroups.groups_by(rows(groups), "site")}


def test_groups_of_five_patients_are_shown() -> None:
    assert shown({"a": 5, "b": 6}) == {"a": True, "b": True}


def test_a_hidden_group_takes_another_with_it_so_that_no_size_can_be_worked_out() -> None:
    assert shown({"a": 20, "b": 6, "c": 4}) == {"a": True, "b": False, "c": False}


def test_several_hidden_groups_that_are_enough_together_hide_no_more() -> None:
    assert shown({"a": 20, "b": 6, "c": 4, "d": 3}) == {"a": True, "b": True, "c": False, "d": False}


def test_a_single_group_tells_nothing_and_makes_no_table() -> None:
    assert subgroups.groups_by(rows({"a": 20}), "site") == []
    assert subgroups.groups_by(rows({"a": 20}), "no_such_column") == []


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 30), min_size=2))
def test_no_hidden_size_follows_from_the_total(sizes: dict[str, int]) -> None:
    hidden = subgroups.hidden_groups(sizes)
    assert all(sizes[name] >= subgroups.FEWEST_PATIENTS for name in sizes.keys() - hidden)
    if hidden != set(sizes):
        assert not hidden or sum(sizes[name] for name in hidden) >= subgroups.FEWEST_PATIENTS


def test_what_is_not_known_is_a_group_of_its_own_and_comes_last() -> None:
    frame = pd.DataFrame(
        {"patient_id": [f"p{n}" for n in range(15)], "sex": ["F"] * 5 + [""] * 3 + [None] * 2 + ["M"] * 5}
    )
    assert [group.name for group in subgroups.groups_by(frame, "sex")] == ["F", "M", "unknown"]


@pytest.mark.parametrize(
    ("years", "group"),
    [(0, "0-17"), (17.9, "0-17"), (18, "18-39"), (74.5, "60-74"), (75, "75+"), (np.nan, "unknown")],
)
def test_ages_fall_into_groups(years: float, group: str) -> None:
    assert subgroups.age_group(years) == group
