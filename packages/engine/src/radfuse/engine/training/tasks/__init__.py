"""What a network learns: to classify images, or to segment volumes."""

from __future__ import annotations

from radfuse.engine.task_settings import ClassificationSettings, SegmentationSettings
from radfuse.engine.training.tasks.classification import ClassificationTask
from radfuse.engine.training.tasks.segmentation import SegmentationTask
from radfuse.engine.training.tasks.task import Task, Validated, Validation, task_of

__all__ = [
    "ClassificationSettings",
    "ClassificationTask",
    "SegmentationSettings",
    "SegmentationTask",
    "Task",
    "Validated",
    "Validation",
    "task_of",
]
