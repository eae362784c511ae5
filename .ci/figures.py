"""The house's figures, counted in the tree: `python .ci/figures.py` prints CONTRIBUTING.md's table as it should be.

Lines of large programs are not counted here: `python -m benchmarks.large` compiles these, and takes its time.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("hbpcompiler", "rules", "codegen")
OPERATIONS = """
abs add addmm all any cast cat chunk clamp cumsum div dot einsum exp expand flatten gather getitem index item log mask
matmul max mean min mul narrow neg new_ones new_zeros pad part permute pow product repeat reshape scatter select sign
slice split sqrt square squeeze stack sub sum t total transpose unflatten unfold unsqueeze view where
"""
"""What says how a value was made and not what it is."""
Row = tuple[str, str, str]
"""What is counted, before (73 modules in one folder), and now."""


def rows() -> list[Row]:
    """What is counted, in the order of the table."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    own = Counter(path.parent.name for path in files if "compiler" in path.parts[len(ROOT.parts):])
    folder, count = own.most_common(1)[0]
    length = max(found for path in files for found in functions(path))
    golden = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests" / "golden").glob("*.txt"))]
    anonymous = [name for text in golden for name in variables(text)
                 if re.sub(r"_\d+$", "", name).strip("_") in OPERATIONS.split()]
    return [
        ("most modules of the compiler in one folder", "73", f"{count} (`{folder}`)"),
        ("longest file, in lines", "349", f"{max(lines.values())}"),
        ("longest function, in lines without its docstring", "113", f"{length}"),
        ("longest line of the golden files", "157", f"{max(map(len, ''.join(golden).splitlines()))}"),
        ("variables of the golden files that are called after an operation alone", "67", f"{len(anonymous)}"),
    ]


def functions(path: Path) -> list[int]:
    """Lines of each function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            found.append((node.end_lineno or 0) - first.lineno + 1)
    return found


def variables(text: str) -> list[str]:
    """What the program of a generated file assigns to, each name once."""
    program = next(node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == "Program")
    names = [node.id for node in ast.walk(program) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return [name for name in dict.fromkeys(names) if name != "_"]


if __name__ == "__main__":
    for row in rows():
        print(f"| {' | '.join(row)} |")
