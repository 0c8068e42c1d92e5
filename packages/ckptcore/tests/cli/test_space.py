import io
import json
import shutil
import subprocess
import sys

import torch
from trained_folders import names, train

import ckptcore
from ckptcore.lease import Lease


def test_row_1_8_plan_says_what_happens_to_every_file_and_why(ckpt, trained):
    version = ckptcore.promote(trained / "best.pt", version="1.0.0").file_name
    torch.save({"w": torch.zeros(1)}, trained / "old.pth")
    found = ckpt("plan", trained, "--keep", 2, "--json").json
    verdicts = {f["name"]: (f["keep"], f["verdict"]) for f in found["files"]}
    assert set(verdicts) == {path.name for path in trained.glob("*.pt*")}
    assert verdicts["best.pt"] == verdicts["latest.pt"] == verdicts[version] == (True, "must stay")
    assert verdicts["epoch_6.pt"] == verdicts["epoch_5.pt"] == verdicts["final.pt"] == (True, "may go")
    assert verdicts["epoch_1.pt"] == verdicts["epoch_3.pt"] == (False, "safe to delete")
    assert verdicts["old.pth"] == (True, "yours to decide")
    assert all(f["reason"] for f in found["files"])
    freed = sum((trained / f"epoch_{n}.pt").stat().st_size for n in (1, 2, 4))
    assert found["freed_bytes"] == freed  # epoch_3 is best too: deleting that name frees nothing.


def test_row_1_8_plan_explains_the_recorded_rule_and_changes_nothing(ckpt, tmp_path):
    run = train(tmp_path / "run", "a1", last=3)
    before = names(run)
    ran = ckpt("plan", run)
    assert ran.code == 0 and "Rule: last 3" in ran.out and names(run) == before
    assert any(line.split()[:3] == ["epoch_5.pt", "may", "go"] for line in ran.out.splitlines())


def test_plan_of_a_rule_that_is_only_tried_promises_nothing_of_the_next_save(ckpt, trained):
    ran = ckpt("plan", trained, "--keep", 2)
    assert "Rule tried: last 2. 4 files to delete" in ran.out
    assert f"No save does that: 'ckpt clean {trained} --keep 2' would" in ran.out
    recorded = ckpt("plan", trained)
    assert "Rule: last 10. Nothing to delete" in recorded.out and "No save" not in recorded.out
    assert '"safe to delete": the rule does not keep it' in " ".join(ckpt("plan", "--help").out.split())


def test_plan_without_a_recorded_rule_is_wrong_usage_that_says_what_to_do(ckpt, trained):
    shutil.rmtree(trained / ".ckptcore")
    ran = ckpt("plan", trained)
    assert ran.code == 2 and "--keep N" in ran.err
    found = ckpt("plan", trained, "--keep", 1, "--json").json
    verdicts = {f["name"]: f["keep"] for f in found["files"]}
    assert verdicts["best.pt"] and verdicts["latest.pt"] and verdicts["final.pt"] and verdicts["epoch_6.pt"]
    assert not verdicts["epoch_5.pt"]


def test_row_5_4_clean_keeps_the_newest_and_everything_pinned(ckpt, trained):
    ran = ckpt("clean", trained, "--keep", 2, "--yes")
    assert ran.code == 0 and "Deleted 4 files" in ran.out
    assert names(trained) == {"best.pt", "latest.pt", "final.pt", "epoch_5.pt", "epoch_6.pt"}
    assert ckpt("verify", trained).code == 0


def test_row_4_11_clean_to_the_best_ones(ckpt, trained):
    card = ckptcore.promote(trained / "epoch_2.pt", version="1.0.0")
    ran = ckpt("clean", trained, "--keep", 0, "--yes", "--json")
    assert sorted(ran.json["removed"]) == [f"epoch_{n}.pt" for n in range(1, 7)]
    assert names(trained) == {"best.pt", "latest.pt", "final.pt", card.path.name, card.card_path.name}


def test_clean_dry_run_deletes_nothing(ckpt, trained):
    before = names(trained)
    ran = ckpt("clean", trained, "--keep", 1, "--dry-run")
    assert ran.code == 0 and "- epoch_1.pt" in ran.out and "dry run" in ran.out and names(trained) == before


def test_clean_without_anyone_to_ask_is_wrong_usage(ckpt, trained, monkeypatch):
    before = names(trained)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    ran = ckpt("clean", trained, "--keep", 1)
    assert ran.code == 2 and "--yes" in ran.err and names(trained) == before


def test_clean_asks_on_a_terminal_and_takes_no_for_an_answer(ckpt, trained, monkeypatch):
    before = names(trained)
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda text, **_: asked.append(text))
    ran = ckpt("clean", trained, "--keep", 1)
    assert ran.code == 0 and asked == ["Delete 5 files?"] and names(trained) == before


def test_clean_leaves_a_folder_that_is_being_written_to(ckpt, trained):
    lease = Lease(trained)
    lease.acquire()
    try:
        ran = ckpt("clean", trained, "--keep", 1, "--yes")
    finally:
        lease.release()
    assert ran.code == 1 and "has a writer already" in ran.err and "epoch_1.pt" in names(trained)


def test_row_4_11_du_counts_hard_links_once_and_by_folder(ckpt, trained):
    size = sum(
        {p.stat().st_ino: p.stat().st_blocks * 512 for p in trained.rglob("*") if p.is_file()}.values()
    )
    found = ckpt("du", trained.parent, "--json").json
    assert [row["name"] for row in found["rows"]] == ["run"]
    assert found["total"]["real_bytes"] == size < found["total"]["apparent_bytes"] * 4096
    assert found["total"]["kinds"]["best"]["files"] == 1
    ran = ckpt("du", trained.parent)
    assert ran.code == 0 and ran.out.splitlines()[-1].split()[0] == "total"


def test_row_4_11_row_1_8_archive_packs_verifies_and_deletes(ckpt, trained, tmp_path):
    digest = ckptcore.read_header(trained / "best.pt").model_digest
    ran = ckpt("archive", trained, "--to", tmp_path / "old.tar.gz")
    assert ran.code == 0 and "read back and verified" in ran.out and "Deleted here: 9 files" in ran.out
    assert names(trained) == set()
    subprocess.run(["tar", "-xf", "old.tar.gz", "-C", str(trained)], cwd=tmp_path, check=True)
    unpacked = next(trained.rglob("best.pt"))
    assert ckptcore.verify(unpacked).ok and ckptcore.read_header(unpacked).model_digest == digest


def test_row_4_11_archive_into_a_folder_gets_a_dated_name(ckpt, trained, tmp_path):
    (tmp_path / "archives").mkdir()
    found = ckpt("archive", trained, "--to", tmp_path / "archives", "--keep-originals", "--json").json
    assert found["path"].startswith(str(tmp_path / "archives" / "archived_run_20"))
    assert found["removed"] == [] and "best.pt" in names(trained)
    assert any(member["link_of"] for member in found["members"])


def test_commands_that_change_a_folder_need_no_torch(trained):
    script = (
        "import sys; from ckptcore.cli import run; "
        f"assert run(['clean', {str(trained)!r}, '--keep', '1', '--yes']) == 0; "
        f"assert run(['archive', {str(trained)!r}, '--to', {str(trained.parent / 'x.tar.zst')!r}]) == 0; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_archive_leaves_what_is_no_checkpoint_and_says_so(ckpt, trained, tmp_path):
    (trained / "train.py").write_text("print()")
    ran = ckpt("archive", trained, "--to", tmp_path / "old.tar.gz")
    assert ran.code == 0 and "Left here: train.py (packed, and no checkpoint)" in ran.out
    assert (trained / "train.py").exists() and names(trained) == {"train.py"}


def test_a_keep_rule_of_ones_own_hinders_the_plan_alone_and_names_the_way_out(ckpt, trained):
    policy = trained / ".ckptcore" / "policy.json"
    told = json.loads(policy.read_text()) | {"keep": {"kind": "Mine"}}
    policy.write_text(json.dumps(told | {"save": [*told["save"], {"kind": "MySave", "role": "periodic"}]}))
    assert ckpt("list", trained).code == ckpt("latest", trained).code == 0
    ran = ckpt("plan", trained)
    assert ran.code == 2 and "keep rule 'Mine' is not known here" in ran.err and "--keep N" in ran.err
    assert ckpt("plan", trained, "--keep", 2).code == 0
