import shlex
import shutil

import torch
from safetensors.torch import load_file

import ckptcore


def save_model(path, **tensors):
    return ckptcore.save(path, {"epoch": 3, "val_auc": 0.9, "model_state_dict": tensors})


def test_row_4_10_promote_makes_a_version_with_its_card(ckpt, trained):
    ran = ckpt(
        "promote", trained / "best.pt", "--version", "1.1.0", "--dataset", "clinic B", "--notes", "first"
    )
    assert ran.code == 0 and "1.1.0" in ran.out and "clinic B" in ran.out
    found = ckpt("versions", trained, "--json").json["versions"]
    assert [(v["version"], v["dataset"], v["notes"], v["status"]) for v in found] == [
        ("1.1.0", "clinic B", "first", "whole")
    ]
    table = ckpt("versions", trained)
    assert table.code == 0 and "1.1.0" in table.out and "clinic B" in table.out


def test_row_4_10_promote_refuses_wrong_ones(ckpt, tmp_path):
    first = save_model(tmp_path / "net_best.pth", w=torch.zeros(2))
    assert ckpt("promote", first, "--version", "1.0.0").code == 0
    made = sorted(tmp_path.iterdir())
    taken = ckpt("promote", first, "--version", "1.0.0")
    lower = ckpt("promote", first, "--version", "0.9.0")
    changed = save_model(tmp_path / "net_best.pth", w=torch.zeros(3))
    architecture = ckpt("promote", changed, "--bump", "minor")
    for refused in (taken, lower, architecture):
        assert refused.code == 1 and refused.out == "" and len(refused.err.splitlines()) == 1
    assert "major" in architecture.err
    assert sorted(tmp_path.iterdir()) == made
    assert ckpt("promote", changed, "--bump", "major", "--json").json["version"]["version"] == "2.0.0"


def test_the_names_in_the_help_of_promote_are_those_that_it_makes(ckpt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = ckpt("promote", "--help").out
    folder = tmp_path / "saved_models" / "xray"
    save_model(folder / "resnet50_best.pth", w=torch.zeros(2))
    for line in [line for line in told.splitlines() if line.strip().startswith("ckpt promote ")]:
        assert ckpt(*shlex.split(line)[1:]).code == 0
    for name in ("resnet50_v1.0.0_best.pth", "resnet50_v1.0.0_best.json"):
        assert name in told and (folder / name).is_file()
    assert (folder / "resnet50_v1.1.0_best.pth").is_file()


def test_promote_wants_either_a_number_or_a_bump(ckpt, trained):
    both = ckpt("promote", trained / "best.pt", "--version", "1.0.0", "--bump", "minor")
    neither = ckpt("promote", trained / "best.pt")
    odd = ckpt("promote", trained / "best.pt", "--bump", "huge")
    number = ckpt("promote", trained / "best.pt", "--version", "one")
    assert [ran.code for ran in (both, neither, odd, number)] == [2, 2, 2, 2]


def test_versions_says_when_one_is_not_what_its_card_says(ckpt, trained):
    card = ckptcore.promote(trained / "best.pt", version="1.0.0")
    card.path.unlink()
    ran = ckpt("versions", trained)
    assert ran.code == 1 and "missing" in ran.out and ran.out.splitlines()[1].startswith("! ")
    shutil.copy(trained / "epoch_1.pt", card.path)
    assert ckpt("versions", trained, "--json").json["versions"][0]["status"] == "changed"


def test_versions_of_a_folder_without_any_is_a_finding(ckpt, trained):
    ran = ckpt("versions", trained)
    assert ran.code == 1 and "ckpt promote" in ran.err


def test_import_converts_a_file_of_another_program(ckpt, tmp_path):
    torch.save(
        {"epoch": 4, "loss": 0.5, "epoch_losses": [0.5], "model_state_dict": {"w": torch.ones(3)}},
        tmp_path / "a.pt",
    )
    ran = ckpt("import", tmp_path / "a.pt", "--to", tmp_path / "new")
    assert ran.code == 0 and "4 finished" in ran.out and ckptcore.verify(tmp_path / "new" / "a.pt").ok
    again = ckpt(
        "import",
        tmp_path / "a.pt",
        "--to",
        tmp_path / "new",
        "--name",
        "b.pt",
        "--epoch-counts",
        "index",
        "--json",
    )
    assert again.json["checkpoint"]["epochs_finished"] == 5


def test_import_refuses_a_file_that_asks_for_classes(ckpt, tmp_path):
    torch.save({"w": torch.nn.Linear(1, 1)}, tmp_path / "a.pt")
    ran = ckpt("import", tmp_path / "a.pt", "--to", tmp_path / "new")
    assert ran.code == 1 and "torch.nn.modules.linear.Linear" in ran.err and "Traceback" not in ran.err


def test_export_weights_writes_safetensors(ckpt, trained, tmp_path):
    ran = ckpt("export-weights", trained / "best.pt", "--to", tmp_path / "best.safetensors")
    assert ran.code == 0 and "2 tensors" in ran.out
    assert torch.equal(load_file(tmp_path / "best.safetensors")["w"], torch.full((64, 8), 0.9))
    assert ckpt("export-weights", trained / "best.pt", "--to", tmp_path / "best.safetensors").code == 2
    assert (
        ckpt("export-weights", trained / "best.pt", "--to", tmp_path / "best.safetensors", "--overwrite").code
        == 0
    )
