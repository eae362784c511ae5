"""A default device (`torch.set_default_device("cuda")`) is where a user's tensors are made, not the library's.

Here it is the one without numbers: whatever the library made there would be missed, or refused beside the batch.
"""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.selection import few, slow

EXACT = ["grad", "batch_grad", "variance", "diag_ggn", "diag_h", "kflr", "clipped_grad", "batch_dot"]
SAMPLED = ["diag_ggn_mc", "kfac", "diag_h_mc", "diag_h_mc_all"]


@pytest.fixture
def _elsewhere():
    with torch.device("meta"):
        yield


def setting():
    """A network, its loss and a batch, on the processor whatever the default."""
    with torch.device("cpu"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(8),
                              nn.Linear(8, 3))
        return model.double(), torch.randn(4, 1, 6, 6).double(), torch.tensor([0, 2, 1, 1])


def masked(output, target):
    """A mean over what a mask lets through: its scale is found on a stand-in batch."""
    mask = target > 0
    return (nn.functional.cross_entropy(output, target, reduction="none") * mask).sum() / mask.sum()


def flat(result):
    found = []
    for quantity in result:
        of = result[quantity]
        for value in of.values() if hasattr(of, "values") and not isinstance(of, torch.Tensor) else [of]:
            found += value if isinstance(value, tuple) else [value]
    return [tensor for tensor in found if tensor is not None]


@few(1, "quantities and losses have tests of their own")
@pytest.mark.parametrize("quantities", [EXACT, SAMPLED], ids=["exact", "sampled"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), masked], ids=["plain", "masked"])
def test_programs(quantities, loss, request):
    model, X, y = setting()
    beside = {"max_norm": 0.1} if "clipped_grad" in quantities else {}

    def found():
        compiled = hbp.compile(model, loss, quantities, verify="full")
        return compiled(X, y, generator=torch.Generator().manual_seed(1), **beside)

    expected = flat(found())
    request.getfixturevalue("_elsewhere")
    for own, theirs in zip(flat(found()), expected, strict=True):
        assert torch.equal(own, theirs)


@slow("a second or more; shorter ones of its kind stay")
@pytest.mark.usefixtures("_elsewhere")
def test_what_stands_on_them(tmp_path):
    model, X, y = setting()
    loss = nn.CrossEntropyLoss()
    total = hbp.accumulate(hbp.compile(model, loss, ["kfac", "variance"]), [(X, y), (X[:2], y[:2])], progress=False)
    assert hbp.curvature(total.kfac).solve(dict(model.named_parameters()), damping=0.1)["5.bias"].isfinite().all()
    hbp.spectrum(model, loss)(X, y)
    assert hbp.operator(model, loss, [(X, y)], "ggn").top(2).values.isfinite().all()
    hbp.optim.KFAC(model, loss).step(X, y)
    monitor = hbp.Monitor(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), log=tmp_path / "run.jsonl")
    monitor.step(X, y)
    hbp.report(tmp_path / "run.jsonl", tmp_path / "run.html")
