"""Numbers that people know are written so, if that is the same number to the last bit."""

import math

import pytest

from hbpcompiler.codegen.known_numbers import recognised

KNOWN = {
    "2 / 3": 2 / 3, "1 / 128": 1 / 128, "4 / 3": 4 / 3, "8 ** -0.5": 8**-0.5, "1 / 3 ** 0.5": 1 / 3**0.5,
    "(2 / 9) ** 0.5": (2 / 9) ** 0.5, "(2 * math.pi) ** -0.5": (2 * math.pi) ** -0.5,
    "(2 / math.pi) ** 0.5": 0.7978845608028654, "math.pi": math.pi,
}


@pytest.mark.parametrize("text", KNOWN)
def test_it_is_the_very_number(text):
    assert recognised(KNOWN[text]) == text
    assert eval(text) == KNOWN[text]  # of ours


@pytest.mark.parametrize("number", [0.1, 0.25, 1.5, 1e-5, 0.044715, 1.0, 0.6666666, 1e300, 0.0, 0.1234567890123456])
def test_others_are_told_by_their_digits(number):
    assert recognised(number) == ""
