"""Columns of each position alone, as columns of a sample."""

from hbpcompiler.rule.position_columns import positionwise

__all__ = ["positionwise"]
