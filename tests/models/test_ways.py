"""Every way of the planner, forced at small size by the limits handed in: the numbers are those of brute force."""

import contextlib
import functools
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.plan.steps import Close, Gather, LocalTail, SampleChunks, Tail
from hbpcompiler.compiler.routes import NEVER, alternatives
from hbpcompiler.compiler.routes.chunks import NativeProduct
from hbpcompiler.compiler.routes.gram import GramDiagonal
from hbpcompiler.errors import OptionError
from hbpcompiler.reference import kflr, reference
from tests.agreement import close
from tests.graph_models import FEW, MODELS, made
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.quantities.test_quantities import check_exact
from tests.selection import cases, few, slow
from tests.shared_exports import keep
from tests.uses import USES, used
from tests.ways import WAYS

QUANTITIES = ["grad", "batch_l2", "batch_inner", "variance", "diag_ggn", "diag_h"]


PLANNED = [way for way in WAYS if not way.startswith("route")]
"""What the planner decides; routes are but chosen."""
LARGE_FILES = [way for way in WAYS if way.startswith("the file of a large network")]


@functools.cache
def network():
    """Small, with all that ways differ in: a pool, columns on images and on vectors, a narrow place. No test may change
    the model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Sigmoid(), nn.Conv2d(2, 3, 3), nn.Sigmoid(),
                          nn.MaxPool2d(2),
                          nn.Flatten(), nn.Linear(12, 5), nn.Softsign(), nn.Linear(5, 2), nn.Tanh(), nn.Linear(2, 4))
    return keep(model.double()), torch.randn(3, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 3, 1])


def with_loops(compiled):
    """All steps of the plan: loops, and what is in whatever loop."""
    steps = list(compiled._current().draft.plan.steps)
    for step in steps:
        steps += step.steps if isinstance(step, Tail | SampleChunks) else ()
    return steps


def met(compiled, kind):
    """Whether a step of this kind is in the plan, in whatever loop."""
    return any(type(step) is kind for step in with_loops(compiled))


def inner(compiled, kind):
    """All steps of this kind, those of loops too."""
    return [step for step in compiled._current().draft.plan.flat() if isinstance(step, kind)]


def inner_tails(compiled):
    """The tails that are in no other loop."""
    return [step for step in compiled._current().draft.plan.steps if isinstance(step, Tail)]


def has_some_columns(compiled):
    """Whether a tail has more than one column at a time, and not all."""
    return any(type(step) is Tail and 1 < step.columns < step.piece.columns for step in with_loops(compiled))


def taken(compiled, kind):
    """Whether some closing goes by this kind of route."""
    return any(isinstance(choice.route, kind) for step in inner(compiled, Close) for choice in step.choices)


HAPPENS = {
    "tails of one column": lambda compiled: met(compiled, Tail),
    "tails of some columns": lambda compiled: has_some_columns(compiled),
    "tails of some samples": lambda compiled: met(compiled, Tail),
    "ends of ways in chunks": lambda compiled: met(compiled, Tail),
    "all columns, sample by sample": lambda compiled: met(compiled, SampleChunks),
    "all columns, some samples": lambda compiled: met(compiled, SampleChunks),
    "tails inside chunks of samples": lambda compiled: met(compiled, SampleChunks) and met(compiled, Tail),
    "neighbourhoods": lambda compiled: met(compiled, LocalTail),
    "whole images": lambda compiled: not met(compiled, LocalTail),
    "pooled": lambda compiled: any(step.pooled for step in inner(compiled, Close)),
    "not pooled": lambda compiled: not any(step.pooled for step in inner(compiled, Close)),
    "compressed": lambda compiled: any(step.compresses for step in inner(compiled, Gather)),
    "nothing fused": lambda compiled: ".abs()" in compiled.code,
    "nothing fits the cache": lambda compiled: ".shape[0], 1):" in compiled.code,
    "one sample and one column everywhere": lambda compiled: met(compiled, Tail),
    "inner products sample by sample": lambda compiled: taken(compiled, GramDiagonal),
    "chunks in chunks in chunks": lambda compiled: met(compiled, SampleChunks) and taken(compiled, GramDiagonal),
    "neighbourhoods inside chunks of samples": lambda compiled: (met(compiled, SampleChunks)
                                                                 and met(compiled, LocalTail)),
    "pooled inside tails": lambda compiled: any(own.pooled for step in inner_tails(compiled) for own in step.steps
                                                if isinstance(own, Close)),
    **dict.fromkeys(LARGE_FILES, lambda compiled: "class Ends" in compiled.code),
    "kernels for one sample": lambda compiled: taken(compiled, NativeProduct),
}
"""Way -> whether a program of `network` goes it; routes' names are looked for in the table of routes."""


@functools.cache
def expected():
    """The numbers of `network` by brute force, and those whose rounding they may have."""
    model, X, y = network()
    found = {quantity: reference(model, nn.CrossEntropyLoss(), [X], y, quantity)
             for quantity in (*QUANTITIES, "second_moment")}
    return found, {**found, "variance": found["second_moment"]}, kflr(model, nn.CrossEntropyLoss(), [X], y)


@pytest.mark.parametrize("way", cases(WAYS, lambda way: not way.startswith("route"),
                                      "every route is tried by itself in routes/test_each_route"))
def test_each_way_is_gone_and_gives_the_same(way):
    model, X, y = network()
    compiled = hbp.compile(model, quantities=[*QUANTITIES, "kflr"], limits=WAYS[way])
    result, (numbers, scales, factors) = compiled(X, y), expected()
    for quantity in QUANTITIES:
        for name, value in numbers[quantity].items():
            close(result[quantity][name], value, f"{quantity} of {name}", scales[quantity][name])
    for name, (A, B) in factors.items():
        close(result.kflr[name].B, B, f"B of {name}")
        if A is not None:
            close(result.kflr[name].A, A, f"A of {name}")
    assert HAPPENS[way](compiled) if way in HAPPENS else is_route_taken(compiled, way)


def is_route_taken(compiled, way):
    """Whether it is, wherever it could give alone all that is closed; in tails of some columns, if that is asked."""
    name = way.removeprefix("route ").removeprefix("in tails ")
    is_taken = not any(other.route.name == name and other.kinds == step.kinds and other.cost != NEVER
                       for step in compiled._current().draft.plan.closings()
                       for other in alternatives(step.site, step.choices))
    return is_taken and (has_some_columns(compiled) or "in tails" not in way)


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())), st.sampled_from(list(WAYS)))
def test_random_chains(setting, way):
    check_exact(*setting, ["variance", "diag_ggn", "diag_h"], limits=WAYS[way])


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())), st.sampled_from(LARGE_FILES))
def test_random_chains_as_large_networks(setting, way):
    """Alike layers of other sizes share functions."""
    check_exact(*setting, ["batch_l2", "diag_ggn", "diag_h"], limits=WAYS[way])


@few(1, "the same functions of other graphs")
@pytest.mark.parametrize("name", MODELS)
def test_graphs_as_large_networks(name):
    model, X, y = made(name)
    check_exact(model, nn.CrossEntropyLoss(), X, y, ["batch_l2", "diag_ggn", "diag_h"], limits=WAYS[LARGE_FILES[0]])


@functools.cache
def expected_of_graph(name):
    """The numbers of a test graph by brute force, and those whose rounding they may have."""
    model, X, y = made(name)
    found = {quantity: reference(model, nn.CrossEntropyLoss(), [X], y, quantity)
             for quantity in ("variance", "second_moment", "diag_ggn", "diag_h")}
    return found, {**found, "variance": found["second_moment"]}


def check_graph(name, way):
    model, X, y = made(name)
    numbers, scales = expected_of_graph(name)
    result = hbp.compile(model, quantities=["variance", "diag_ggn", "diag_h"], limits=WAYS[way], verify=False)(X, y)
    for quantity in ("variance", "diag_ggn", "diag_h"):
        assert result[quantity].keys() == numbers[quantity].keys()
        for key, value in numbers[quantity].items():
            close(result[quantity][key], value, f"{quantity} of {key} by {way}", scales[quantity][key])


@few(3, "each graph goes one way of those below")
@pytest.mark.parametrize(("name", "way"), [(name, PLANNED[place % len(PLANNED)]) for place, name in enumerate(MODELS)])
def test_each_graph_goes_a_way(name, way):
    check_graph(name, way)


@given(st.sampled_from(list(MODELS)), st.sampled_from(list(WAYS)))
def test_graphs(name, way):
    check_graph(name, way)


@slow("a minute of four graphs; a pair is drawn for make test")
@pytest.mark.parametrize("name", FEW)
def test_every_way_of_a_graph(name):
    """All but the single routes, which `routes/test_each_route` tries at every form of a contraction."""
    for way in PLANNED:
        check_graph(name, way)


@functools.cache
def expected_of(name):
    """The numbers of a network of `uses` by brute force, and those whose rounding they may have."""
    model, X, y = used(name)
    found = {quantity: reference(model, nn.CrossEntropyLoss(), [X], y, quantity)
             for quantity in ("variance", "second_moment", "diag_h")}
    return found, {**found, "variance": found["second_moment"]}


def check_uses(name, way):
    model, X, y = used(name)
    numbers, scales = expected_of(name)
    result = hbp.compile(model, quantities=["variance", "diag_h"], limits=WAYS[way])(X, y)
    for quantity in ("variance", "diag_h"):
        assert result[quantity].keys() == numbers[quantity].keys()
        for key, value in numbers[quantity].items():
            close(result[quantity][key], value, f"{quantity} of {key} by {way}", scales[quantity][key])


@given(st.sampled_from(list(USES)), st.sampled_from(list(WAYS)))
def test_a_use_of_a_parameter_in_a_way(name, way):
    check_uses(name, way)


@slow("one pair of them is drawn for make test")
@pytest.mark.parametrize("name", USES)
def test_every_use_of_a_parameter_in_every_way_of_columns(name):
    """All but the single routes, which `routes/test_each_route` tries at every form of a contraction."""
    left_out = ("route", "nothing fused", "whole images", "not pooled")
    of_images = ("neighbourhoods", "pooled", "kernels")
    for way in WAYS:
        if not way.startswith(left_out if name == "images" else (*left_out, *of_images)):
            check_uses(name, way)


OWN_LOSSES = {
    "product": lambda output, y: (output.exp() * output.sin()).sum(1).mean(),
    "focal": lambda output, y: focal(nn.functional.cross_entropy(output, y, reduction="none")).mean(),
}


def focal(losses):
    return (1 - torch.exp(-losses)) ** 2 * losses


@functools.cache
def chain():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4)).double()
    return keep(model), torch.randn(60, 2, dtype=torch.float64), torch.arange(60) % 4


@functools.cache
def expected_of_own(loss):
    model, X, y = chain()
    return {quantity: reference(model, OWN_LOSSES[loss], [X], y, quantity) for quantity in ("diag_ggn", "diag_h")}


def check_own(loss, **options):
    model, X, y = chain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hbp.IndefiniteCurvatureWarning)
        result = hbp.compile(model, OWN_LOSSES[loss], ["diag_ggn", "diag_h"], verify=False, **options)(X, y)
    for quantity, numbers in expected_of_own(loss).items():
        for name, value in numbers.items():
            close(result[quantity][name], value, f"{quantity} of {name}")


@given(st.sampled_from(list(OWN_LOSSES)), st.sampled_from(list(WAYS)))
def test_losses_with_curvature_of_their_own(loss, way):
    """Several pieces end at a parameter, of which some have gone their way before the loop over samples."""
    check_own(loss, limits=WAYS[way])


@slow("5 s; each way, and each such loss, has tests")
@pytest.mark.parametrize("loss", cases(OWN_LOSSES, ["product"], "the same budgets"))
def test_losses_with_curvature_of_their_own_within_budgets(loss):
    kept = 0
    for budget in range(48_000, 100_000, 6_000):
        with contextlib.suppress(OptionError):
            check_own(loss, memory_budget=budget)
            kept += 1
    assert kept > 1
