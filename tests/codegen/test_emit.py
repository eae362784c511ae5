"""The file's text of a program written by hand: it runs, and says what it was told."""

import pytest
import torch

from hbpcompiler.codegen.emit import Header, emit
from hbpcompiler.compiler.program.writer import Writer

HEADER = Header(model="Mlp", quantities=("grad", "kflr"), versions="hbpcompiler 0", table=["a table"],
                notes=["A note."])


def program():
    """loss = sum of x * w in chunks; grad of "w"; kflr of "w" without A."""
    writer = Writer()
    state, x, y = (writer.placeholder(name) for name in ("state", "x", "y"))
    with writer.block("first", "forward"):
        w = state["the weight"]
        product = x * w
        loss = (product - y).sum()

    def body(part):
        part.totals["sum"].add_(part["x"].sum(0))

    with writer.block("second", "backward"):
        total = writer.loop(body, op=None, sliced={"x": x}, chunk=2, totals={"sum": (3,)})["sum"]
        block = torch.outer(total, total)
    results = {"grad": {"the weight": total.node}, "kflr": {"the weight": {"A": None, "B": block.node}}}
    writer.graph.output((loss.node, [product.node], results))
    return emit(writer.graph, HEADER, {"x": "x", "y": "y"})


@pytest.fixture(scope="module")
def text():
    return program()


def test_it_runs_and_computes_the_graph(text):
    scope = {"__name__": "emitted"}
    exec(compile(text, "emitted.py", "exec"), scope)
    torch.manual_seed(0)
    x, y, w = torch.randn(5, 3), torch.randn(5, 3), torch.randn(3)
    result = scope["Program"]()({"the weight": w}, x, y)
    torch.testing.assert_close(result.loss, (x * w - y).sum())
    torch.testing.assert_close(result.output, x * w)
    torch.testing.assert_close(result.grad["the weight"], x.sum(0))
    torch.testing.assert_close(result.kflr["the weight"].B, torch.outer(x.sum(0), x.sum(0)))
    assert result.kflr["the weight"].A is None


def test_its_head_says_what_it_was_told(text):
    head = text.split('"""')[1]
    for words in ("Mlp", "grad", "kflr", "hbpcompiler 0", "a table", "A note."):
        assert words in head


def test_headings_and_the_loop(text):
    assert text.index("# ---- backward ----") < text.index("second") < text.index("# ---- results ----")
    assert "in range(0, x.shape[0], 2):" in text


def test_it_is_the_same_again(text):
    assert program() == text
