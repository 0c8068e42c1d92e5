from ckptcore.cli.table import Column, Row, layout

COLUMNS = [
    Column("file"),
    Column("epoch", right=True, drop=1),
    Column("step", right=True, drop=9),
    Column("notes", wrap=True),
]


def rows(*cells):
    return [Row(cell) for cell in cells]


def test_numbers_line_up_on_the_right_and_no_line_ends_in_spaces():
    text = layout(COLUMNS, rows(("a.pt", "1", "10", "x"), ("longer.pt", "100", "1,000", "")))
    assert text.splitlines() == [
        "  file       epoch   step  notes",
        "  a.pt           1     10  x",
        "  longer.pt    100  1,000",
    ]


def test_a_column_without_any_value_is_left_out():
    assert "step" not in layout(COLUMNS, rows(("a.pt", "1", "-", "x")))


def test_without_a_limit_names_of_one_file_stand_on_one_line():
    assert "epoch_1.pt = best.pt = latest.pt" in layout(
        COLUMNS, rows((("epoch_1.pt", "best.pt", "latest.pt"), "1", "1", ""))
    )


def test_on_a_narrow_terminal_names_stand_below_each_other_and_less_important_columns_go():
    row = (("checkpoint_epoch_0001.pt", "best_model.pt", "latest.pt"), "1", "1,000", "best, latest")
    lines = layout(COLUMNS, rows(row), limit=50).splitlines()
    assert [line.split()[0:2] for line in lines[2:]] == [["=", "best_model.pt"], ["=", "latest.pt"]]
    assert "step" not in lines[0] and "epoch" in lines[0]
    assert max(map(len, lines)) <= 50


def test_long_notes_are_broken_between_words():
    row = ("a.pt", "1", "1", "its end is missing: it was cut off while it was written to a full disk")
    lines = layout(COLUMNS, rows(row), limit=60).splitlines()
    assert len(lines) > 2 and max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines[1:]).split()).endswith("written to a full disk")


def test_a_file_name_is_never_cut():
    name = "resnet50_" + "x" * 90 + ".pth"
    assert name in layout(COLUMNS, rows((name, "1", "1", "")), limit=80)


def test_marks_stand_in_front_and_styles_cover_whole_lines():
    text = layout(COLUMNS, [Row(("a.pt", "1", "1", ""), mark="*", style="green")], colour=True)
    assert text.splitlines()[1] == "\x1b[32m* a.pt      1     1\x1b[0m"


def test_wide_characters_keep_columns_aligned():
    lines = layout(COLUMNS, rows(("模型.pt", "1", "1", "x"), ("model.pt", "1", "1", "x"))).splitlines()
    assert lines[1].index("1") + 2 == lines[2].index("1")
