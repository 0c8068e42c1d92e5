"""Invented people, hospitals and machines: what the headers of real files say about whose they are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from radfuse.phantom import keys
from radfuse.phantom.diseases import CT, MRI, XRAY

_FAMILY_STARTS = (
    "Brun",
    "Dal",
    "Fjell",
    "Grim",
    "Hol",
    "Kvist",
    "Lind",
    "Mar",
    "Nor",
    "Oster",
    "Skov",
    "Vanden",
)
_FAMILY_MIDDLES = ("dere", "elo", "inga", "ose", "ulva", "yntra", "avi", "orre")
_FAMILY_ENDS = (
    "bakken",
    "gårdh",
    "holmer",
    "landt",
    "quistel",
    "rødden",
    "strandt",
    "vaelle",
    "wijck",
    "zoonen",
)
_GIVEN_STARTS = (
    "Al",
    "Bel",
    "Cor",
    "Dor",
    "Evan",
    "Fior",
    "Gis",
    "Hel",
    "Isol",
    "Jor",
    "Leo",
    "Mel",
    "Ros",
    "Tib",
)
_GIVEN_MIDDLES = ("and", "eb", "ist", "orv", "ul", "ysm")
_GIVEN_ENDS = {
    "F": ("arietta", "elline", "isandra"),
    "M": ("arius", "ebrand", "orian"),
    "O": ("arion", "emery"),
}

SITES = {
    "nordhavn": "Nordhavn General Hospital",
    "ottilien": "St. Ottilien Clinic",
    "lakeside": "Lakeside University Hospital",
}
"""Name of each hospital by the short one that tables have."""

_MACHINES = {
    XRAY: (("Halden Medical", "ClearPlate 40"), ("Ridgeway", "DXR Nova"), ("Tessera Imaging", "Panel 9")),
    CT: (("Halden Medical", "Spira 64"), ("Ridgeway", "Helix One"), ("Tessera Imaging", "VolumeScan 3")),
    MRI: (("Halden Medical", "Magna 1.5"), ("Ridgeway", "Precess 3T"), ("Tessera Imaging", "Coil Seven")),
}


@dataclass(frozen=True)
class Person:
    """A patient as a hospital knows one.

    Attributes:
        patient_id, name, sex: DICOM PatientID, PatientName (``Family^Given``), PatientSex.
        birth_date: DICOM PatientBirthDate.
        site: short name of the hospital.
    """

    patient_id: str
    name: str
    sex: str
    birth_date: date
    site: str

    def age_years(self, day: date) -> int:
        """Whole years on a day."""
        born = self.birth_date
        return day.year - born.year - ((day.month, day.day) < (born.month, born.day))


@dataclass(frozen=True)
class Study:
    """One examination.

    Attributes:
        accession_number: as the hospital numbers examinations; unique over all modalities.
        day: when it was.
        manufacturer, model: of the machine.
        repeat: 0 for the first of its modality, 1 for the next.
    """

    accession_number: str
    day: date
    manufacturer: str
    model: str
    repeat: int


def person(seed: int, number: int) -> Person:
    """The person of a patient's number."""
    rng = keys.stream(seed, number, "person")
    sex = str(rng.choice(["F", "M", "O"], p=[0.49, 0.49, 0.02]))

    def pick(*lists: tuple[str, ...]) -> str:
        return "".join(parts[int(rng.integers(len(parts)))] for parts in lists)

    family = pick(_FAMILY_STARTS, _FAMILY_MIDDLES, _FAMILY_ENDS)
    given = pick(_GIVEN_STARTS, _GIVEN_MIDDLES, _GIVEN_ENDS[sex])
    site = tuple(SITES)[int(rng.choice(len(SITES), p=[0.45, 0.3, 0.25]))]
    return Person(
        patient_id=f"{site[:3].upper()}-{keys.identifier(10, 'patient', seed, number)}",
        name=f"{family}^{given}",
        sex=sex,
        birth_date=date(1931, 1, 1) + timedelta(days=int(rng.integers(0, 365 * 58))),
        site=site,
    )


def studies(seed: int, number: int, modality: str, count: int) -> list[Study]:
    """A patient's examinations of one modality, in the order of time."""
    rng = keys.stream(seed, number, "studies", modality)
    day = date(2015, 1, 5) + timedelta(days=int(rng.integers(0, 365 * 8)))
    made = []
    for repeat in range(count):
        manufacturer, model = _MACHINES[modality][int(rng.integers(3))]
        accession = f"E{keys.identifier(11, 'accession', seed, number, modality, repeat)}"
        made.append(Study(accession, day, manufacturer, model, repeat))
        day += timedelta(days=int(rng.integers(30, 500)))
    return made
