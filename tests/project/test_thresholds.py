"""No threshold stands in the stages that decide by cost: those are fields of `Limits`, which is handed in."""

import ast
from pathlib import Path

import hbpcompiler.compiler

ROOT = Path(hbpcompiler.compiler.__path__[0])
STAGES = ("plan", "routes", "optimise", "cost", "derive")
COUNTED = {
    "cost.free_memory.UNLIMITED_BYTES": "what systems say for no limit",
    "cost.memory.ROUNDS": "until it stays",
    "cost.program_cost.ROUNDING": "of a fit",
    "cost.program_cost.SAMPLES": "of a fit",
    "cost.quick.PASSES": "a bound",
    "derive.cross.IMAGE": "axes",
    "optimise.onednn.ITEMSIZE": "of float32",
    "optimise.said_lengths.LEFT": "what torch calls the length that is left",
    "optimise.simplify.TURNED": "axes",
    "plan.exact.MANY": "columns that are told of",
    "plan.joint.LISTED": "names that are shown",
    "plan.large_factors.MOST": "patterns that are shown",
    "plan.pixels.IMAGE": "axes",
    "plan.precision.SQUARES": "what float16 does not hold",
    "plan.table.(CLOSINGS_WIDTH, TABLE_WIDTH)": "signs of a line",
    "routes.__init__.MOST_ROUTES": "routes that there are",
    "routes.inner.TILES": "passes, counted",
}
"""Numbers with a name, which no machine moves."""


def test_what_is_fitted_is_a_limit():
    found = set()
    for stage in STAGES:
        for path in sorted((ROOT / stage).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found |= {f"{module}.{name}" for name in numbers(path.read_text(encoding="utf-8"))}
    assert found == set(COUNTED)


MOST_AXES = 4
"""With numbers up to here axes and operands are counted."""


def test_nothing_is_compared_with_a_number_that_is_no_limit():
    found = [f"{path.relative_to(ROOT)}: {line}" for stage in STAGES for path in sorted((ROOT / stage).rglob("*.py"))
             for line in compared(path.read_text(encoding="utf-8"))]
    assert not found, found


def test_how_comparisons_are_found():
    assert compared("def f(x):\n    if len(x) > 2 and x[0] < 64 <= y:\n        return max(x, 2.5, 256)\n") == [
        "x[0] < 64 <= y", "max(x, 2.5, 256)"]


def compared(text):
    """What compares with a number beyond those of axes, or takes the larger or the lesser of it and others."""
    found = []
    for node in ast.walk(ast.parse(text)):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else (
            node.args if isinstance(node, ast.Call) and ast.unparse(node.func) in ("min", "max") else [])
        if any(isinstance(side, ast.Constant) and type(side.value) in (int, float) and abs(side.value) > MOST_AXES
               for side in sides):
            found.append(ast.unparse(node))
    return found


def test_how_numbers_are_found():
    text = "A = 2**21\nB, C = 1, -0.5\nD = f(3)\nE = (\"a\", 1)\nF: int = 4\nG = A\n\ndef f(x):\n    H = 5\n"
    assert numbers(text) == ["A", "(B, C)", "F"]


def numbers(text):
    """What a module's own lines give a number, or some of them."""
    found = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and is_number(node.value):
            found += map(ast.unparse, node.targets if isinstance(node, ast.Assign) else [node.target])
    return found


def is_number(node):
    """A number, some of them, or what is computed of numbers alone."""
    allowed = (ast.operator, ast.unaryop, ast.BinOp, ast.UnaryOp, ast.Tuple, ast.expr_context)
    return all(isinstance(part, allowed) or (isinstance(part, ast.Constant) and type(part.value) in (int, float))
               for part in ast.walk(node))
