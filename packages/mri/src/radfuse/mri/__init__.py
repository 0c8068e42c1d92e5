"""Brain tumours, or other structures, in MR volumes: a 3D U-Net that outlines them."""

from __future__ import annotations

from radfuse.mri.modality import MriModality

MODALITY = MriModality()

__all__ = ["MODALITY"]
