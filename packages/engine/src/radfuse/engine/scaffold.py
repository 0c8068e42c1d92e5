"""Writes the folder of a new pipeline: parameters, stages, what git ignores, and what to do next."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoints, entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from ckptcore import durable
from radfuse.engine import code
from radfuse.engine.blocks import (
    EvaluateSettings,
    ExportSettings,
    ModalityBlocks,
    PredictSettings,
    PrepareBlock,
    PrivacySettings,
    SplitSettings,
    TrainBlock,
)
from radfuse.engine.ceilings import FILE as CEILINGS
from radfuse.engine.commented import block
from radfuse.engine.errors import RadfuseError
from radfuse.engine.modality import Modality
from radfuse.engine.task_settings import SegmentationSettings

FILES = {
    "params.yaml": "params.yaml.j2",
    "dvc.yaml": "dvc.yaml.j2",
    ".gitignore": "gitignore.j2",
    "README.md": "README.md.j2",
}
BLOCKS = "radfuse.blocks"
"""Entry points of other packages: the name of their block of params.yaml, and its settings."""
MODALITIES_OF = {
    "phantom": ("xray", "ct", "mri"),
    "nih_chestxray14": ("xray",),
    "brats": ("mri",),
    "decathlon": ("mri",),
    "table": ("xray",),
}
"""Modalities that a kind of source has, unless others are named."""


class FolderTaken(RadfuseError):
    """The folder has a pipeline already."""


def sources_for(
    kind: str, modalities: Sequence[Modality], root: Path, namespace: str
) -> list[dict[str, Any]]:
    """The ``sources`` block of a new pipeline, to be edited by its owner.

    Args:
        kind: of source.
        modalities: that it has; a table has one source for each.
        root: of the images.
        namespace: within which a patient's number means one patient, such as the name of a hospital.
    """
    if kind != "table":
        public = {"public": False} if kind in ("brats", "decathlon") else {}
        return [{"kind": kind, "root": str(root), **public}]
    namespace = re.sub(r"\W+", "_", namespace) or "patients"
    return [
        {
            "kind": "table",
            "name": modality.name,
            "root": str(root),
            "public": False,
            "patient_namespace": namespace,
            "modality": modality.name,
            "csv": f"{modality.name}.csv",
            **_columns(modality),
        }
        for modality in modalities
    ]


def _columns(modality: Modality) -> dict[str, Any]:
    """Columns that a table of a modality most likely has, by what its preprocessing takes."""
    from radfuse.serving import preprocess

    spec = modality.preprocessing(modality.prepare_settings.model_validate({}))
    roles = preprocess.roles(spec)
    if roles != ("image",):
        images = {role: f"{role}_path" for role in roles}
        return {
            "images": images,
            "mask": "mask_path",
            "mask_classes": {1: "core", 2: "oedema", 4: "enhancing"},
        }
    if spec["kind"] == "ct_patch":
        return {"images": "path", "labels": ["malignant"], "point_mm": ["x_mm", "y_mm", "z_mm"]}
    return {"images": "path", "labels": ["finding"]}


def dvc_yaml(
    modalities: Sequence[Modality],
    folder: Path,
    source_deps: Sequence[str] = (),
    phantom: bool = False,
    push: bool = False,
    ceilings: Sequence[str] = (),
) -> str:
    """The stages of a pipeline.

    Args:
        modalities: that it has.
        folder: that it lies in.
        source_deps: files and folders whose change makes the cohort and the arrays anew.
        phantom: begin with making the phantom.
        push: let ``dvc push`` send tables with rows about patients.
        ceilings: files with the ceilings that the report shows; those of the phantom are known.
    """
    if phantom:
        ceilings = [f"{root}/{CEILINGS}" for root in source_deps]
    return _render(
        "dvc.yaml.j2",
        {
            "modalities": modalities,
            "code": code_deps(folder, modalities),
            "source_deps": source_deps,
            "ceilings": ceilings,
            "phantom": phantom,
            "ensemble": bool(_commands("ensemble")),
            "segmenting": {
                one.name for one in modalities if issubclass(one.train_settings, SegmentationSettings)
            },
            "push": "true" if push else "false",
        },
    )


def code_deps(folder: Path, modalities: Sequence[Modality]) -> dict[str, list[str]]:
    """The code that each stage's results come from, as paths from a pipeline's folder.

    It is left out where it is no part of the pipeline's own checkout but installed: paths into an environment
    differ from one machine to the next. DVC then does not notice an upgrade, and runs nothing; the keys of
    arrays and trainings, which have their code in them, are asked only by a stage that runs. The README of a
    new pipeline says what to do.

    Returns:
        By the names of stages; of folders inside each other, the outermost alone.
    """
    ensemble, phantom = (
        [code.package_of(command.module) for command in _commands(name)] for name in ("ensemble", "phantom")
    )
    home, top = folder.resolve(), _checkout(folder.resolve())
    found: dict[str, list[str]] = {}
    for stage, names in code.of_stages(modalities, ensemble, phantom).items():
        places = {code.place_of(name).resolve() for name in names}
        ours = {path for path in places if top in path.parents and "site-packages" not in path.parts}
        outermost = sorted(path for path in ours if ours.isdisjoint(path.parents))
        found[stage] = [Path(os.path.relpath(path, home)).as_posix() for path in outermost]
    return found


def _commands(name: str) -> EntryPoints:
    """The command of another package; none where it is not installed, and so has no stage."""
    return entry_points(group="radfuse.commands", name=name)


def _checkout(folder: Path) -> Path:
    """The folder of the repository that a folder lies in; itself where it lies in none."""
    return next((one for one in (folder, *folder.parents) if (one / ".git").exists()), folder)


def write(folder: Path, sources: Sequence[Mapping[str, Any]], modalities: Sequence[Modality]) -> list[Path]:
    """Write a new pipeline; nothing that is there is touched.

    Args:
        folder: of the pipeline; made where it is missing.
        sources: the block of that name.
        modalities: that it has.

    Returns:
        The files that were written.

    Raises:
        FolderTaken: one of the files is there already.
    """
    taken = [name for name in FILES if (folder / name).exists()]
    if taken:
        raise FolderTaken(
            f"{folder} has {', '.join(taken)} already; name a folder without them, or move them away."
        )
    durable.make_folder(folder)
    tables = [f"{source['root']}/{source['csv']}" for source in sources if "csv" in source]
    roots = [str(source["root"]) for source in sources]
    ceilings = [f"{source['root']}/{CEILINGS}" for source in sources if source["kind"] == "phantom"]
    texts = {
        "params.yaml": _render("params.yaml.j2", _blocks(sources, modalities)),
        "dvc.yaml": dvc_yaml(modalities, folder, tables or roots, ceilings=ceilings),
        ".gitignore": _render("gitignore.j2", {}),
        "README.md": _render(
            "README.md.j2",
            {
                "title": folder.resolve().name,
                "modalities": modalities,
                "sources": sources,
                "table": bool(tables),
            },
        ),
    }
    for name in FILES:
        durable.write_text(folder / name, texts[name])
    return [folder / name for name in FILES]


def _blocks(sources: Sequence[Mapping[str, Any]], modalities: Sequence[Modality]) -> dict[str, Any]:
    listed = yaml.safe_dump([dict(source) for source in sources], sort_keys=False, default_flow_style=None)
    return {
        "table": any("csv" in source for source in sources),
        "sources": "".join(f"  {line}\n" for line in listed.splitlines()),
        "split": block(SplitSettings()),
        "privacy": block(PrivacySettings()),
        "prepare": _with_modalities(
            PrepareBlock(), {m.name: m.prepare_settings.model_validate({}) for m in modalities}
        ),
        "train": _with_modalities(
            TrainBlock(), {m.name: m.train_settings.model_validate({}) for m in modalities}
        ),
        # Those of other packages, such as the ensemble's.
        "others": {one.name: block(one.load()()) for one in sorted(entry_points(group=BLOCKS))},
        "predict": block(PredictSettings()),
        "evaluate": block(EvaluateSettings()),
        "export": block(ExportSettings()),
    }


def _with_modalities(shared: ModalityBlocks, own: Mapping[str, Any]) -> str:
    text = block(shared)
    for name, kind in own.items():
        inside = block(kind.model_validate({}), indent=4)
        text += f"  {name}:\n{inside}" if inside else ""
    return text


def _render(template: str, values: Mapping[str, Any]) -> str:
    text = (files("radfuse.engine") / "templates" / template).read_text(encoding="utf-8")
    # The output is YAML and Markdown, written by us for its owner: there is nothing to escape.
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(text).render(**values)
