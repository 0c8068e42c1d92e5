import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trained_folders import train

import ckptcore

REFERENCE = Path(__file__).parents[4] / "docs" / "reference" / "ckpt.md"
COMMANDS = (
    *("list", "latest", "show", "versions", "du", "verify", "diff", "compare", "plan", "clean", "archive"),
    *("resume", "import", "export-weights", "promote"),
)
# Calls of every command that takes a folder, after the folder.
FOLDER_CALLS = (
    *((name,) for name in ("list", "latest", "versions", "du", "verify", "compare", "plan", "resume")),
    *(("compare", "--metric", "val_auc", "--plot", "drawn.png"), ("plan", "--keep", 1)),
    *(("clean", "--keep", 1), ("clean", "--keep", 0, "--yes"), ("clean", "--keep", 1, "--dry-run")),
    *(("archive", "--to", "packed/a.tar.gz"), ("archive", "--to", "a.tar.gz", "--keep-originals")),
)


def cold(*arguments, **options):
    """The command in a process of its own."""
    command = [sys.executable, "-c", "from ckptcore.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def section(command):
    text = REFERENCE.read_text(encoding="utf-8")
    found = re.search(rf"^## ckpt {command} .*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/reference/ckpt.md has no section of ckpt {command}"
    return found[0]


def test_help_lists_every_command_of_the_contract_and_no_other(ckpt):
    ran = ckpt("--help")
    listed = re.findall(r"^  ([a-z-]+)  +[A-Z]", ran.out.partition("Commands:")[2], re.MULTILINE)
    assert ran.code == 0 and tuple(listed) == COMMANDS
    assert "..." not in ran.out.partition("Commands:")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_and_is_documented_with_all_its_options(ckpt, command):
    ran = ckpt(command, "--help")
    assert ran.code == 0 and f"    ckpt {command} " in ran.out.partition("Examples:")[2]
    documented = section(command) + "`--json`"
    options = set(re.findall(r"--[a-z][a-z-]+", ran.out.partition("Options:")[2].partition("Examples:")[0]))
    assert [option for option in options - {"--help"} if option not in documented] == []


def test_the_documented_json_keys_are_the_ones_that_come(ckpt, trained, tmp_path):
    torch.save({"epoch": 1, "state_dict": {"w": torch.zeros(1)}}, tmp_path / "foreign.pt")
    best = trained / "best.pt"
    calls = {
        "promote": (best, "--version", "1.0.0"),
        **{name: (trained,) for name in ("list", "latest", "versions", "du", "verify", "compare", "plan")},
        "show": (best, "--tensors"),
        "diff": (best, trained / "latest.pt"),
        "clean": (trained, "--keep", 1, "--dry-run"),
        "import": (tmp_path / "foreign.pt", "--to", tmp_path / "new"),
        "export-weights": (best, "--to", tmp_path / "w.safetensors"),
        "archive": (trained, "--to", tmp_path / "a.tar.gz"),
    }
    for command, arguments in calls.items():
        ran = ckpt(command, *arguments, "--json")
        assert ran.code == 0, (command, ran.err)
        keys = set(ran.json)
        for part in ("files", "rows", "members", "versions", "tensors"):
            if isinstance(ran.json.get(part), list):
                keys |= set(ran.json[part][0])
        missing = [key for key in keys if f"`{key}`" not in section(command)]
        assert missing == [], command
    assert set(COMMANDS) - set(calls) == {"resume"}


def test_no_command_but_import_imports_torch_for_files_of_ours(trained, tmp_path):
    best, latest = trained / "best.pt", trained / "latest.pt"
    (tmp_path / "pyproject.toml").write_text('[tool.ckptcore]\nresume_command = ["true", "{checkpoint}"]\n')
    calls = [
        *([name, trained] for name in ("list", "latest", "du", "verify", "compare", "plan")),
        ["show", best, "--tensors"],
        ["diff", best, latest],
        ["promote", best, "--version", "1.0.0"],
        ["versions", trained],
        ["export-weights", best, "--to", tmp_path / "w.safetensors"],
        ["show", tmp_path / "w.safetensors", "--tensors"],
        ["verify", tmp_path / "w.safetensors"],
        ["resume", trained, "--dry-run"],
        ["clean", trained, "--keep", "1", "--yes"],
        ["archive", trained, "--to", tmp_path / "a.tar.zst"],
    ]
    script = (
        "import sys\nclass Refuse:\n    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('torch', 'numpy'):\n"
        "            raise ImportError('asked for ' + name)\n"
        "sys.meta_path.insert(0, Refuse())\nfrom ckptcore.cli import run\n"
        f"for call in {[list(map(str, call)) for call in calls]!r}:\n"
        "    assert run(call) == 0, call\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_a_list_loads_nothing_that_is_slow_to_load(trained):
    script = (
        f"import sys; from ckptcore.cli import run; run(['list', {str(trained)!r}]); "
        "slow = {'torch', 'rich', 'filelock', 'zstandard', 'matplotlib', 'numpy', 'asyncio'}; "
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_a_list_reads_a_few_kilobytes_of_each_file_however_large_it_is(ckpt, tmp_path, monkeypatch):
    # How long a thousand take is measured in benchmarks/checkpoints.py.
    for epoch in range(20):
        state = {"epoch": epoch, "model_state_dict": {"w": torch.zeros(1 << 18)}}
        ckptcore.save(tmp_path / f"epoch_{epoch}.pt", state, {"run_key": "a1"})
    read, pread = [], os.pread

    def counted(fd, size, at):
        data = pread(fd, size, at)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counted)
    assert "20 files" in ckpt("list", tmp_path).out
    assert 20 <= len(read) <= 60 and sum(read) <= 20 * (20 << 10)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The current folder, of a project that says how its training is resumed."""
    here = tmp_path / "project"
    here.mkdir()
    (here / "pyproject.toml").write_text('[tool.ckptcore]\nresume_command = ["false", "{checkpoint}"]\n')
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize("call", FOLDER_CALLS, ids=lambda call: " ".join(map(str, call)))
def test_nothing_there_at_all_is_exit_code_1_of_every_command_that_takes_a_folder(ckpt, project, call):
    command, *options = call
    (project / "empty").mkdir()
    ran = ckpt(command, "empty", *options)
    assert ran.code == 1 and re.search(r"^ckpt: .*\bno\b.* (empty|files)", ran.err), ran.err
    assert ran.out == "" or command == "du"
    told = ckpt(command, "empty", *options, "--json") if command != "resume" else ran
    assert told.code == 1 and told.err == ran.err
    assert command == "resume" or not any(value for value in told.json.values() if isinstance(value, list))
    assert {path.name for path in project.rglob("*")} == {"empty", "pyproject.toml"}


@pytest.mark.parametrize("call", FOLDER_CALLS, ids=lambda call: " ".join(map(str, call)))
def test_a_folder_that_was_archived_has_nothing_there_but_its_records(ckpt, trained, project, call):
    command, *options = call
    assert ckpt("archive", trained, "--to", project / "whole.tar.gz").code == 0
    assert ckpt(command, trained, *options).code == (0 if command == "du" else 1)
    assert {path.name for path in project.iterdir()} == {"whole.tar.gz", "pyproject.toml"}


@pytest.mark.parametrize("call", FOLDER_CALLS, ids=lambda call: " ".join(map(str, call)))
def test_a_folder_that_does_not_exist_is_wrong_usage_of_every_command(ckpt, project, call):
    command, *options = call
    ran = ckpt(command, "absent", *options)
    assert ran.code == 2 and ran.out == "" and "absent" in ran.err


def test_the_calls_with_a_folder_are_those_of_every_command_that_takes_one(ckpt):
    usages = {name: ckpt(name, "--help").out.partition("\n\n")[0] for name in COMMANDS}
    take_one = {name for name, usage in usages.items() if re.search(r" (DIR|PATH\.\.\.)", usage)}
    assert take_one == {command for command, *_ in FOLDER_CALLS}


def test_the_keys_are_the_same_where_there_is_nothing(ckpt, trained, project):
    (project / "empty").mkdir()
    for command, *options in FOLDER_CALLS:
        if command == "resume" or (command == "clean" and "--dry-run" not in options):
            continue
        kept = ["--keep-originals"] if command == "archive" else []
        empty, full = (ckpt(command, at, *options, *kept, "--json") for at in ("empty", trained))
        assert set(empty.json) == set(full.json), command


@pytest.mark.parametrize(
    "arguments", [["lst"], ["list"], ["list", "a", "b"], ["list", "--bogus", "x"], ["clean", "x"], []]
)
def test_wrong_usage_is_exit_code_2(ckpt, arguments):
    ran = ckpt(*arguments)
    assert ran.code == 2 and "Traceback" not in ran.err


def test_the_version_is_shown(ckpt):
    assert ckpt("--version").out.startswith("ckptcore ")


def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    train(tmp_path / "run", "a1", (0.1,))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from ckptcore.cli import main; main()", "list", str(tmp_path / "run")]
    try:
        ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert ran.stderr == "" and ran.returncode == 0


def test_a_name_that_is_no_text_is_shown_escaped(tmp_path):
    folder = train(tmp_path / "run", "a1", (0.1,))
    os.link(folder / "best.pt", os.path.join(os.fsencode(folder), b"odd\xff.pt"))
    ran = cold("list", folder)
    assert ran.returncode == 0 and r"odd\udcff.pt" in ran.stdout
    assert cold("list", folder, "--json").returncode == 0


def test_colours_show_on_a_terminal_and_are_refused_by_no_color(trained):
    import pty

    def on_a_terminal(**more):
        main, child = pty.openpty()
        script = "from ckptcore.cli import main; main()"
        environment = (
            {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
            | {"TERM": "xterm", "COLUMNS": "80"}
            | more
        )
        ran = subprocess.Popen(
            [sys.executable, "-c", script, "list", str(trained)], stdout=child, env=environment
        )
        os.close(child)
        parts = []
        try:
            while part := os.read(main, 4096):
                parts.append(part)
        except OSError:
            pass  # Linux reports the end of a terminal as an error.
        finally:
            os.close(main)
        assert ran.wait() == 0
        return b"".join(parts).decode().replace("\r", "")

    coloured = on_a_terminal()
    assert "\x1b[32m* epoch_3.pt" in coloured
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in coloured.splitlines()) <= 80
    assert "\x1b" not in on_a_terminal(NO_COLOR="1")


def test_an_empty_path_is_wrong_usage_in_every_command(ckpt, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    calls = [
        *([name, ""] for name in ("list", "latest", "show", "versions", "du", "verify", "compare", "plan")),
        *(["diff", "best.pt", ""], ["clean", "", "--keep", 1, "--yes"], ["resume", "", "--dry-run"]),
        *(["archive", "", "--to", tmp_path / "a.tar.gz"], ["archive", ".", "--to", ""], ["resume", ".", ""]),
        *(
            ["import", "", "--to", tmp_path],
            ["import", "best.pt", "--to", ""],
            ["compare", ".", "--plot", ""],
        ),
        *(["export-weights", "best.pt", "--to", ""], ["promote", "", "--bump", "minor"], ["verify", ".", ""]),
    ]
    assert {call[0] for call in calls} == set(COMMANDS)
    for call in calls:
        ran = ckpt(*call)
        assert ran.code == 2 and "got an empty one" in ran.err, call


def test_closed_streams_and_a_help_that_nobody_reads_on_are_no_error(trained):
    command = f"{sys.executable} -c 'from ckptcore.cli import main; main()'"
    ran = subprocess.run(f"{command} list {trained} >&-", shell=True, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ran = subprocess.run(
            f"{command} --help", shell=True, stdout=writer, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writer)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_show_of_a_folder_is_wrong_usage(ckpt, trained):
    ran = ckpt("show", trained)
    assert ran.code == 2 and "ckpt list" in ran.err


def test_notes_that_are_no_text_are_refused(ckpt, trained):
    ran = ckpt("promote", trained / "best.pt", "--bump", "minor", "--notes", "bad\udcff")
    assert ran.code == 2 and "no UTF-8" in ran.err and not list(trained.glob("*_v1*"))
