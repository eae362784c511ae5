"""The house's figures: what CONTRIBUTING.md says of them is what is counted."""

import runpy
from pathlib import Path

import pytest

from tests.rules.test_vocabulary import KINDS, own_names

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## The house in figures")[2]


@pytest.fixture(scope="module")
def figures():
    return runpy.run_path(str(ROOT / ".ci" / "figures.py"))


def test_contributors_read_what_is_counted(figures):
    missing = [" | ".join(row) for row in figures["rows"]() if f"| {' | '.join(row)} |" not in TABLE]
    assert not missing, "run python .ci/figures.py for the table in CONTRIBUTING.md"


def test_the_vocabulary_is_as_large_as_they_read():
    (row,) = [line for line in TABLE.splitlines() if "test_vocabulary" in line]
    assert row.endswith(f"| {sum(map(len, map(own_names, KINDS)))} |")


def test_variables_are_counted_once(figures):
    lines = ["class Program:", "    def forward(self, x):", "        a, _ = f(x)", "        a = a + 1",
             "        for b in x:", "            g = b"]
    assert figures["variables"]("\n".join(lines)) == ["a", "b", "g"]
