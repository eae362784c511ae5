"""The code of a page of the documentation: its fenced blocks, and what it takes to run them.

Blocks of one page run in order, in one namespace and in one empty folder:

    ```python                   is run
    ```python title="a.py"      becomes the file a.py of that folder
    ```bash                     each line that begins with `hbp ` is run
    ```text title="output"      is what the block before it printed; `...` in it stands for anything
    <!-- generated: backward / 1: sigmoid -->
    ```python (or text)         is cut out of `compiled.code`: a part of the file, and headings in it

    <!-- needs: a, b -->        names packages without which the page is skipped

Outputs without `...` and all that is generated can be written anew:
`pytest tests/project/test_docs.py --refresh-golden`.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import linecache
import re
import shlex
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from textwrap import dedent
from typing import Any

from click.testing import CliRunner

BLOCK = re.compile(r"""(?:^<!--\ generated:\ (?P<excerpt>.+?)\ -->\n)?
                       ^```(?P<language>\w*)(?:\ title="(?P<title>[^"]+)")?\n
                       (?P<text>.*?)
                       ^```$""", re.MULTILINE | re.DOTALL | re.VERBOSE)
OUTPUT = "output"
VERSIONS = re.compile(r"^Written by \S+ \S+ with torch \S+;", re.MULTILINE)
"""What a generated file says about the versions that wrote it may differ."""
NEEDS = re.compile(r"^<!-- needs: (.+) -->$", re.MULTILINE)
PARTS = {
    "head": ('"""', '"""'),
    "functions": ("from torch import Tensor\n", "class Result"),
    "forward": ("-> Result:\n", "# ---- backward ----"),
    "backward": ("# ---- backward ----", "# ---- results ----"),
    "results": ("# ---- results ----", "return Result("),
}
"""Where the parts of a generated file begin and end."""


@dataclass(frozen=True)
class Block:
    """One fenced block, and where its text lies in the page."""

    language: str
    title: str
    excerpt: str
    """What it shows of the generated file; empty if it shows none."""
    text: str
    start: int
    end: int


def blocks(page: str) -> list[Block]:
    """All fenced blocks. A fence that is none of ours, an indented one, say, is an error: it would not be run."""
    found = [Block(match["language"], match["title"] or "", match["excerpt"] or "", match["text"], *match.span("text"))
             for match in BLOCK.finditer(page)]
    fences = [line for line in page.splitlines() if line.lstrip().startswith("```")]
    assert len(fences) == 2 * len(found), f"{len(fences)} fences, but {len(found)} blocks"
    return found


def needs(page: str) -> list[str]:
    """The packages, beyond those of the tests, that the page's code imports."""
    return [name.strip() for found in NEEDS.findall(page) for name in found.split(",")]


class Run:
    """One page while it runs in the current folder."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.namespace: dict[str, Any] = {"__name__": "page"}
        self.printed = ""
        """by the Python block or the commands that ran last."""
        self.sources: list[str] = []
        """of the Python blocks that ran."""
        self.rewritten: list[tuple[Block, str]] = []

    def refreshed(self) -> str:
        """Run all blocks; the page with outputs and excerpts as they are now."""
        for block in blocks(self.page):
            now = self._run(block)
            if now is not None and now != block.text:
                self.rewritten.append((block, now))
        page = self.page
        for block, now in reversed(self.rewritten):
            page = page[: block.start] + now + page[block.end :]
        return page

    def _run(self, block: Block) -> str | None:
        """What the block should show, for a block that shows something."""
        if block.excerpt:
            now = excerpt(self.namespace["compiled"].code, block.excerpt)
            same = VERSIONS.sub("", now) == VERSIONS.sub("", block.text)
            return block.text if same else now
        if block.title == OUTPUT:
            return self._output(block)
        if block.language == "python" and block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(self._compiled(block.text), self.namespace)
            self.printed = printed.getvalue()
        elif block.language == "bash":
            self.printed = "".join(hbp(line) for line in block.text.splitlines() if line.startswith("hbp "))
        else:
            assert block.language == "text", f"nobody runs a block of '{block.language}'"
        return None

    def _compiled(self, source: str) -> Any:
        """A block under the name of a file that torch and tracebacks can quote lines of."""
        name = f"block{len(self.sources)}.py"
        self.sources.append(source)
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        return compile(source, name, "exec")

    def _output(self, block: Block) -> str:
        printed = "\n".join(line.rstrip() for line in self.printed.splitlines()) + "\n"
        if "..." not in block.text:
            return printed
        same = doctest.OutputChecker().check_output(block.text, printed, doctest.ELLIPSIS)
        assert same, f"the page shows\n{block.text}\nbut what was printed is\n{printed}"
        return block.text


def hbp(line: str) -> str:
    """What a command line prints; it must succeed."""
    (command,) = [entry for entry in distribution("hbpcompiler").entry_points if entry.name == "hbp"]
    done = CliRunner().invoke(command.load(), shlex.split(line, comments=True)[1:])
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done.output


def excerpt(code: str, wanted: str) -> str:
    """`part`, or `part / heading / heading`: the blocks of that part whose headings begin so, as they follow there."""
    part, *headings = wanted.split(" / ")
    begin, end = PARTS[part]
    text = code.partition(begin)[2].partition(end)[0].strip("\n")
    if not headings:
        return dedent(text).strip("\n") + "\n"
    separator = "\n\n\n" if part == "functions" else "\n\n"
    found = [dedent(piece).strip("\n") for piece in text.split(separator)]
    chosen = [piece for piece in found if any(begins(piece, heading) for heading in headings)]
    assert len(chosen) == len(headings), f"{len(chosen)} blocks of the generated file for {wanted}"
    return "\n\n".join(chosen) + "\n"


def begins(piece: str, heading: str) -> bool:
    """Whether a block has this heading, or a function this name."""
    return re.match(rf"(# |def ){re.escape(heading)}\b", piece) is not None
