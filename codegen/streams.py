"""Beginnings of names that say what a value is: S_conv1 are columns S at what conv1 makes."""

from __future__ import annotations

import re

LETTERS = "gCSMRQPHGWZJdTUAB"
"""Of streams, derivatives, products and factors."""
WORDS = ("sign", "index", "noise")
STREAM = re.compile(rf"^(?:pooled_)?(?P<prefix>[{LETTERS}]|{'|'.join(WORDS)})_")
"""Of a name such as S_layer1_0_conv1: what it is, in front of where it is."""
RUNNING = re.compile(r"^total_")
"""Of a name of what goes on through many blocks, each of which adds to it."""


def begins_as_stream(path: str) -> bool:
    """Whether names after a module's path would read as columns of what is behind its first part: those of g."""
    first = path.partition(".")[0]
    return first in LETTERS or first in WORDS
