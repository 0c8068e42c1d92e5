"""Layouts: the file names, rules and contents by which teams know their checkpoints."""

from ckptcore.layouts.layout import Layout, Moment, as_given
from ckptcore.layouts.plain import plain

__all__ = ["Layout", "Moment", "as_given", "plain"]
