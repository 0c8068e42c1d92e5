"""Lung nodules in chest CT: a 3D ResNet-18 that tells malignant from benign."""

from __future__ import annotations

from radfuse.ct.modality import CtModality

MODALITY = CtModality()

__all__ = ["MODALITY"]
