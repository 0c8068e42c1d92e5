import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptcore.cli import text


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 KB"),
        (9_994, "9.99 KB"),
        (9_996, "10.0 KB"),
        (98_100_000, "98.1 MB"),
        (999_600_000, "1.00 GB"),
        (4_500_000_000_000_000, "4500 TB"),
        (None, "-"),
    ],
)
def test_sizes_have_three_digits(nbytes, shown):
    assert text.size(nbytes) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.84121, "0.8412"),
        (0.0, "0.0000"),
        (1e-5, "1.000e-05"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (None, "-"),
    ],
)
def test_metrics_are_shown_to_four_places_unless_that_hides_them(value, shown):
    assert text.amount(value) == shown


@given(st.text())
def test_nothing_in_a_name_commands_the_terminal(name):
    assert text.clean(name).isprintable()


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(10, "just now"), (90, "1 min ago"), (600, "10 min ago"), (90_000, "25 h ago"), (-5, "")],
)
def test_ages_are_told_in_one_unit(seconds, told):
    then = datetime(2026, 1, 1, tzinfo=UTC)
    now = datetime.fromtimestamp(then.timestamp() + seconds, UTC)
    assert text.age(then.isoformat(), now) == told


def test_a_time_that_is_none_is_a_dash():
    assert text.moment("yesterday") == text.moment(None) == "-"
