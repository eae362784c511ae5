"""What sets torch's generator in a forward, or takes numbers of the operating system's, is refused where it does so."""

import logging
import os
import random
import secrets
import time
import uuid

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.refusals.generators import OWN_GENERATOR
from hbpcompiler.errors import ModelError

OWN = torch.Generator()
SYSTEM = random.SystemRandom()
STATE = torch.get_rng_state()


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(4, 3, dtype=torch.float64)
        self.function = function

    def forward(self, x):
        return self.layer(self.function(x))


def batch():
    return torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))


def seeded(x):
    torch.manual_seed(0)
    return x + torch.rand_like(x)


def forked(x):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return x @ torch.randn(4, 4, dtype=x.dtype)


def only_forked(x):
    with torch.random.fork_rng(devices=[]):
        noise = torch.rand_like(x)
    return x + noise


def put_back(x):
    torch.set_rng_state(STATE)
    return x + torch.rand_like(x)


def seeded_anew(x):
    torch.seed()
    return x + torch.rand_like(x)


own_manual_seed = torch.manual_seed


def by_another_name(x):
    own_manual_seed(0)
    return x + torch.rand_like(x)


def by_the_generator(x):
    torch.default_generator.manual_seed(987654)
    return x + torch.rand_like(x)


@pytest.mark.parametrize("function", [seeded, forked, only_forked, put_back, seeded_anew, by_another_name,
                                      by_the_generator], ids=lambda function: function.__name__)
def test_seeds_are_refused(function):
    with pytest.raises(ModelError, match=r"torch's random generator is seeded or put back") as caught:
        hbp.compile(Applied(function), nn.CrossEntropyLoss(), ["grad"], example_inputs=batch())
    assert "register_buffer" in str(caught.value)
    if function is not by_the_generator:
        assert "test_generators.py:" in str(caught.value)


def test_seeds_in_the_loss_are_refused():
    def loss(output, target):
        torch.manual_seed(0)
        return (output * torch.rand_like(output)).sum()

    with pytest.raises(ModelError, match=r"in the loss, .*torch.manual_seed\(0\)"):
        hbp.compile(nn.Linear(4, 3, dtype=torch.float64), loss, ["grad"], example_inputs=batch())


def test_seeds_outside_are_no_matter():
    compiled = hbp.compile(Applied(lambda x: x + torch.rand_like(x)), nn.CrossEntropyLoss(), ["grad"])
    x, y = batch()
    compiled(x, y)
    torch.manual_seed(3)
    first = float(compiled(x, y).loss)
    torch.manual_seed(3)
    assert float(compiled(x, y).loss) == first


@pytest.mark.parametrize("function", [
    lambda x: x * (1 + os.urandom(1)[0]), lambda x: x * (1 + secrets.randbelow(1000)),
    lambda x: x * (1 + uuid.uuid4().int % 100), lambda x: x * (1 + SYSTEM.random())],
    ids=["urandom", "secrets", "uuid4", "SystemRandom"])
def test_the_systems_numbers_are_refused(function):
    with pytest.raises(ModelError, match=r"test_generators\.py:.*of the operating system"):
        hbp.compile(Applied(function), nn.CrossEntropyLoss(), ["grad"], example_inputs=batch())


@pytest.mark.parametrize("function", [
    lambda x: x * torch.rand(x.shape[0], 1, generator=OWN), lambda x: x * torch.empty(4).bernoulli_(generator=OWN),
    lambda x: x[:, torch.randperm(4, generator=OWN)], lambda x: torch.bernoulli(x.sigmoid(), generator=OWN)],
    ids=["for each sample", "in place", "an order", "of probabilities"])
def test_other_generators_are_refused(function):
    with pytest.raises(ModelError, match=r"test_generators\.py:") as caught:
        hbp.compile(Applied(function), nn.CrossEntropyLoss(), ["grad"], example_inputs=batch())
    assert OWN_GENERATOR in str(caught.value)


def test_no_generator_at_all():
    x, y = batch()
    hbp.compile(Applied(lambda x: x * torch.rand(len(x), 1, generator=None)), nn.CrossEntropyLoss(), ["grad"])(x, y)


def test_a_generator_without_a_state_that_is_not_asked():
    model = Applied(torch.tanh)
    model.system = SYSTEM
    x, y = batch()
    result = hbp.compile(model, nn.CrossEntropyLoss(), ["grad"])(x, y)
    right = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), model.layer.weight)[0]
    torch.testing.assert_close(result.grad["layer.weight"], right, rtol=1e-10, atol=1e-12)


def test_a_forward_that_times_itself():
    def timed(x):
        begin = time.perf_counter()
        out = x.tanh()
        logging.getLogger("timed").debug("%s", time.perf_counter() - begin)
        return out

    x, y = batch()
    model = Applied(timed)
    result = hbp.compile(model, nn.CrossEntropyLoss(), ["grad"])(x, y)
    right = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), model.layer.weight)[0]
    torch.testing.assert_close(result.grad["layer.weight"], right, rtol=1e-10, atol=1e-12)
