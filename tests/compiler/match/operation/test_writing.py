"""What rewritings write is what torch calls by these names."""

import pytest
import torch

from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.trace.graph import Source, Value
from hbpcompiler.rules.shared import written

X = torch.arange(12.0).view(3, 4)
ROW = X[:, None]
CALLS = {
    "total": (written.reduced(written.SUM), (X,), X.sum()),
    "means of rows": (written.reduced(written.MEAN, [1]), (X,), X.mean(1)),
    "sums of columns": (written.reduced(written.SUM, [0]), (X,), X.sum(0)),
    "added": (written.added(), (X, X), X + X),
    "product with a number": (written.multiple(written.PRODUCT, 3.0), (X,), X * 3),
    "quotient by a tensor": (written.multiple(written.QUOTIENT), (X, X + 1), X / (X + 1)),
    "entry": (written.entry(1, 2), (X,), X[:, 2]),
    "transposed": (written.transposed(0, 1), (X,), X.T),
    "permuted": (written.permuted([2, 0, 1]), (ROW,), ROW.permute(2, 0, 1)),
    "merged": (written.merged(0, 1), (ROW,), X),
    "one axis more": (written.with_axis(1), (X,), ROW),
    "one axis less": (written.without_axis(1), (ROW,), X),
    "expanded": (written.expanded([3, 2, 4]), (ROW,), ROW.expand(3, 2, 4)),
    "in order": (written.in_order(), (X.T,), X.T),
    "as pairs": (written.AS_PAIRS, (torch.complex(X, X),), torch.stack([X, X], -1)),
    "of pairs": (written.OF_PAIRS, (X.view(3, 2, 2),), torch.complex(X[:, ::2], X[:, 1::2])),
    "cast": (written.cast(torch.float64), (X,), X.double()),
    "zeros": (written.zeros(), (X,), X * 0),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_operation_that_is_written_has_torchs_value(name):
    call, tensors, expected = CALLS[name]
    values = [Value(f"x{place}", tuple(tensor.shape), tensor.dtype, "input") for place, tensor in enumerate(tensors)]
    output = Value("y", tuple(expected.shape), expected.dtype, "result")
    operation = write(call, dict(zip(("self", "other"), values, strict=False)), output, Source())
    found = aten.overload_of(operation)(*tensors, **operation.attributes)
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype
