"""Quantities of whole data sets, on the scale that one batch of all samples would have."""

from hbpcompiler.accumulate.loop import accumulate
from hbpcompiler.accumulate.shard import shard
from hbpcompiler.accumulate.total import Total

__all__ = ["Total", "accumulate", "shard"]
