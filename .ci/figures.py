"""The house's figures, counted in the tree: `python .ci/figures.py`, as CONTRIBUTING.md's table has them."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("hbpcompiler", "rules", "codegen")


def main() -> None:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    own = Counter(path.parent.name for path in files if "compiler" in path.parts[len(ROOT.parts):])
    folder, count = own.most_common(1)[0]
    print(f"most modules of the compiler in one folder: {count} ({folder})")
    longest = max(files, key=lambda path: lines[path])
    print(f"longest file: {lines[longest]} lines ({longest.relative_to(ROOT)})")
    length, name = max(found for path in files for found in functions(path))
    print(f"longest function, without its docstring: {length} lines ({name})")
    golden = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests" / "golden").glob("*.txt"))]
    print("longest line of the golden files:", max(len(line) for text in golden for line in text.splitlines()))
    print("lines of the golden files:", sum(text.count("\n") for text in golden))


def functions(path: Path) -> list[tuple[int, str]]:
    """Lines of each function, and where it is."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            found.append(((node.end_lineno or 0) - first.lineno + 1, f"{path.relative_to(ROOT)}: {node.name}"))
    return found


if __name__ == "__main__":
    main()
