"""What the models are worth: every figure of the report, from prediction tables alone.

Nothing here imports torch or needs a GPU: whoever has the tables can compute the report again.
"""

from __future__ import annotations

from radfuse.engine.evaluation.results import Results, evaluate

__all__ = ["Results", "evaluate"]
