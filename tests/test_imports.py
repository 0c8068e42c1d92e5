"""Dependencies point one way: which package of the workspace may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "serving": set(),
    "phantom": set(),
    "ckptcore": set(),
    "engine": {"ckptcore", "serving"},
    "xray": {"engine", "ckptcore", "serving"},
    "ct": {"engine", "ckptcore", "serving"},
    "mri": {"engine", "ckptcore", "serving"},
    "ensemble": {"engine", "ckptcore", "serving"},
}


def modules_named(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(module: str) -> str | None:
    """The package of the workspace that a module belongs to."""
    parts = module.split(".")
    if parts[0] == "radfuse":
        return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else None
    return "ckptcore" if parts[0] == "ckptcore" else None


def test_every_package_is_listed_here() -> None:
    assert {path.parent.name for path in (ROOT / "packages").glob("*/pyproject.toml")} == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    files = list((ROOT / "packages" / package / "src").rglob("*.py"))
    assert files
    for file in files:
        found = {package_of(name) for name in modules_named(ast.parse(file.read_bytes()))} - {None, package}
        assert found <= MAY_IMPORT[package], f"{file.relative_to(ROOT)} imports {found}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_declares_the_siblings_that_it_imports(package: str) -> None:
    text = (ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8")
    for file in (ROOT / "packages" / package / "src").rglob("*.py"):
        for name in {package_of(n) for n in modules_named(ast.parse(file.read_bytes()))} - {None, package}:
            declared = "ckptcore" if name == "ckptcore" else f"radfuse-{name}"
            assert f'"{declared}>=' in text, f"{file.relative_to(ROOT)} imports {name}"


def test_the_list_of_commands_is_shown_without_torch() -> None:
    script = (
        "import sys\nfrom radfuse.engine.cli import main\nsys.argv = ['radfuse', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'monai', 'mlflow', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
