"""Masks that say the same of all elements of a row."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from hbpcompiler.compiler.trace.rows.rows import Writer
from hbpcompiler.compiler.trace.rows.wide_masks import narrowed


@pytest.mark.parametrize(("written", "is_whole"), [
    (lambda m: m[:, None], True), (lambda m: m.unsqueeze(-1).expand(5, 3), True), (lambda m: m.expand(3, 5), False),
    (lambda m: m.view(5, 1), True), (lambda m: m, False), (lambda m: m[None], False)])
def test_narrowed(written, is_whole):
    mask = torch.ones(5, dtype=torch.bool)
    graph = make_fx(written, tracing_mode="fake")(mask).graph
    *_, made, _ = graph.nodes
    writer = Writer(graph)
    for node in graph.nodes:
        if node.op != "output":
            writer.alike.enter(node)
    with graph.inserting_after(made):
        found = narrowed(made, writer)
    assert (found is not None and found.meta["val"].shape == (5,)) is is_whole
