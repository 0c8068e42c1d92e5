"""One answer from all modalities: logistic heads, a weighted average and a meta-learner."""

from __future__ import annotations

from radfuse.ensemble.features import feature_names

__all__ = ["feature_names"]
