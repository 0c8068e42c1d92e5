"""Layouts: the file names, rules and contents by which teams know their checkpoints."""

from ckptcore.layouts.layout import Layout, Moment, as_given, recall_history
from ckptcore.layouts.plain import plain
from ckptcore.layouts.resumable import resumable
from ckptcore.layouts.run_folder import run_folder
from ckptcore.layouts.saved_models import saved_models
from ckptcore.layouts.staged import staged
from ckptcore.layouts.trainer_node import TrainerNodeSettings, trainer_node

__all__ = [
    "Layout",
    "Moment",
    "TrainerNodeSettings",
    "as_given",
    "plain",
    "recall_history",
    "resumable",
    "run_folder",
    "saved_models",
    "staged",
    "trainer_node",
]
