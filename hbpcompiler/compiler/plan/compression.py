"""Where columns are compressed: figures of when it pays (`derive.compression` does it)."""

from __future__ import annotations

import torch

MANY = 2
"""Columns are compressed where they are at least so many times the numbers of the value ..."""


FAR = 8
"""... and a value at least so many times as large is still to come: factorising small matrices is slow arithmetic."""


DTYPES = (torch.float32, torch.float64)
"""What torch factorises matrices in."""
