"""Lengths of axes as texts, and as numbers."""

import pytest

from hbpcompiler.compiler.program.lengths import length_at, numbers


@pytest.mark.parametrize(("length", "expected"), [("9", 9), ("N", 64), ("2*N", 128), ("3*N + 2", 194), ("N + -1", 63),
                                                  ("k", 64), ("n", 64), ("3*n*k", 192), ("outer n*k", 64),
                                                  ("outer n", 1), ("2*n + k + 5", 71)])
def test_lengths(length, expected):
    assert length_at(length, 64) == expected


def test_numbers_of_one_sample():
    assert numbers(("N", "3", "4")) == 12
    assert numbers(("2*N", "3")) == 3
    assert numbers(()) == 1
