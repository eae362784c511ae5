"""`into=`: results are added to tensors that the caller keeps, in their memory, whatever makes them."""

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.program.adding import adding, slots_of
from hbpcompiler.compiler.program.check import Level, check_program
from tests.models.test_ways import network
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import slow
from tests.ways import WAYS

QUANTITIES = ["grad", "batch_l2", "second_moment", "variance", "diag_h", "kflr"]
ADDED = [name for name in QUANTITIES if name != "batch_l2"]


def tensors(result, names):
    """Every tensor of these quantities, by (quantity, parameter, field)."""
    found = {}
    for quantity in names:
        for name, value in result[quantity].items():
            parts = value._asdict() if isinstance(value, tuple) else {"": value}
            found |= {(quantity, name, field): part for field, part in parts.items() if part is not None}
    return found


def copies(result, names):
    return {key: value.clone() for key, value in tensors(result, names).items()}


def check(compiled, first, second, names, decay=0.9, weight=0.3, **given_to):
    """`first` decays and a share of `second` is added, in `first`'s own memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept, other = compiled(*first), compiled(*second)
        before, alone = copies(kept, names), copies(other, names)
        own = tensors(kept, names)
        result = compiled(*second, into={name: kept[name] for name in names}, decay=decay, weight=weight, **given_to)
    for key, value in tensors(result, names).items():
        wanted = decay * before[key] + weight * alone[key]
        scale = (decay * before[key]).abs() + (weight * alone[key]).abs()
        assert ((value - wanted).abs() <= 1e-12 * scale.max() + 1e-300).all(), key
        assert value.data_ptr() == own[key].data_ptr()
    assert torch.equal(result.loss, other.loss)
    for name, rows in result.batch_l2.items() if "batch_l2" in result else ():
        assert torch.equal(rows, other.batch_l2[name])


CHAINS = st.one_of(settings_of(dense_chains()), settings_of(spatial_chains()))


@given(CHAINS, st.sampled_from(["python", "torchscript"]))
def test_random_chains(setting, backend):
    model, loss, X, y = setting
    model.eval()
    compiled = hbp.compile(model, loss, QUANTITIES, backend=backend)
    check(compiled, (X, y), (X.flip(0) * 0.5, y), ADDED)


@given(st.sampled_from(list(WAYS)))
def test_each_way(way):
    model, X, y = network()
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), QUANTITIES, limits=WAYS[way])
    check(compiled, (X, y), (X.flip(0), y), ADDED)


def stack(layers, loss="mean"):
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(layers) for layer in (nn.Linear(3, 3), nn.Tanh())]).double()
    return model, nn.CrossEntropyLoss(reduction=loss), torch.randn(4, 3).double(), torch.tensor([0, 1, 2, 0])


@slow("a large network")
def test_a_large_program_writes_it_once_for_many_modules():
    model, loss, X, y = stack(12, "sum")
    compiled = hbp.compile(model, loss, QUANTITIES)
    check(compiled, (X, y), (X * 2, y), ADDED)
    built = compiled._current()
    code = built.draft.written(adding(built.draft.graph, [*slots_of(built.draft.graph)], {}))
    assert code.count("added_(") < len(built.slots)
    check_program(adding(built.draft.graph, [*built.slots], {}), Level.SHAPED)


def test_the_first_call_adds_once_it_is_proven_and_draws_are_those_of_a_plain_call():
    model, loss, X, y = stack(2)
    drawn = [torch.Generator().manual_seed(3) for _ in range(3)]
    plain = hbp.compile(model, loss, ["kfac"], mc_samples=2)(X, y, generator=drawn[0])
    zeros = {name: {"A": torch.zeros(3, 3).double() if pair.A is not None else None, "B": torch.zeros(3, 3).double()}
             for name, pair in plain.kfac.items()}
    compiled = hbp.compile(model, loss, ["kfac"], mc_samples=2)
    for generator in drawn[1:]:  # the second call is one of a proven program
        result = compiled(X, y, generator=generator, into={"kfac": zeros}, decay=0.0)
        for key, value in tensors(result, ["kfac"]).items():
            torch.testing.assert_close(value, tensors(plain, ["kfac"])[key], rtol=1e-14, atol=0)
            assert value is zeros[key[1]][key[2]]


def test_zero_overwrites_what_is_no_number_and_weights_of_samples_count():
    model, loss, X, y = stack(1)
    compiled = hbp.compile(model, loss, ["grad"])
    w = torch.tensor([1.0, 0.0, 2.0, 0.5]).double()
    wanted = compiled(X, y, sample_weights=w).grad
    held = {name: torch.full_like(value, torch.nan) for name, value in wanted.items()}
    compiled(X, y, sample_weights=w, into={"grad": held}, decay=0)
    for name, value in wanted.items():
        torch.testing.assert_close(held[name], value, rtol=1e-14, atol=1e-300)


def test_totals_of_a_wider_dtype_and_gradients_of_the_model():
    model, loss, X, y = stack(2)
    model, X = model.float(), X.float()
    compiled = hbp.compile(model, loss, ["grad"])
    one = compiled(X, y).grad
    totals = {name: value.double() for name, value in one.items()}
    compiled(X, y, into={"grad": totals})
    for name, parameter in model.named_parameters():
        assert torch.equal(totals[name], one[name].double() + one[name].double())
        parameter.grad = one[name].clone()
    compiled(X, y, into={"grad": {name: parameter.grad for name, parameter in model.named_parameters()}})
    assert all(torch.equal(parameter.grad, 2 * one[name]) for name, parameter in model.named_parameters())


def test_one_result_of_two_parameters_is_added_once_where_it_is_one_tensor():
    model, loss, X, y = stack(2)
    compiled = hbp.compile(model, loss, ["kflr"])
    kept = compiled(X, y)
    assert kept.kflr["0.weight"].B is kept.kflr["0.bias"].B
    before = kept.kflr["0.weight"].B.clone()
    apart = copy.deepcopy({name: pair._asdict() for name, pair in kept.kflr.items()})
    apart["0.bias"]["B"] = before.clone()
    result = compiled(X, y, into=kept)
    assert torch.equal(result.kflr["0.bias"].B, 2 * before)
    result = compiled(X, y, into={"kflr": apart})
    assert torch.equal(result.kflr["0.bias"].B, 2 * before)
    assert result.kflr["0.bias"].B is apart["0.bias"]["B"]


@pytest.mark.parametrize("number", [0.5, torch.tensor(0.5), np.float32(0.5)])
def test_numbers_of_every_kind(number):
    model, (X, y) = nn.Linear(3, 2).double(), (torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0]))
    compiled = hbp.compile(model, quantities=["grad"])
    kept = compiled(X, y)
    before = kept.grad["weight"].clone()
    torch.testing.assert_close(compiled(X, y, into=kept, decay=number, weight=number).grad["weight"], before)


WRONG = [
    (lambda kept, model: {"into": kept}, ["batch_l2 has axes whose lengths belong to the batch"]),
    (lambda kept, model: {"decay": 0.9}, ["decay and weight say how results are added"]),
    (lambda kept, model: {"into": {"grad": kept.grad}, "weight": float("inf")}, ["weight must be a finite number"]),
    (lambda kept, model: {"into": {"grad": kept.grad}, "decay": torch.ones(1)},
     ["decay must be a finite number, not tensor([1.])", "decay.item()"]),
    (lambda kept, model: {"into": {"grad": kept.grad}, "decay": torch.tensor(True)}, ["decay must be a finite number"]),
    (lambda kept, model: {"into": 3}, ["into must be a result, or a dict"]),
    (lambda kept, model: {"into": {"diag_h": kept.grad}}, ["diag_h is not computed; there are grad, batch_l2, kflr"]),
    (lambda kept, model: {"into": {"grad": {"0.weight": torch.zeros(3, 2).double(), "1": 0, "0.bias": 7}}},
     ["there is no grad['1']", "grad['0.weight'] has shape [3, 2] instead of [3, 3]", "grad['0.bias'] is int",
      "grad['2.weight'] is missing, [3, 3]"]),
    (lambda kept, model: {"into": {"grad": {name: value.float() for name, value in kept.grad.items()}}},
     ["grad['0.weight'] is torch.float32, which cannot hold torch.float64"]),
    (lambda kept, model: {"into": {"grad": dict(model.named_parameters())}},
     ["grad['0.weight'] is '0.weight' of the model itself"]),
    (lambda kept, model: {"into": {"grad": {name: kept.grad["0.bias"].expand(value.shape)
                                            for name, value in kept.grad.items()}}},
     ["grad['0.weight'] is expanded: one number of it stands for several"]),
    (lambda kept, model: {"into": {"grad": {**kept.grad, "2.weight": kept.grad["0.weight"]}}},
     ["grad['2.weight'] is the memory of grad['0.weight'] as well: give each its own"]),
    (lambda kept, model: {"into": {"grad": {name: value.to("meta") for name, value in kept.grad.items()}}},
     ["grad['0.weight'] is on meta, and the batch on cpu"]),
    (lambda kept, model: {"into": {"grad": overlapping(kept.grad, 1)}},
     ["grad['0.bias'] is the memory of grad['0.weight'] as well: give each its own"]),
    (lambda kept, model: {"into": {"grad": {**kept.grad, "0.weight": torch.zeros(9).double().as_strided(
        (3, 3), (1, 1))}}}, ["grad['0.weight'] overlaps itself: one number of it stands for several"]),
    (lambda kept, model: {"into": {"grad": {**kept.grad, "0.bias": model[2].weight.detach()[1]}}},
     ["grad['0.bias'] is '2.weight' of the model itself"]),
    (lambda kept, model: {"into": {"grad": {**kept.grad, "0.weight": torch.eye(3).double().to_sparse()}}},
     ["grad['0.weight'] is sparse_coo, and results are dense"]),
]


def overlapping(given, numbers):
    """Slices of one tensor, each of which begins before the last one ends."""
    flat, found, start = torch.zeros(100).double(), {}, 0
    for name, value in given.items():
        found[name] = flat[start : start + value.numel()].view(value.shape)
        start += value.numel() - numbers
    return found


def test_what_a_call_reads_does_not_change_meanwhile():
    model, loss, X, y = stack(1)
    compiled = hbp.compile(model, loss, ["grad", "project", "grad_histogram"])
    directions = {name: torch.ones(1, *value.shape).double() for name, value in model.named_parameters()}
    compiled(X, y, directions=directions)
    held = {name: value[0] for name, value in directions.items()}
    with pytest.raises(hbp.InputError, match=r"grad\['0.weight'\] is of the argument directions, which is read"):
        compiled(X, y, directions=directions, into={"grad": held})
    with pytest.raises(hbp.InputError, match=r"grad\['0.bias'\] is a tensor of the batch, which is read"):
        compiled(X, y, directions=directions, into={"grad": {**copy.deepcopy(held), "0.bias": X[2]}})
    assert all((value == 1).all() for value in directions.values())


def test_slices_of_one_tensor_counts_and_tensors_of_inference_mode():
    model, loss, X, y = stack(1)
    compiled = hbp.compile(model, loss, ["grad", "grad_histogram"])
    with torch.inference_mode():
        one = compiled(X, y)
    columns = torch.zeros(3, 4).double()
    held = {"0.weight": columns[:, :3], "0.bias": columns[:, 3]}
    counts = {name: value.double() for name, value in one.grad_histogram.items()}
    compiled(X, y, into={"grad": held, "grad_histogram": counts}, decay=0.5)
    for name in held:
        torch.testing.assert_close(held[name], one.grad[name], rtol=1e-14, atol=1e-300)
        assert torch.equal(counts[name], 1.5 * one.grad_histogram[name])
    with pytest.raises(hbp.InputError, match="was made in inference mode") as error:
        compiled(X, y, into=one)
    assert "grad_histogram['0.bias'] is torch.int64: keep sums of counts in torch.float64" in str(error.value)


def test_what_is_wrong_is_said_at_once_and_nothing_has_changed():
    model, loss, X, y = stack(2)
    compiled = hbp.compile(model, loss, ["grad", "batch_l2", "kflr"])
    kept = compiled(X, y)
    before = copies(kept, ["grad", "batch_l2", "kflr"])
    for wrong, messages in WRONG:
        with pytest.raises(hbp.InputError) as error:
            compiled(X, y, **wrong(kept, model))
        assert all(message in str(error.value) for message in messages), str(error.value)
    ekfac = hbp.compile(model, loss, ["ekfac"])
    other = ekfac(X, y)
    with pytest.raises(hbp.InputError, match="eigenvectors of two batches do not add up"):
        ekfac(X, y, into=other)
    for key, value in tensors(kept, ["grad", "batch_l2", "kflr"]).items():
        assert torch.equal(value, before[key])


def test_a_sum_of_outer_products_is_made_in_its_triangle():
    model, loss, X, y = stack(2)
    compiled = hbp.compile(model, loss, ["kfac"])
    compiled(X, y)
    built = compiled._current()
    factors = [slot for slot in built.slots if slot.field]
    program = adding(built.draft.graph, factors, {}, triangles=factors)
    check_program(program, Level.SHAPED)
    assert "added_product_triangle_(" in built.draft.written(program)
