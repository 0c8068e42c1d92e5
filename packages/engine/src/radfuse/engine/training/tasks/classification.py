"""Classification: independent labels, any of which may be unknown for a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from radfuse.engine.errors import SettingsError
from radfuse.engine.tables import LABEL, LOGIT, PATIENT, PROBABILITY, SAMPLE
from radfuse.engine.training.pooling import Pooling, pool_labels, pool_scores
from radfuse.engine.training.tasks.task import Validated
from radfuse.engine.training.thresholds import best_threshold, decide

if TYPE_CHECKING:
    import pandas as pd

    from radfuse.engine.prepared import Prepared

HEAVIEST = 20.0
"""Largest weight of a class: of a label with three positives nothing is learnt but these three."""

_JUDGED = ("f1", "sensitivity", "specificity", "accuracy", "separation")


class MaskedBCE(nn.Module):
    """Binary cross entropy over the labels that are known.

    Args:
        positive_weights: (labels,) weight of the positives; None for 1.
    """

    positive_weights: Tensor | None

    def __init__(self, positive_weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("positive_weights", positive_weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(B, labels) logits and 0, 1 or NaN to a scalar; 0 where nothing is known."""
        known = ~torch.isnan(target)
        each = nn.functional.binary_cross_entropy_with_logits(
            logits, torch.where(known, target, 0.0), reduction="none", pos_weight=self.positive_weights
        )
        return (each * known).sum() / known.sum().clamp(min=1)


class ClassificationTask:
    """Labels to tell.

    Args:
        labels: their names, in the order of the network's outputs.
    """

    kind: Literal["classification", "segmentation"] = "classification"
    metric = "val_auc"

    def __init__(self, labels: Sequence[str]) -> None:
        if not labels:
            raise SettingsError(
                "expected a cohort with at least one label to learn, got none; check its sources."
            )
        self.labels = tuple(labels)

    @property
    def names(self) -> tuple[str, ...]:
        return self.labels

    @property
    def outputs(self) -> int:
        return len(self.labels)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "labels": list(self.labels)}

    def check(self, training: pd.DataFrame, validation: pd.DataFrame) -> None:
        for split, rows in (("train", training), ("val", validation)):
            values = self._labels(rows)
            told = np.logical_and(np.any(values == 1, axis=0), np.any(values == 0, axis=0))
            if not told.any():
                raise SettingsError(
                    f"expected positives and negatives of at least one label in the split {split!r}, which "
                    f"has {len(rows)} samples, got none of {', '.join(self.labels)}. Give it more patients "
                    "(split.fractions)."
                )

    def repeats(self, settings: Any) -> int:
        return 1

    def example(
        self, prepared: Prepared, row: pd.Series[Any], random: np.random.Generator | None, settings: Any
    ) -> tuple[np.ndarray[Any, Any], Tensor]:
        labels = np.array([row[LABEL + name] for name in self.labels], dtype=np.float32)
        return prepared.array(str(row[SAMPLE])), torch.from_numpy(labels)

    def target_is_mask(self) -> bool:
        return False

    def class_weights(self, prepared: Prepared, training: pd.DataFrame) -> Tensor:
        """(labels,) negatives by positives of the training split, at most `HEAVIEST` either way."""
        values = self._labels(training)
        positives, negatives = (values == 1).sum(axis=0), (values == 0).sum(axis=0)
        known = (positives > 0) & (negatives > 0)
        ratio = np.where(known, negatives / np.maximum(positives, 1), 1.0)
        return torch.tensor(np.clip(ratio, 1 / HEAVIEST, HEAVIEST), dtype=torch.float32)

    def loss(self, weights: Tensor | None) -> nn.Module:
        return MaskedBCE(weights)

    def infer(self, network: nn.Module, image: Tensor, settings: Any) -> Tensor:
        logits: Tensor = network(image)
        return logits.float()

    def validation(self, settings: Any) -> ClassificationValidation:
        return ClassificationValidation(self.labels, getattr(settings, "pooling", "mean"))

    def activation(self) -> nn.Module:
        return nn.Sigmoid()

    def answers(self, logits: Tensor, target: Tensor, rows: pd.DataFrame) -> dict[str, np.ndarray[Any, Any]]:
        raw = logits.double().cpu().numpy()
        found: dict[str, np.ndarray[Any, Any]] = {}
        for index, name in enumerate(self.labels):
            found[LABEL + name] = target[:, index].double().cpu().numpy()
        for index, name in enumerate(self.labels):
            found[LOGIT + name] = raw[:, index]
        for index, name in enumerate(self.labels):
            found[PROBABILITY + name] = sigmoid(raw[:, index])
        return found

    def picture(
        self, path: Path, image: Tensor, target: Tensor, logits: Tensor, rows: pd.DataFrame, title: str
    ) -> None:
        from radfuse.engine.pictures import classification_picture

        scores = sigmoid(logits.double().cpu().numpy())
        classification_picture(
            path,
            image.float().cpu().numpy(),
            target.cpu().numpy(),
            scores,
            self.labels,
            list(rows[SAMPLE]),
            title,
        )

    def _labels(self, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
        missing = [name for name in self.labels if LABEL + name not in rows]
        if missing:
            raise SettingsError(
                f"expected a column {LABEL + missing[0]!r} in the prepared table, which has none; run "
                "`radfuse cohort` again."
            )
        return rows[[LABEL + name for name in self.labels]].to_numpy(dtype=np.float64)


class ClassificationValidation:
    """Gathers scores, and judges them: AUC by image, decisions by patient.

    Args:
        labels: their names.
        pooling: how a patient's images become one score.
    """

    def __init__(self, labels: Sequence[str], pooling: Pooling) -> None:
        self._labels = tuple(labels)
        self._pooling = pooling
        self._scores: list[np.ndarray[Any, np.dtype[np.float64]]] = []
        self._truth: list[np.ndarray[Any, np.dtype[np.float64]]] = []
        self._patients: list[str] = []
        self._loss = 0.0

    def add(self, logits: Tensor, target: Tensor, rows: pd.DataFrame, loss: float) -> None:
        self._scores.append(sigmoid(logits.double().cpu().numpy()))
        self._truth.append(target.double().cpu().numpy())
        self._patients += [str(name) for name in rows[PATIENT]]
        self._loss += loss * len(rows)

    def result(self) -> Validated:
        scores, truth = np.concatenate(self._scores), np.concatenate(self._truth)
        _, pooled = pool_scores(scores, self._patients, self._pooling)
        _, known = pool_labels(truth, self._patients)
        aucs = {name: auc(scores[:, i], truth[:, i]) for i, name in enumerate(self._labels)}
        thresholds = {name: best_threshold(pooled[:, i], known[:, i]) for i, name in enumerate(self._labels)}
        judged = {
            name: decide(pooled[:, i], known[:, i], thresholds[name])
            for i, name in enumerate(self._labels)
            # A label with one class alone has no F1 and no threshold worth the name.
            if len(np.unique(known[~np.isnan(known[:, i]), i])) == 2
        }
        means = {field: mean([getattr(one, field) for one in judged.values()]) for field in _JUDGED}
        metrics = {"val_loss": self._loss / len(self._patients), "val_auc": mean(list(aucs.values()))}
        metrics |= {
            f"val_{field}" if field != "separation" else field: value for field, value in means.items()
        }
        if len(self._labels) == 1:
            metrics["optimal_threshold"] = thresholds[self._labels[0]]
        by_label = {name: {"auc": aucs[name], **asdict(one)} for name, one in judged.items()}
        details = {"auc": metrics["val_auc"], **means, "labels": by_label, "pooling": self._pooling}
        return Validated(metrics, details, thresholds)


def auc(scores: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """Area under the ROC curve over the known labels; NaN where they are all of one class."""
    from sklearn.metrics import roc_auc_score

    known = ~np.isnan(truth)
    if len(np.unique(truth[known])) < 2:
        return float("nan")
    return float(roc_auc_score(truth[known], scores[known]))


def mean(values: Sequence[float]) -> float:
    """Mean of the finite values; NaN where there is none."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def sigmoid(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Probabilities of raw logits, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))
