"""Whose line a warning is about, and whether there is somewhere to write to."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import torch

_WITHIN = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent))
"""This package and torch."""


def level_of_caller() -> int:
    """The `stacklevel` of a warning that is raised where this is called: the nearest line that is neither in this
    package nor in torch, through which optimizers are called."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and frame.f_code.co_filename.startswith(_WITHIN):
        frame, level = frame.f_back, level + 1
    return level


def has_stderr() -> bool:
    """Whether a process can write there: one that runs in the background may have none, or have closed it."""
    return sys.stderr is not None and not getattr(sys.stderr, "closed", False)
