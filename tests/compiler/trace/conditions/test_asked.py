"""A model that asks the batch for what is not its numbers: each answer has a program, or a word, beside autograd."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.conditions.asked import NOTHING
from hbpcompiler.compiler.trace.conditions.layouts import laid_out, order_of

IMAGES = torch.randn(4, 3, 2, 2, dtype=torch.float64)
WIDE = torch.randn(6, 12, dtype=torch.float64)
LAST = torch.channels_last


class Asking(nn.Module):
    def __init__(self, asked):
        super().__init__()
        self.layer, self.asked = nn.Linear(12, 2).double(), asked

    def forward(self, x):
        return self.layer(x.flatten(1)) * (2.0 if self.asked(x) else 3.0)


class Own(torch.Tensor):
    pass


def agrees(model, compiled, x):
    y = torch.arange(len(x)) % 2
    found = compiled(x, y).grad
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), model.parameters())
    return all(torch.allclose(found[name], value, rtol=1e-10, atol=1e-14)
               for (name, _), value in zip(model.named_parameters(), expected, strict=True))


def compiled_for(asked, verify=True):
    torch.manual_seed(0)
    model = Asking(asked)
    return model, hbp.compile(model, nn.CrossEntropyLoss(), quantities=["grad"], verify=verify)


ORDERS = {
    "dim_order": (lambda x: x.dim_order() == (0, 1), torch.randn(12, 5, dtype=torch.float64).T),
    "is_contiguous": (lambda x: x.is_contiguous(), WIDE.repeat(1, 2)[:, ::2]),
    "stride": (lambda x: x.stride(1) == 1, WIDE.repeat_interleave(2, 1)[:, ::2]),
    "strides": (lambda x: x.stride() == (12, 1), torch.randn(12, 5, dtype=torch.float64).T),
    "channels_last": (lambda x: x.is_contiguous(memory_format=LAST), IMAGES.to(memory_format=LAST)),
    "of one sample": (lambda x: x.is_contiguous(), IMAGES.to(memory_format=LAST)[:1]),
    "expanded": (lambda x: x.stride(0) == 0, WIDE[:1].expand(5, 12)),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ORDERS)
def test_batches_that_lie_otherwise_have_programs_of_their_own(name, verify):
    asked, other = ORDERS[name]
    model, compiled = compiled_for(asked, verify)
    plain = other.clone(memory_format=torch.contiguous_format)
    for x in (plain, other, plain[:3], other[:1], other, plain):
        assert agrees(model, compiled, x)


@pytest.mark.parametrize("verify", [True, False])
def test_one_sample_of_which_all_is_contiguous_is_proven_in_any_case(verify):
    model, compiled = compiled_for(lambda x: x.T.is_contiguous(), verify)
    assert agrees(model, compiled, WIDE)
    assert agrees(model, compiled, torch.randn(12, 5, dtype=torch.float64).T)
    with pytest.raises(hbp.errors.ProofError):
        compiled(WIDE[:1], torch.zeros(1, dtype=torch.long))


def test_the_first_batch_is_answered_right_too():
    model, compiled = compiled_for(lambda x: x.is_contiguous())
    assert agrees(model, compiled, ORDERS["is_contiguous"][1])
    assert agrees(model, compiled, WIDE)


HISTORY = WIDE.clone().requires_grad_()
OTHERS = {
    "requires_grad": (lambda x: x.requires_grad, HISTORY, "detach"),
    "is_leaf": (lambda x: x.is_leaf, HISTORY, "detach"),
    "of what follows": (lambda x: (2 * x).requires_grad, HISTORY, "detach"),
    "grad_fn": (lambda x: x.grad_fn is None, HISTORY, "detach"),
    "storage_offset": (lambda x: x.storage_offset() == 0, WIDE[2:], "clone"),
    "view": (lambda x: x._base is None, WIDE[:3], "clone"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_answers_of_no_new_tensor_are_refused(name):
    asked, other, instead = OTHERS[name]
    model, compiled = compiled_for(asked)
    assert agrees(model, compiled, WIDE.clone())
    for call in (compiled, compiled_for(asked)[1]):
        with pytest.raises(hbp.errors.InputError, match=rf"X\.{instead}\(\).*test_asked\.py"):
            call(other, torch.arange(len(other)) % 2)
    assert agrees(model, compiled, getattr(other, instead)())


def test_attributes_of_a_batch_are_refused():
    model, compiled = compiled_for(lambda x: hasattr(x, "mark"))
    x = WIDE.clone()
    assert agrees(model, compiled, x)
    x.mark = 1
    with pytest.raises(hbp.errors.InputError, match="asks a tensor for what is not its numbers"):
        compiled(x, torch.arange(6) % 2)


@pytest.mark.parametrize("asked", [lambda x: x.data_ptr() % 16 == 0, lambda x: x._version == 0,
                                   lambda x: x.untyped_storage().nbytes() == 8 * x.numel()])
def test_addresses_are_refused(asked):
    with pytest.raises(hbp.errors.ModelError, match="where in memory"):
        compiled_for(asked)[1](WIDE, torch.arange(6) % 2)


@pytest.mark.parametrize("kind", [Own, nn.Parameter])
def test_a_batch_of_another_class_is_proven_by_itself(kind):
    model, compiled = compiled_for(lambda x: isinstance(x, kind))
    assert agrees(model, compiled, WIDE)
    other = WIDE.as_subclass(Own) if kind is Own else nn.Parameter(WIDE)
    with pytest.raises(hbp.errors.ProofError):
        compiled(other, torch.arange(6) % 2)


def test_where_nothing_is_asked_one_program_serves_all():
    model, compiled = compiled_for(lambda x: True)
    for x in (WIDE, ORDERS["is_contiguous"][1], HISTORY, WIDE[2:]):
        assert agrees(model, compiled, x)
    assert len(compiled._guards) == 1
    assert compiled._current().asked == NOTHING


@pytest.mark.parametrize("made", [lambda x: x, lambda x: x.mT, lambda x: x[:, :, ::2], lambda x: x[1:, 1:],
                                  lambda x: x.permute(2, 0, 1), lambda x: x[:, :1].expand(-1, 5, -1)])
def test_copies_lie_as_what_they_are_copies_of(made):
    tensor = made(torch.randn(4, 3, 6))
    copy = laid_out(tensor, order_of(tensor))
    assert torch.equal(copy, tensor)
    assert copy.stride() == tensor.stride()
    assert copy.data_ptr() != tensor.data_ptr()
    fewer = laid_out(tensor[:2], order_of(tensor))
    assert order_of(fewer) == order_of(tensor)


def test_rows_lie_as_the_batch_where_that_is_asked():
    batch = batch_of((WIDE.T, torch.zeros(12))).keeping_order()
    (rows, _), (copy, _) = batch.rows(3), batch.copies()
    assert (rows.stride(), copy.stride()) == ((1, 3), (1, 12))
    assert torch.equal(rows, WIDE.T[:3])
