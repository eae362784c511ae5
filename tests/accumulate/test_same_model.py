"""A total is of one model: what changes between batches, or before a run goes on, is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.accumulate.checkpoint import header_of
from hbpcompiler.accumulate.same_model import SameModel

CONFIG = {"scale": 1.0}
SCALE = torch.tensor(1.0)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) * CONFIG["scale"] * SCALE


def scaled(output, target):
    return F.cross_entropy(output * CONFIG["scale"] * SCALE, target)


def weighted():
    return nn.CrossEntropyLoss(weight=torch.ones(3), reduction="sum")


def of_config(model, loss):
    CONFIG["scale"] = 9.0


def of_tensor(model, loss):
    SCALE.fill_(9.0)


def of_weight(model, loss):
    loss.weight[0] = 7.0


def fused(optimizer):
    def change(model, loss):
        model(torch.ones(2, 4)).sum().backward()
        optimizer(model.parameters(), lr=0.1, fused=True).step()
        model.zero_grad()

    return change


def through_data(model, loss):
    model.weight.data.mul_(2.0)


def other_data(model, loss):
    model.weight.data = model.weight.data.flip(0)


def through_numpy(model, loss):
    numbers = model.bias.detach().numpy()
    numbers[:] = numbers[::-1].copy()


def of_weight_through_data(model, loss):
    loss.weight.data.mul_(3.0)


def frozen(model, loss):
    next(model.parameters()).requires_grad_(False)


CHANGES = {"model's mapping": (Scaled, nn.CrossEntropyLoss, of_config),
           "model's tensor": (Scaled, nn.CrossEntropyLoss, of_tensor),
           "loss's mapping": (lambda: nn.Linear(4, 3), lambda: scaled, of_config),
           "loss's tensor": (lambda: nn.Linear(4, 3), lambda: scaled, of_tensor),
           "loss's weights": (lambda: nn.Linear(4, 3), weighted, of_weight),
           "fused Adam": (lambda: nn.Linear(4, 3), nn.CrossEntropyLoss, fused(torch.optim.Adam)),
           "fused SGD": (lambda: nn.Linear(4, 3), nn.CrossEntropyLoss, fused(torch.optim.SGD)),
           "weight.data.mul_": (lambda: nn.Linear(4, 3), nn.CrossEntropyLoss, through_data),
           "weight.data = ": (lambda: nn.Linear(4, 3), nn.CrossEntropyLoss, other_data),
           "numpy": (lambda: nn.Linear(4, 3), nn.CrossEntropyLoss, through_numpy),
           "loss's weights through data": (lambda: nn.Linear(4, 3), weighted, of_weight_through_data),
           "frozen": (lambda: nn.Linear(4, 3), nn.CrossEntropyLoss, frozen)}


@pytest.fixture(autouse=True)
def as_it_was():
    CONFIG["scale"] = 1.0
    SCALE.fill_(1.0)


def batches():
    torch.manual_seed(0)
    return [(torch.randn(4, 4), torch.randint(3, (4,))) for _ in range(3)]


@pytest.mark.parametrize("name", CHANGES)
def test_between_batches(name):
    made, loss_made, change = CHANGES[name]
    model, loss = made(), loss_made()

    def loader():
        for number, batch in enumerate(batches()):
            if number == 2:
                change(model, loss)
            yield batch

    with pytest.raises(hbp.InputError, match=r"batch 2 of the loader: .*for the batches before"):
        hbp.accumulate(hbp.compile(model, loss, ["grad"]), loader(), progress=False)


@pytest.mark.parametrize("name", CHANGES)
def test_before_a_run_goes_on(name, tmp_path):
    made, loss_made, change = CHANGES[name]
    model, loss, path = made(), loss_made(), tmp_path / "total.pt"
    compiled = hbp.compile(model, loss, ["grad"])
    hbp.accumulate(compiled, batches(), progress=False, checkpoint=path, max_batches=2)
    change(model, loss)
    with pytest.raises(hbp.InputError, match="holds the totals of another run"):
        hbp.accumulate(compiled, batches(), progress=False, checkpoint=path)


def test_what_stays_is_taken():
    model = Scaled()
    compiled = hbp.compile(model, scaled, ["grad"])
    header = header_of(model, scaled, ("grad",), "", {}, dtype="", compensated=False, sample_weights=False,
                       counted=False, arguments="", seed=0, world=1, rank=0)
    same = SameModel(compiled, header)
    same.check()
    compiled(*batches()[0])
    same.called()
    SCALE.fill_(1.0)  # written to, and the same
    same.check()
    CONFIG["scale"] = 2.0
    with pytest.raises(hbp.InputError, match="is no longer what it was"):
        same.check()


def under_autocast(first, enabled=True):
    for number, batch in enumerate(batches()):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled and number >= first):
            yield batch


def test_autocast_between_batches(tmp_path):
    compiled, path = hbp.compile(nn.Linear(4, 3), nn.CrossEntropyLoss(), ["grad"]), tmp_path / "total.pt"
    with pytest.raises(hbp.InputError, match=r"batch 1 of the loader: .*autocast, is no longer"):
        hbp.accumulate(compiled, under_autocast(1), progress=False)
    hbp.accumulate(compiled, under_autocast(0), progress=False, checkpoint=path, max_batches=2)
    hbp.accumulate(compiled, under_autocast(0), progress=False, checkpoint=path)
    plain = hbp.accumulate(compiled, batches(), progress=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(hbp.InputError, match="autocast on cpu"):
            hbp.accumulate(compiled, batches(), progress=False, checkpoint=path)
        with pytest.raises(hbp.InputError, match="autocast on cpu"):
            hbp.Total.merge(plain, hbp.accumulate(compiled, batches(), progress=False))
