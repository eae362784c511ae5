"""Lengths of axes as texts, which nodes have as their shapes (see `meta`), and what they are as numbers."""

from __future__ import annotations

import math
import re
from functools import lru_cache

Shape = tuple[str, ...]
"""A length for each axis: "9", "N", "2*N + 1"; in loops "n" and "k" stand for a chunk's samples and columns.

Where a loop is inside another, "n*k" has as many as a chunk's columns of a chunk's samples, and "outer n" is the length
of the chunk around a chunk of the same axis.
"""
OWN = ("k", "n", "N")
"""Symbols of lengths, that of the innermost loop first."""


def numbers(lengths: Shape) -> int:
    """Numbers in the axes whose lengths do not depend on the batch: one sample's part."""
    return math.prod(int(length) for length in lengths if length.isdigit())


FORMULA = re.compile(r"(\w+)⟨([^⟩]*)⟩")
"""Of a length that is what T makes of it, where a program serves any T: what it is at the first T, and the formula."""


def with_formula(number: int, formula: str) -> str:
    """A number in a length, and what makes it of T: for comments."""
    return f"{number}⟨{formula}⟩"


def is_formula(length: str) -> bool:
    """Whether it is that and nothing else."""
    return FORMULA.fullmatch(length) is not None


def shown(text: str) -> str:
    """A text with formulas in the place of the numbers that they made at the first T."""
    return FORMULA.sub(r"\2", text) if "⟨" in text else text


def at_first(length: str) -> str:
    """A length at the first T."""
    return FORMULA.sub(r"\1", length) if "⟨" in length else length


@lru_cache(maxsize=4096)  # most axes of a program have one of a few lengths
def length_at(length: str, size: int) -> int:
    """An axis's length where the batch, or the chunk, is of this size, and each chunk around it of one sample; at the
    first T."""
    terms = [term.split("*") for term in at_first(length).split(" + ")]
    own = next((symbol for symbol in OWN if any(symbol in term for term in terms)), "")
    total = 0
    for term in terms:
        numbers = [size if factor == own else int(factor) if factor.lstrip("-").isdigit() else 1 for factor in term]
        total += math.prod(numbers)
    return total
