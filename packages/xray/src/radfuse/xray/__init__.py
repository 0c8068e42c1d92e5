"""Chest radiographs: a ResNet-50 for the findings of ChestX-ray14, or any others."""

from __future__ import annotations

from radfuse.xray.modality import XrayModality

MODALITY = XrayModality()

__all__ = ["MODALITY"]
