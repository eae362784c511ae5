"""The helper functions that a generated file defines, because its program calls them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from torch import fx

from hbpcompiler.compiler.program.kernels import FALLBACKS
from hbpcompiler.compiler.program.writer import Loop


def definitions(graph: fx.Graph) -> list[str]:
    """The text of each helper that the graph calls."""
    texts = []
    for helper in dict.fromkeys(_called(graph)):
        texts += [re.sub(r"  # (noqa|type): .*", "", inspect.getsource(helper)).rstrip(), FALLBACKS[helper]]
    return [text for text in texts if text]


def _called(graph: fx.Graph) -> Iterator[Any]:
    for node in graph.nodes:
        if isinstance(node.target, Loop):
            yield from _called(node.target.body)
        elif node.target in FALLBACKS:
            yield node.target
