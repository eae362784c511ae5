"""A batch as the user passes it."""

import pytest
import torch

from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.errors import InputTypeError

X, Z, Y = torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4)


@pytest.mark.parametrize(("arguments", "labels", "names", "inputs"), [
    ((X, Y), ("X", "y"), ("x", "y"), 1),
    ((X, Z, Y), ("X1", "X2", "y"), ("x", "x2", "y"), 2),
    (((X, Z), Y), ("X[0]", "X[1]", "y"), ("x", "x2", "y"), 2),
    (({"ids": X, "mask": Z}, Y), ("X['ids']", "X['mask']", "y"), ("ids", "mask", "y"), 2),
    ((X, (Y, Z)), ("X", "y[0]", "y[1]"), ("x", "y_0", "y_1"), 1),
    ((X, {"label": Y}), ("X", "y['label']"), ("x", "y_label"), 1),
    (([X, None, "text"], Y), ("X[0]", "y"), ("x", "y"), 1),
    (((X, [Z]), Y), ("X[0]", "X[1][0]", "y"), ("x", "x2_0", "y"), 2),
])
def test_layouts(arguments, labels, names, inputs):
    batch = batch_of(arguments)
    assert batch.layout.labels == labels
    assert batch.layout.names == names
    assert len(batch.inputs) == batch.layout.inputs == inputs
    assert len(batch.targets) == len(labels) - inputs
    assert batch.samples == 4


def test_arguments_are_built_of_the_tensors():
    batch = batch_of(({"ids": X, "use_cache": False}, Y))
    args, kwargs, target = batch.layout.build([tensor + 1 for tensor in batch.tensors])
    assert args == ()
    assert torch.equal(kwargs["ids"], X + 1)
    assert kwargs["use_cache"] is False
    assert torch.equal(target, Y + 1)


def test_plain_batches_share_a_layout():
    assert batch_of((X, Y)).layout is batch_of((Z, Y)).layout


@pytest.mark.parametrize(("arguments", "message"), [
    ((X,), "1 argument"),
    (({1: X}, Y), "names of forward's arguments"),
    ((object(), Y), "X must be a tensor, not object"),
    ((X, object()), "y must be a tensor, not object"),
    (((X, {"mask": object()}), Y), r"X\[1\]\['mask'\] must be a tensor"),
    (({"mask": object()}, Y), r"X\['mask'\] must be a tensor"),
    ((None, Y), "X must be a tensor, or a tuple or dict of tensors, not NoneType"),
    ((X, 3), "y must be a tensor, or a tuple or dict of tensors, not int"),
])
def test_what_is_no_batch(arguments, message):
    with pytest.raises(InputTypeError, match=message):
        batch_of(arguments)
