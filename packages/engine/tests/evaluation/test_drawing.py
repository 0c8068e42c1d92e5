"""Figures are on the disk whole or not at all."""

from pathlib import Path

import pandas as pd
import pytest
from killed_stage import check_figure_is_whole

from radfuse.engine.evaluation import figures

FIGURES = {
    "of a training": """
from radfuse.engine.pictures import learning_curves
learning_curves(path, {"val_auc": [0.5, 0.6]}, "val_auc", "A title")
""",
    "of an evaluation": """
import pandas as pd
from radfuse.engine.evaluation.figures import dice_figure
dice_figure(path, pd.DataFrame({"dice:core": [0.5]}), ["core"], "A title")
""",
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_figure_whose_drawing_was_killed_is_the_one_of_before(tmp_path: Path, draw: str) -> None:
    check_figure_is_whole(tmp_path / "figure.png", draw)


@pytest.mark.parametrize(("regions", "axes"), [(["core"], True), ([], False)])
def test_a_figure_of_the_dice_without_a_region_to_draw_has_no_empty_axes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regions: list[str], axes: bool
) -> None:
    drawn = []
    monkeypatch.setattr(figures, "write_png", lambda figure, *_: drawn.append(figure.axes[0].axison))
    figures.dice_figure(tmp_path / "dice.png", pd.DataFrame({"dice:core": [0.5]}), regions, "A title")
    assert drawn == [axes]
