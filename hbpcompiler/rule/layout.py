"""What a rule declares of its kernels: how images had better lie in memory for them."""

from __future__ import annotations

from enum import Enum


class Layout(Enum):
    """How an operation's kernels work on images [N, channels, *spatial], where that decides their time."""

    PIXELS = "pixel by pixel"
    """If the weight lies so (channels last), all that follows does, and nothing is rearranged."""
    CHANNELS = "channel by channel"
    """Many columns are sent back so."""
    GROUPS = "groups of channels"
    """Kernels read these one after the other: whatever lies pixel by pixel is copied before, and again behind."""
