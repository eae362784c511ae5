"""A matrix that meets few columns of each sample meets those of all samples in one product."""

import operator

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.optimise.joined_products import join_products
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.products import product_for_all
from hbpcompiler.limits import ON_GPU, Limits
from hbpcompiler.reference import reference
from tests.compiler.optimise.small import calls, program, run, shaped

EVERY = Limits(joined_columns=10**6, joined_numbers=1)


def joined(*shapes, limits=EVERY, chunk=64):
    graph = shaped(program(lambda writer, x, y: writer.call(operator.matmul, x, y), "x", "y"), *shapes)
    join_products(graph, limits, chunk)
    check_program(graph, Level.SHAPED)
    return graph


@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 2, 5, 4), (3, 2, 5, 1), (0, 2, 5, 4), (1, 1, 5, 4), (2, 3, 2, 5, 4)])
@pytest.mark.parametrize("turned", [False, True], ids=["channel by channel", "pixel by pixel"])
def test_it_is_the_product_and_lies_as_the_columns_lie(shape, turned):
    matrix = torch.randn(6, 5, dtype=torch.float64)
    columns = torch.randn(shape, dtype=torch.float64)
    if turned:
        columns = columns.mT.contiguous().mT
    found = product_for_all(matrix, columns)
    torch.testing.assert_close(found, matrix @ columns)
    if shape[-1] > 1:
        assert (found.mT if turned else found).is_contiguous()


def test_it_can_be_scripted():
    matrix, columns = torch.randn(6, 5), torch.randn(3, 2, 5, 4)
    torch.testing.assert_close(torch.jit.script(product_for_all)(matrix, columns), matrix @ columns)


def test_stacks_of_several_samples_are_joined():
    graph = joined((6, 5), (-1, 1, 5, 4))
    assert calls(graph) == ["product_for_all"]
    x, y = torch.randn(6, 5), torch.randn(3, 1, 5, 4)
    torch.testing.assert_close(run(graph, x, y), x @ y)


@pytest.mark.parametrize("shapes", [((6, 5), (5, 4)), ((6, 5), (1, 5, 4)), ((-1, 6, 5), (-1, 5, 4)),
                                    ((-1, 1, 6, 5), (5, 4))])
def test_what_is_no_matrix_with_stacks_of_columns_stays(shapes):
    assert calls(joined(*shapes)) == ["matmul"]


@pytest.mark.parametrize(("limits", "chunk"), [
    (Limits(joined_columns=3, joined_numbers=1), 64), (Limits(joined_columns=4, joined_numbers=31), 64),
    (EVERY, 1), (ON_GPU, 64)])
def test_many_columns_small_matrices_and_single_samples_stay(limits, chunk):
    assert calls(joined((6, 5), (-1, 1, 5, 4), limits=limits, chunk=chunk)) == ["matmul"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kernels_of_one_pixel_go_back_through_one_product(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Tanh(), nn.Conv2d(4, 5, 1), nn.Sigmoid(), nn.Flatten(),
                          nn.Linear(20, 3)).to(dtype)
    X, y, loss = torch.randn(4, 3, 3, 3, dtype=dtype), torch.randint(3, (4,)), nn.CrossEntropyLoss()
    asked = ["grad", "diag_ggn", "diag_h", "variance"]
    found = hbp.compile(model, loss, quantities=asked, limits=EVERY)
    plain = hbp.compile(model, loss, quantities=asked, limits=Limits(joined_columns=0))
    result = found(X, y)
    assert "product_for_all(" in found.code
    plain(X, y)
    assert "product_for_all" not in plain.code
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype is torch.float64 else {"rtol": 2e-3, "atol": 1e-5}
    for quantity in asked:
        for name, expected in reference(model, loss, [X], y, quantity).items():
            torch.testing.assert_close(getattr(result, quantity)[name], expected, **tolerance)
