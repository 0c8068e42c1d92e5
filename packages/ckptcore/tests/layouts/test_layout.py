"""Templates: every name that one makes is found again, quickly; rules of one's own do not hinder reading."""

import time
from dataclasses import dataclass

import pytest

from ckptcore import folder
from ckptcore.errors import UsageError
from ckptcore.layouts import Layout, Moment, plain
from ckptcore.rules import KeepRule, Progress, SaveRule


def moment(stage):
    return Moment(Progress(0, True, 1, metrics={}, stage=stage), {}, {}, None, None, 0, "")


@pytest.mark.parametrize(
    "template",
    [
        *(
            "s_{global_step:,}.pt",
            "s_{global_step:_}.pt",
            "e_{epoch:>5}.pt",
            "e_{epoch:+d}.pt",
            "e_{epoch:x}.pt",
        ),
        *("m_{metric:+.3f}.pt", "m_{metric:.1%}.pt", "e_{epoch:03.1f}.pt", "e_{epoch:c}.pt", "e_{epoch}0.pt"),
        *(
            "{stage}" * 12 + "x.pt",
            "{epoch:999999999}.pt",
            "{epoch:{epoch}}.pt",
            "{epoch",
            "{}.pt",
            "{oops}.pt",
        ),
        *("a/b.pt", "", "best", ".hidden.pt", "x" * 253 + ".pt"),
    ],
)
def test_a_template_whose_names_are_not_found_again_is_refused(template):
    with pytest.raises(UsageError, match="layout mine: the template"):
        Layout("mine", {"latest": template}, ())


@pytest.mark.parametrize(
    "template",
    [
        *(
            "e{epoch:03d}.pt",
            "m_{metric:.3f}.ckpt",
            "m{metric:08.3f}.pt",
            "m{metric:.2e}.pt",
            "m{metric}.pth",
        ),
        *("{stage}.pt", "{stage:>10}_{metric_name}_{epoch!r}.pt", "{stage}{epoch}.pt", "{epoch}_{epoch}.pt"),
    ],
)
def test_a_template_whose_names_are_found_again_is_taken(template):
    assert Layout("mine", {"latest": template}, ()).templates["latest"] == template


def test_fields_side_by_side_are_matched_in_no_time():
    template = "{stage}{metric_name}_{epoch}_{epochs_finished}_{global_step}_{metric}.pt"
    layout = Layout("mine", {"latest": template}, ())
    began = time.process_time()
    assert layout.roles_of("1" * 250 + ".pt") == layout.roles_of("1_" * 120 + ".pt ") == ()
    assert time.process_time() - began < 1


def test_a_long_stage_is_shortened_and_a_name_that_cannot_be_is_refused():
    layout = Layout("mine", {"latest": "{stage}_{epoch}.pt", "best": "{stage}.pt"}, ())
    assert layout.file_name("latest", moment("x" * 300)) == "x" * 80 + "_0.pt"
    with pytest.raises(UsageError, match="at most 255 bytes"):
        layout.file_name("latest", moment("\U0001f600" * 80))
    with pytest.raises(UsageError, match="dot"):
        layout.file_name("best", moment(None))


@dataclass(frozen=True)
class MySave(SaveRule):
    role: str = "periodic"

    def due(self, progress, past):
        return True

    def describe(self):
        return "mine"


@dataclass(frozen=True)
class MyKeep(KeepRule):
    def keeps(self, entries):
        return {}

    def describe(self):
        return "mine"


def test_rules_of_ones_own_do_not_hinder_reading(tmp_path):
    (tmp_path / ".ckptcore").mkdir()
    folder.write_policy(tmp_path, plain("loss").with_rules((MySave(), *plain("loss").save), MyKeep()))
    found = folder.read_policy(tmp_path)
    assert found.save == plain("loss").save and found.roles_of("best.pt") == ("best",)
    assert found.policy()["keep"] == {"kind": "MyKeep"}
    with pytest.raises(UsageError, match=r"'MyKeep' is not known here.*--keep N"):
        found.keep.keeps([])
    with pytest.raises(UsageError, match="such as"):
        Layout.from_policy(found.policy() | {"save": ["junk"]})
