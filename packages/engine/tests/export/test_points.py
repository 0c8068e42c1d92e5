from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radfuse.engine.export.points import BadPoints, Point, parse_point, read_points

NUMBERS = st.floats(-1e6, 1e6)


def written(folder: Path, text: str) -> Path:
    path = folder / "points.csv"
    path.write_text(text)
    return path


@given(NUMBERS, NUMBERS, NUMBERS)
def test_point_on_a_command_line_is_read_as_it_was_meant(x: float, y: float, z: float) -> None:
    assert parse_point(f"{x},{y}, {z}") == (x, y, z)


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "1;2;3", "a,b,c", "1,2,nan", "1,2,inf", "1,,3"])
def test_text_that_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(BadPoints, match="expected"):
        parse_point(text)


def test_csv_gives_points_with_names_and_files(tmp_path: Path) -> None:
    path = written(tmp_path, "id, x_mm ,y_mm,z_mm,path,r\n1,-31.5,12,140,case/scan,4\n2,0,1e1,-3,other,5\n")
    assert read_points(path) == [Point((-31.5, 12, 140), "1", "case/scan"), Point((0, 10, -3), "2", "other")]


def test_csv_with_a_byte_order_mark_and_short_names_is_read(tmp_path: Path) -> None:
    assert read_points(written(tmp_path, "\ufeffx,y,z\n1,2,3\n")) == [Point((1, 2, 3))]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_csv_of_another_delimiter_is_read(tmp_path: Path, delimiter: str) -> None:
    text = "\ufeffname,x_mm,y_mm,z_mm,file\na,1,2.5,-3,scan\n".replace(",", delimiter)
    assert read_points(written(tmp_path, text)) == [Point((1, 2.5, -3), "a", "scan")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected the columns x_mm, y_mm, z_mm in its first line, got nothing"),
        ("a,b\n1,2\n", "got a, b"),
        ("x,y,z\n", "expected a line for each point"),
        ("x,y,z\n1,2,3\n1,2\n", r"points\.csv, line 3: expected three numbers in mm, got 1, 2, "),
        ("x,y,z\n1,two,3\n", "line 2: expected three numbers"),
        ("x,y,z\n1,2,nan\n", "line 2: expected three numbers"),
    ],
)
def test_csv_without_points_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadPoints, match=said):
        read_points(written(tmp_path, text))


def test_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadPoints, match=r"absent\.csv.*No such file"):
        read_points(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(BadPoints, match=r"binary\.csv"):
        read_points(tmp_path / "binary.csv")


def test_point_lies_in_the_scan_whose_path_ends_alike() -> None:
    point = Point((0, 0, 0), file="case1/scan")
    assert point.lies_in(Path("data/case1/scan"))
    assert not point.lies_in(Path("data/case2/scan"))
    assert not point.lies_in(Path("data/xcase1/scan"))
    assert Point((0, 0, 0)).lies_in(Path("anything"))


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=5))
def test_every_point_of_a_csv_is_read(
    tmp_path_factory: pytest.TempPathFactory, points: list[tuple[float, ...]]
) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("x_mm", "y_mm", "z_mm"), *points])
    path = written(tmp_path_factory.mktemp("points"), text.getvalue())
    assert [point.mm for point in read_points(path)] == points
