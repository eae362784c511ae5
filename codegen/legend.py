"""What the prefixes of names mean: in the head of a generated file stands what occurs in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

LEGEND: Mapping[str, str] = {
    "g": "gradient",
    "C": "weighted gradient",
    "S": "GGN columns",
    "M": "sampled GGN columns",
    "R": "residual columns",
    "Q": "sampled residual columns",
    "H": "the loss's Hessian, sample by sample",
    "G": "averaged GGN",
    "W": "weighted sums of GGN columns",
    "Z": "weighted sums of sampled GGN columns",
    "J": "derivatives of the model's output",
    "d": "local derivative",
    "sign": "signs of columns",
    "pooled": "columns where a pool took its values",
    "index": "where it took them",
    "T": "a parameter's cotangents, by sample and column",
    "sum": "sum_n T",
    "norm": "sum of T^2 by sample",
    "squares": "sum_{nk} T^2",
    "factor": "sums of outer products of columns",
    "inputs": "sums of outer products of inputs",
    "basis": "what cotangents are seen in, as columns",
    "turned": "sum_{nk} (Q_B^T T Q_A)^2",
    "mean": "such a sum, divided by N",
    "A": "Kronecker factor of the inputs",
    "B": "Kronecker factor of the columns",
}

MEAN = "mean"
"""In front of other prefixes."""
CHUNKS = ("A loop takes so many samples or columns a turn (chunk= in calls) that what a turn makes stays in the "
          "processor's cache, or within the memory allowed.")
LOOP = re.compile(r"^ *for \w+ in range\(0, .+, \d+\):  # \d+ \w+ a turn\b", re.M)
"""Over chunks."""
TARGETS = re.compile(r"^ *\(?([A-Za-z_][\w, \[\]]*?)\)?(?:\[.*?\])?(?:: [^=]*)? = ", re.M)
"""What a statement assigns to."""
NAME = re.compile(r"[A-Za-z_]\w*")


def legend(code: str, tables: Collection[str] = ()) -> str:
    """One sentence on the names that occur in the code, and in those of its tables."""
    made = {prefix for table in tables for prefix in _prefixes(table)}
    for targets in TARGETS.findall(code):
        made |= {prefix for name in NAME.findall(targets) for prefix in _prefixes(name)}
    found = [f"{prefix}_ {meaning}" for prefix, meaning in LEGEND.items() if prefix in made]
    what = f"Names: {', '.join(found)}. " if found else ""
    chunks = f" {CHUNKS}" if LOOP.search(code) else ""
    return f"{what}Shapes stand behind each line: N samples; columns are [N, K, ...].{chunks}"


def _prefixes(name: str) -> list[str]:
    """What a name begins with: of mean_factor_ggn both words; of an operation that is called mean none."""
    first, _, rest = name.partition("_")
    if first != MEAN:
        return [first]
    second = rest.partition("_")[0]
    return [MEAN, second] if second in LEGEND else []
