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
    """The text of each helper that the graph calls, and of those that these call."""
    wanted = dict.fromkeys(_called(graph))
    for helper in list(wanted):
        wanted |= dict.fromkeys(_needs(helper))
    texts: list[str] = []
    for helper, fallback in FALLBACKS.items():
        if helper in wanted:
            texts += [_source(helper), fallback]
    return [text for text in texts if text]


def _source(helper: Any) -> str:
    """Its definition, without what concerns this package alone."""
    text = re.sub(r"^@idiom\n", "", inspect.getsource(helper))
    return re.sub(r"  # (noqa|type): .*", "", text).rstrip()


def _needs(helper: Any) -> Iterator[Any]:
    """Other helpers that it calls."""
    names = inspect.unwrap(helper).__code__.co_names
    for other in FALLBACKS:
        if other.__name__ in names:
            yield other
            yield from _needs(other)


def _called(graph: fx.Graph) -> Iterator[Any]:
    for node in graph.nodes:
        if isinstance(node.target, Loop):
            yield from _called(node.target.body)
        elif node.target in FALLBACKS:
            yield node.target
