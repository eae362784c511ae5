"""Where random generators stand, so that two runs draw the same and a draw is seen."""

import random
from dataclasses import replace

import pytest
import torch

from hbpcompiler.compiler.prove.draws import Draws, drawing

CPU = torch.device("cpu")


def test_draws_are_put_back():
    torch.manual_seed(0)
    before = Draws.now(CPU)
    with drawing(before):
        first = torch.rand(3), random.random()
        assert Draws.now(CPU).torch_drew(before)
        assert Draws.now(CPU).python_drew(before)
    assert not Draws.now(CPU).torch_drew(before)
    assert not Draws.now(CPU).python_drew(before)
    with drawing(before):
        assert torch.equal(torch.rand(3), first[0])
        assert random.random() == first[1]


def test_numpys_draws_are_seen_however_its_arrays_are_printed():
    """A seed that differs in the array alone: numpy prints long ones without their middle when it is told to."""
    numpy = pytest.importorskip("numpy")
    before = Draws.now(CPU)
    kind, key, *rest = before.numpy
    other = replace(before, numpy=(kind, key ^ numpy.eye(1, len(key), 300, dtype=key.dtype)[0], *rest))
    with numpy.printoptions(threshold=5):
        assert other.python_drew(before)
        assert not replace(before).python_drew(before)


@pytest.mark.filterwarnings("ignore:get_state and legacy")
def test_draws_of_another_generator_of_numpys_are_seen():
    numpy = pytest.importorskip("numpy")
    own = numpy.random.get_bit_generator()
    numpy.random.set_bit_generator(numpy.random.PCG64(3))
    try:
        before = Draws.now(CPU)
        assert not Draws.now(CPU).python_drew(before)
        numpy.random.rand()
        assert Draws.now(CPU).python_drew(before)
    finally:
        numpy.random.set_bit_generator(own)
