"""Plans for a GPU, made on a CPU: all at once, where a CPU's would go through its cache in chunks."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.figures import GPU
from hbpcompiler.compiler.tune import measured
from hbpcompiler.limits import DEFAULT_LIMITS, ON_GPU, default_limits
from hbpcompiler.reference import reference
from tests.selection import slow

QUANTITIES = ["batch_l2", "variance", "diag_ggn", "diag_h", "kflr"]
CHUNKED = ["variance", "diag_ggn", "diag_h"]
CUDA = torch.device("cuda")


class Calls(TorchDispatchMode):
    """How many calls of torch's operations are made."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


def setting(dtype, channels=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, channels, 5, padding=2), nn.SiLU(), nn.MaxPool2d(2),
                          nn.Conv2d(channels, 2 * channels, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Linear(18 * channels, 10))
    return model.to(dtype), torch.randn(64, 1, 12, 12, dtype=dtype), torch.arange(64) % 10


@pytest.fixture
def _on_gpu(monkeypatch):
    """Figures and limits, not the device."""
    monkeypatch.setattr(measured, "default_machine", lambda device, dtype: GPU)
    monkeypatch.setattr(measured, "default_limits", lambda device: ON_GPU)


def calls(quantity):
    model, X, y = setting(torch.float32, 32)
    compiled = hbp.compile(model, quantities=[quantity], example_inputs=(X, y))
    with Calls() as found:
        compiled(X, y)
    return found.number, compiled


@slow("3 s; calls are counted, no number is compared")
def test_few_calls(request):
    before = [calls(quantity)[0] for quantity in CHUNKED]
    request.getfixturevalue("_on_gpu")
    for quantity, many in zip(CHUNKED, before, strict=True):
        few, compiled = calls(quantity)
        assert few < many / 2
        assert few < 250
        assert "Limits other than" not in compiled.code


@pytest.mark.usefixtures("_on_gpu")
def test_numbers():
    model, X, y = setting(torch.float64)
    found = hbp.compile(model, quantities=QUANTITIES)(X[:3], y[:3])
    for quantity in QUANTITIES[:4]:
        for name, value in reference(model, nn.CrossEntropyLoss(), (X[:3],), y[:3], quantity).items():
            torch.testing.assert_close(found[quantity][name], value, rtol=1e-9, atol=1e-12)


def test_a_users_limits_keep_the_devices_others():
    assert default_limits("cpu") == DEFAULT_LIMITS == hbp.Limits()
    assert default_limits("cuda") == ON_GPU
    own = hbp.Limits(racers=3, recycled_bytes=2**20)
    assert measured.limits_for(own, CUDA, torch.float32) == replace(ON_GPU, racers=3, recycled_bytes=2**20)
    assert measured.limits_for(replace(ON_GPU, racers=3), CUDA, torch.float32) == replace(ON_GPU, racers=3)
    assert measured.limits_for(own, torch.device("cpu"), torch.float32) == own
    assert measured.limits_for(ON_GPU, torch.device("cpu"), torch.float32) == ON_GPU
    assert own.changed() == {"racers": 3, "recycled_bytes": 2**20}
    assert replace(ON_GPU, racers=3).changed() == {"racers": 3}
