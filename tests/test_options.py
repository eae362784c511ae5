"""The arguments of `compile`, and what a call returns, by themselves."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hbpcompiler.errors import OptionError, OptionTypeError
from hbpcompiler.options import check_dtype, check_example, check_memory, check_options, check_quantities
from hbpcompiler.result import Result
from hbpcompiler.rule.registry import builtin


@pytest.mark.parametrize(("budget", "expected"), [
    (None, None), (5, 5), ("5", 5), ("2KiB", 2048), ("1.5 MB", 1_500_000), (" 2gib ", 2**31), ("3B", 3)])
def test_memory(budget, expected):
    assert check_memory(budget) == expected


def test_quantities_come_in_the_tables_order_and_once():
    assert check_quantities(["diag_h", "grad", "diag_h"]) == check_quantities({"grad", "diag_h"}) == ("grad", "diag_h")


def test_dtypes():
    assert check_dtype(None) is None
    assert check_dtype(torch.bfloat16) is torch.bfloat16
    with pytest.raises(OptionError, match="cannot hold columns"):
        check_dtype(torch.int32)
    with pytest.raises(OptionTypeError, match="'float32'"):
        check_dtype("float32")


def test_an_example_is_what_a_call_takes():
    assert check_example([1, 2]) == (1, 2)
    with pytest.raises(OptionTypeError, match="length 1"):
        check_example((1,))


def test_options_as_a_whole():
    options = check_options(["grad"], "python", "1KiB", 3, None)
    assert (options.quantities, options.memory_budget, options.mc_samples) == (("grad",), 1024, 3)
    assert options.registry is builtin()
    assert options.curvature == "hessian"


@pytest.fixture
def result():
    model = nn.Linear(2, 1)
    values = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    return model, Result(SimpleNamespace(loss=torch.tensor(1.5), grad=values), "output", ("grad",), model)


def test_a_result_has_its_quantities_as_attributes_and_items(result):
    model, found = result
    assert found.grad is found["grad"]
    assert list(found) == list(found.quantities) == ["grad"]
    assert "grad" in found
    assert "grad" in dir(found)
    assert found.is_of(model)
    assert not found.is_of(nn.Linear(2, 1))
    assert repr(found) == "Result(loss=1.5, quantities=['grad'])"


def test_what_was_not_asked_for_is_no_part_of_it(result):
    with pytest.raises(AttributeError, match="did not compute 'diag_h'; it has grad"):
        _ = result[1].diag_h
    with pytest.raises(KeyError, match="diag_h"):
        _ = result[1]["diag_h"]


def test_values_go_to_the_parameters(result):
    model, found = result
    found.to_parameters()
    assert model.weight.grad is found.grad["weight"]
