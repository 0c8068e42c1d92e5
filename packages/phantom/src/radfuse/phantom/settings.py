"""What can be set: in params.yaml under ``phantom:``, by ``--set phantom.key=value``, by options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from radfuse.phantom.errors import SettingsError

BLOCK = "phantom"


def _ordered(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"expected the smaller number first, got {list(bounds)}")
    return bounds


Pixels = Annotated[int, Field(ge=64, le=4096)]
Slices = Annotated[int, Field(ge=8, le=400)]
Voxels = Annotated[int, Field(ge=24, le=320)]


class Settings(BaseModel):
    """What a cohort is made of. `out`, `patients`, `first_patient`, `workers` leave each patient as it is.

    Attributes:
        out: folder to write to, None where a caller names it.
        patients: how many.
        first_patient: number of the first one; patient i is the same in every cohort that has it.
        workers: processes; 0 for one a core. The bytes do not depend on it.
        seed: of everything.
        incomplete: share of patients who lack one or two modalities.
        repeats: share of studies that are done a second time.
        xray_size: smallest and largest width, pixels.
        ct_matrix: pixels along an edge of a slice.
        ct_slices: fewest and most slices of a series.
        mri_matrix: smallest and largest number of voxels along the longest edge.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path | None = None
    patients: PositiveInt = 300
    first_patient: NonNegativeInt = 0
    workers: NonNegativeInt = 0
    seed: NonNegativeInt = 0
    incomplete: float = Field(default=0.25, ge=0, le=1)
    repeats: float = Field(default=0.08, ge=0, le=1)
    xray_size: Annotated[tuple[Pixels, Pixels], AfterValidator(_ordered)] = (256, 384)
    ct_matrix: int = Field(default=128, ge=48, le=1024)
    ct_slices: Annotated[tuple[Slices, Slices], AfterValidator(_ordered)] = (24, 36)
    mri_matrix: Annotated[tuple[Voxels, Voxels], AfterValidator(_ordered)] = (48, 60)

    @property
    def numbers(self) -> range:
        """Numbers of the cohort's patients."""
        return range(self.first_patient, self.first_patient + self.patients)

    @property
    def of_patients(self) -> dict[str, Any]:
        """What a patient's files depend on, besides the patient's number."""
        return self.model_dump(mode="json", exclude={"out", "patients", "first_patient", "workers"})

    def digest(self) -> str:
        """SHA-256 of all that decides a patient's bytes: settings, code of this package, libraries."""
        libraries = (
            "numpy",
            "scipy",
            "pydicom",
            "nibabel",
            "pyjpegls",
            "pylibjpeg-openjpeg",
            "pylibjpeg-rle",
        )
        parts = {
            "settings": self.of_patients,
            "code": {
                path.name: sha256(path.read_bytes()).hexdigest()
                for path in sorted(Path(__file__).parent.glob("*.py"))
            },
            "libraries": {name: version(name) for name in libraries},
        }
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load(params: Path | None, overrides: Sequence[str], given: Mapping[str, Any]) -> Settings:
    """The settings of a params.yaml, overridden by ``--set`` and then by the command's own options.

    Args:
        params: file whose ``phantom:`` block counts; None for the defaults. A relative `out` in it starts
            from its folder.
        overrides: texts ``phantom.key=value``, the value in YAML.
        given: options that the command was called with.

    Raises:
        SettingsError: unreadable file, unknown key or value that makes no sense.
    """
    values = _block(params) if params else {}
    for text in overrides:
        key, equals, value = text.partition("=")
        name = key.strip().removeprefix(f"{BLOCK}.")
        if not equals or name == key.strip():
            raise SettingsError(
                f"expected --set {BLOCK}.key=value, got {text!r}. Example: --set {BLOCK}.patients=50"
            )
        values[name] = _yaml(value, f"--set {key.strip()}")
    values |= given
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(one) for one in error.errors())) from None


def _block(params: Path) -> dict[str, Any]:
    try:
        text = params.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"cannot read {params.name}: {error}. Give the right file to --params."
        ) from error
    whole = _yaml(text, params.name)
    block = whole.get(BLOCK) if isinstance(whole, dict) else {}
    if block is not None and not isinstance(block, dict):
        raise SettingsError(f"{params.name}: expected '{BLOCK}:' to hold keys and values, got {block!r}.")
    values = dict(block or {})
    if values.get("out") is not None:
        values["out"] = params.parent / str(values["out"])
    return values


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{where} is not valid YAML: {error}") from error


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = list(Settings.model_fields)
        near = get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
        return f"unknown setting {BLOCK}.{key}; {hint}"
    return f"{BLOCK}.{key}: {error['msg']}; got {error['input']!r}."
