"""Randomness by name: each draw has its own stream, named by the cohort's seed, patient and purpose.

Nothing is carried from one draw to the next, so a patient is the same whichever others are written, in
whatever order and by however many processes.
"""

from __future__ import annotations

from hashlib import sha256

import numpy as np

ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
"""32 signs without those that are read for one another (0 and O, 1 and I)."""


def _digest(*parts: object) -> int:
    text = "/".join(str(part) for part in ("radfuse.phantom", *parts))
    return int.from_bytes(sha256(text.encode()).digest(), "big")


def stream(seed: int, patient: int, *purpose: object) -> np.random.Generator:
    """The random numbers of one purpose for one patient.

    Args:
        seed: of the cohort.
        patient: its number.
        purpose: what the numbers are for, such as ``"xray", 0``.
    """
    return np.random.Generator(np.random.PCG64(_digest(seed, patient, *purpose)))


def identifier(length: int, *parts: object) -> str:
    """An id of `length` signs of `ALPHABET`, the same for the same parts; 5 bits a sign."""
    value = _digest("id", *parts)
    return "".join(ALPHABET[value >> 5 * place & 31] for place in range(length))


def uid(*parts: object) -> str:
    """A DICOM unique identifier under the root for UUIDs.

    Source: DICOM PS3.5 annex B.2 (2.25 followed by the UUID as a decimal number), ITU-T X.667.
    """
    value = _digest("uid", *parts) & (1 << 128) - 1
    version_8 = value & ~(0xF << 76) | 8 << 76
    variant_1 = version_8 & ~(0x3 << 62) | 2 << 62
    return f"2.25.{variant_1}"
