"""What stands for torch's own code meanwhile, and is gone afterwards."""

from functools import partial

import pytest
import torch
import torch._dynamo.config as fake_tensors
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.modules import transformer
from torch.utils import checkpoint

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.patches.equivalents import (
    module_equivalents,
    plain_ways,
    rows_keep_their_places,
    unchecked_distributions,
)
from hbpcompiler.compiler.trace.patches.shapes import right_shapes
from hbpcompiler.rule import ModuleRule
from tests.models.test_outputs import check


def test_modules_run_their_rules_forward():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    rules = {nn.Linear: ModuleRule(nn.Linear, lambda module, x: x + 1)}
    with module_equivalents(model, rules):
        assert model(torch.ones(1, 2)).tolist() == [[2, 2]]
    assert "forward" not in vars(model[0])


class Experts(nn.Module):
    """What transformers' models can be asked."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def get_experts_implementation(self):
        return {"": self.way}

    def set_experts_implementation(self, way):
        self.way = way[""] if isinstance(way, dict) else way


def test_experts_compute_each_row_by_itself():
    model = nn.Sequential(Experts("eager"), nn.ReLU(), Experts("grouped_mm"))
    with rows_keep_their_places(model):
        assert [model[0].way, model[2].way] == ["batched_mm", "batched_mm"]
    assert [model[0].way, model[2].way] == ["eager", "grouped_mm"]


class Unmovable(Experts):
    def set_experts_implementation(self, way):
        raise ValueError("experts of this kind have one way")


def test_experts_that_refuse_to_change_stay():
    model = nn.Sequential(Experts("eager"), Unmovable("kernel"))
    with rows_keep_their_places(model):
        assert [model[0].way, model[1].way] == ["batched_mm", "kernel"]
    assert [model[0].way, model[1].way] == ["eager", "kernel"]


def test_all_modules_that_are_refused_are_named():
    rules = {nn.Linear: ModuleRule(nn.Linear, lambda module, x: x, lambda module: "too straight")}
    with pytest.raises(hbp.UnsupportedOpError, match=r"'0' \(Linear\): too straight\n.*'1' \(Linear\)"), \
            module_equivalents(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), rules):
        pass


def test_torchs_own_ways_come_back():
    def own():
        return (torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask,
                checkpoint.CheckpointFunction.apply, torch.distributions.Distribution._validate_args)

    torch.distributions.Distribution.set_default_validate_args(True)  # torch.compile, in other tests, leaves it off
    before = own()
    with plain_ways(), unchecked_distributions():
        assert all(now != then for now, then in zip(own(), before, strict=True))
    assert own() == before


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.first, self.last, self.use_reentrant = nn.Linear(3, 3), nn.Linear(3, 2), use_reentrant

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return checkpoint.checkpoint(lambda h: torch.tanh(self.last(h)), x, use_reentrant=self.use_reentrant)


def test_checkpoints():
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    model = Checkpointed(use_reentrant=False).double()
    _, expected = check(model, nn.CrossEntropyLoss(), (x,), y, ["grad"])
    model.use_reentrant = True
    found = hbp.compile(model, quantities=["grad"])(x, y)
    assert all(torch.equal(found.grad[name], value) for name, value in expected.grad.items())


class Normed(nn.Module):
    """Divides by sizes that have no derivative."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = torch.tanh(self.first(x)) / self.first.weight.data.norm()
        return self.last(h / h.data.norm(dim=1, keepdim=True))


def test_data_is_detached():
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    check(Normed().double(), nn.CrossEntropyLoss(), (x,), y, ["grad", "batch_grad", "diag_h"])
    assert "data" not in vars(torch.Tensor)


def test_a_checkpoint_that_cuts_off_the_gradient():
    class Cut(nn.Linear):
        def forward(self, x):
            return checkpoint.checkpoint(super().forward, x, use_reentrant=True)

    with pytest.raises(hbp.CompileError, match="use_reentrant=False"):
        hbp.compile(Cut(3, 2), quantities=["grad"])(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))


def normalised(x):
    """What torch says of batch normalisation with fixed statistics, of a batch of any size: without values."""
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        fake = mode.from_tensor(x)
        weight, bias, mean, var = (mode.from_tensor(torch.ones(x.shape[1], dtype=x.dtype)) for _ in range(4))
        found = torch.ops.aten._native_batch_norm_legit_no_training.default(fake, weight, bias, mean, var, 0.1, 1e-5)
        return [(tuple(map(int, each.shape)), tuple(map(int, each.stride())), each.dtype) for each in found]


@pytest.mark.parametrize("x", [
    torch.ones(7, 3), torch.ones(7, 3, 4, 5, dtype=torch.float64), torch.ones(7, 3, 4, dtype=torch.bfloat16),
    torch.ones(7, 3, 4, 5).to(memory_format=torch.channels_last), torch.ones(7, 4, 3).transpose(1, 2),
], ids=lambda x: f"{tuple(x.shape)}-{x.stride()}")  # fmt: skip
def test_batch_norms_shapes_are_those_that_torch_finds(x):
    expected = normalised(x)
    table = dict(torch._decomp.decomposition_table)
    with right_shapes(nn.Linear(1, 1)):
        assert normalised(x) == expected
    assert torch._decomp.decomposition_table == table


def found_for(function, *tensors):
    """Shape, strides and dtype of what torch says that a call makes of a batch of any size, without values."""
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        made = function(*[mode.from_tensor(tensor) for tensor in tensors])
        return tuple(map(int, made.shape)), tuple(map(int, made.stride())), made.dtype


LABELS = torch.zeros(7, dtype=torch.int64)


def image(*shape, dtype=torch.float32):
    return torch.ones(7, *shape, dtype=dtype)


def by_pixels(*shape):
    return image(*shape).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("function", "tensors"), [
    (torch.relu, [image(3)]), (torch.relu, [by_pixels(3, 4, 5)]), (torch.relu, [image(4, 3).transpose(1, 2)]),
    (torch.relu, [image(6, 4)[:, ::2]]), (torch.relu, [image(1, 4).expand(7, 5, 4)]),
    (torch.relu, [image(3, dtype=torch.bfloat16)]), (torch.relu, [image(3, dtype=torch.int64)]),
    (lambda *x: torch.cat(x, 1), [image(3, 4, 5), image(2, 4, 5), image(1, 4, 5)]),
    (lambda *x: torch.cat(x, -1), [image(3, 4, 5), image(3, 4, 2)]), (lambda *x: torch.cat(x), [image(3), image(3)]),
    (lambda *x: torch.cat(x, 1), [by_pixels(3, 4, 5), by_pixels(2, 4, 5)]),
    (lambda *x: torch.cat(x, 1), [by_pixels(3, 4, 5), image(2, 4, 5)]),
    (lambda *x: torch.cat(x, 2), [image(3, 4).transpose(1, 2), image(4, 2)]),
    (lambda *x: torch.cat(x, 1), [image(3), image(3, dtype=torch.float64)]),
    (lambda *x: torch.cat(x, 1), [image(3, 4), torch.ones(0), image(2, 4)]),
    (lambda *x: torch.cat(x, 1), [image(3, 1, 1), image(2, 1, 1)]),
    (lambda x: torch.log_softmax(x, 1), [image(3)]), (lambda x: torch.softmax(x, -1), [image(4, 3).transpose(1, 2)]),
    (lambda x: torch.log_softmax(x, 1, torch.float64), [image(3)]), (lambda x: x.softmax(1), [by_pixels(3, 4, 5)]),
    (F.nll_loss, [image(3), LABELS]), (F.nll_loss, [image(3, 4, 5), image(4, 5, dtype=torch.int64)]),
    (partial(F.nll_loss, reduction="none"), [image(3), LABELS]),
    (partial(F.nll_loss, reduction="none"), [image(3, 4, 5), image(4, 5, dtype=torch.int64)]),
    (lambda x, y, w: F.nll_loss(x, y, w), [image(3, dtype=torch.float64), LABELS, torch.ones(3, dtype=torch.float64)]),
    (partial(F.cross_entropy, reduction="sum"), [image(3, 4), image(4, dtype=torch.int64)]),
    (torch.addmm, [torch.ones(2), image(3), torch.ones(3, 2)]), (torch.addmm, [image(2), image(3), torch.ones(3, 2)]),
    (torch.addmm, [torch.ones(1, 2), image(3), torch.ones(2, 3).t()]), (F.linear, [image(3), torch.ones(2, 3)]),
    (torch.addmm, [torch.ones(()), torch.ones(2, 7), image(3)]),
    (torch.addmm, [torch.ones(1), image(3), torch.ones(3, 2)]),
])  # fmt: skip
def test_shapes_are_those_that_torch_finds(function, tensors):
    expected = found_for(function, *tensors)
    with right_shapes(nn.Linear(1, 1)):
        assert found_for(function, *tensors) == expected


@pytest.mark.parametrize(("layers", "kept"), [(3, False), (9, True)])
def test_what_calls_make_is_kept_where_layers_are_alike(layers, kept):
    before = fake_tensors.fake_tensor_cache_enabled
    with right_shapes(nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)])):
        assert FakeTensorMode().cache_enabled is (kept and before)
    assert fake_tensors.fake_tensor_cache_enabled is before


def test_a_product_of_several_matrices():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 2))

        def forward(self, x):
            return torch.linalg.multi_dot([x, self.first, self.second])

    torch.manual_seed(0)
    check(Several().double(), nn.CrossEntropyLoss(), (torch.randn(5, 3, dtype=torch.float64),), torch.randint(2, (5,)))
