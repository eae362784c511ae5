"""Per-sample gradients and clipped sums where Opacus's optimizers take them: against autograd, and Opacus's hooks."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.bridges.opacus import clip, fill_grad_sample
from tests.selection import few

BOUND = 0.4


class Net(nn.Module):
    """Words, attention, norms, a grouped convolution, a layer that is used twice, and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.words, self.norm, self.qkv = nn.Embedding(7, 8), nn.LayerNorm(8), nn.Linear(8, 24)
        self.again, self.conv = nn.Linear(8, 8), nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.group, self.head, self.fixed = nn.GroupNorm(2, 8), nn.Linear(8, 3), nn.Linear(8, 8)
        self.fixed.requires_grad_(False)

    def forward(self, x):
        x = self.norm(self.words(x))
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v)
        x = self.fixed(self.again(torch.tanh(self.again(x))))
        return self.head(self.group(self.conv(x.transpose(1, 2))).mean(2))


def setting():
    torch.manual_seed(0)
    return Net().double(), torch.randint(7, (6, 5)), torch.randint(3, (6,))


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def sample_gradients(model, X, y):
    """grad l_n, [N, *theta] by name, sample by sample."""
    own = trainable(model)
    rows = [torch.autograd.grad(F.cross_entropy(model(X[n : n + 1]), y[n : n + 1]), list(own.values()),
                                materialize_grads=True) for n in range(len(y))]
    return dict(zip(own, map(torch.stack, zip(*rows, strict=True)), strict=True))


@few(1, "further cases of one kind")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_of_samples(reduction):
    """Whatever the loss divides by; what comes before the optimizer's step is kept; unused parameters have zeros."""
    model, X, y = setting()
    model.unused = nn.Parameter(torch.ones(2).double())
    right = sample_gradients(model, X, y)
    compiled = hbp.compile(model, nn.CrossEntropyLoss(reduction=reduction), ["batch_grad"])
    with pytest.warns(hbp.UnusedParametersWarning, match="unused"):
        fill_grad_sample(compiled(X, y))
    for name, parameter in trainable(model).items():
        torch.testing.assert_close(parameter.grad_sample, right[name], rtol=1e-10, atol=1e-12)
    assert torch.equal(model.unused.grad_sample, torch.zeros(6, 2).double())
    assert not hasattr(model.fixed.weight, "grad_sample")
    fill_grad_sample(compiled(X[:1], y[:1]))
    first, second = model.head.weight.grad_sample
    assert (len(first), len(second)) == (6, 1)
    torch.testing.assert_close(second, right["head.weight"][:1])
    if reduction == "sum":
        model.head.weight.grad_sample = None
        fill_grad_sample(compiled(X[:0], y[:0]))
        assert model.head.weight.grad_sample.shape == (0, 3, 8)


def test_a_clipped_sum():
    """Opacus divides by norms that it adds 1e-6 to; an empty batch is zero, also of a mean."""
    model, X, y = setting()
    right = sample_gradients(model, X, y)
    norms = torch.stack([part.flatten(1).square().sum(1) for part in right.values()]).sum(0).sqrt()
    compiled = hbp.compile(model, quantities=["clipped_grad"], clipping="opacus", verify="full")
    bound = norms.median() + 1e-9
    told = clip(compiled, X, y, max_norm=bound)
    torch.testing.assert_close(told.norms, norms)
    torch.testing.assert_close(told.loss, F.cross_entropy(model(X), y))
    weights = (bound / (norms + 1e-6)).clamp(max=1)
    for name, parameter in trainable(model).items():
        torch.testing.assert_close(parameter.grad, torch.einsum("n,n...->...", weights, right[name]), rtol=1e-10,
                                   atol=1e-12)
    assert model.fixed.weight.grad is None
    told = clip(compiled, X[:0], y[:0], max_norm=1.0)
    assert told.loss.isnan()
    assert told.norms.shape == (0,)
    assert not any(parameter.grad.any() for parameter in trainable(model).values())
    kept = {name: torch.ones_like(parameter) for name, parameter in trainable(model).items()}
    clip(compiled, X[:0], y[:0], max_norm=1.0, into={"clipped_grad": kept}, decay=0.5)
    for name, parameter in trainable(model).items():
        assert parameter.grad is kept[name]
        assert (parameter.grad == 0.5).all()
    for targets, options, message in ((y, {}, "X has 0 samples"), (y[:0], {"max_norm": -1.0}, "max_norm"),
                                      (y[:0], {"foo": 3}, "foo")):
        with pytest.raises(hbp.InputError, match=message):
            clip(compiled, X[:0], targets, **{"max_norm": 1.0, **options})


def test_what_is_missing_is_named():
    model, X, y = setting()
    some = hbp.compile(model, quantities={"batch_grad": ["head.*"]})
    with pytest.raises(hbp.InputError) as caught:
        fill_grad_sample(some(X, y))
    assert "'words.weight'" in str(caught.value)
    assert "head" not in str(caught.value)
    with pytest.raises(hbp.InputError, match="words"):
        clip(hbp.compile(model, quantities={"clipped_grad": ["head.*"]}), X, y, max_norm=1.0)
    with pytest.raises(hbp.InputError, match="clipped_grad"):
        clip(some, X, y, max_norm=1.0)
    with pytest.raises(hbp.InputError, match="Tensor"):
        fill_grad_sample(X)
    assert all(getattr(parameter, "grad_sample", None) is None for parameter in model.parameters())


def private(model, mode, data, **options):
    """What `make_private` returns: model, optimizer, perhaps a criterion, loader."""
    from opacus import PrivacyEngine

    options = {"max_grad_norm": BOUND, "poisson_sampling": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PrivacyEngine().make_private(
            module=model, optimizer=torch.optim.SGD(model.parameters(), 0.1),
            data_loader=DataLoader(data, 3, generator=torch.Generator().manual_seed(5)), noise_multiplier=1.0,
            grad_sample_mode=mode,
            noise_generator=torch.Generator().manual_seed(0), **options)


def test_steps_are_those_of_opacus_hooks():
    pytest.importorskip("opacus")
    from opacus.optimizers import DPOptimizerFastGradientClipping

    model, X, y = setting()
    data, count = TensorDataset(X, y), len(trainable(model))
    each = {"clipping": "per_layer", "max_grad_norm": [0.05] * count}
    for options in ({}, each):
        theirs, their_optimizer, _ = private(copy.deepcopy(model), "hooks", data, **options)
        ours, our_optimizer, _ = private(copy.deepcopy(model), "no_op", data, **options)
        with pytest.raises(hbp.CompileError, match="no_op"):
            hbp.compile(theirs, quantities=["batch_grad"])
        compiled = hbp.compile(ours, quantities=["batch_grad"])
        for rows in (slice(0, 4), slice(4, 6)):
            F.cross_entropy(theirs(X[rows]), y[rows]).backward()
            fill_grad_sample(compiled(X[rows], y[rows]))
            for optimizer in (their_optimizer, our_optimizer):
                optimizer.step()
                optimizer.zero_grad()
        check_equal(theirs, ours, model)

    theirs, their_optimizer, _ = private(copy.deepcopy(model), "hooks", data)
    ghost, ghost_optimizer, _, _ = private(copy.deepcopy(model), "ghost", data)
    assert type(ghost_optimizer) is DPOptimizerFastGradientClipping
    ghost.remove_hooks()
    compiled = hbp.compile(ghost, quantities=["clipped_grad"], clipping="opacus")
    F.cross_entropy(theirs(X), y).backward()
    told = clip(compiled, X, y, max_norm=ghost_optimizer.max_grad_norm)
    assert (told.norms > BOUND).any()
    for optimizer in (their_optimizer, ghost_optimizer):
        optimizer.step()
    check_equal(theirs, ghost, model)


def test_poisson_batches_in_physical_parts():
    """Opacus's engine, sampler and BatchMemoryManager around a loop whose gradients are ours: steps of 1e-12."""
    pytest.importorskip("opacus")
    from opacus.utils.batch_memory_manager import BatchMemoryManager

    model, X, y = setting()
    loss, sizes = nn.CrossEntropyLoss(reduction="sum"), []

    def trained(mode):
        net, optimizer, loader = private(copy.deepcopy(model), mode, TensorDataset(X, y), poisson_sampling=True,
                                         loss_reduction="sum")
        compiled = hbp.compile(net, loss, ["batch_grad"]) if mode == "no_op" else None
        with BatchMemoryManager(data_loader=loader, max_physical_batch_size=2, optimizer=optimizer) as parts:
            for _ in range(3):
                for inputs, target in parts:
                    sizes.append(len(target))
                    if compiled is None:
                        loss(net(inputs), target).backward()
                    else:
                        fill_grad_sample(compiled(inputs, target))
                    optimizer.step()
                    optimizer.zero_grad()
        return net, sizes[-1]

    (theirs, _), (ours, _) = trained("hooks"), trained("no_op")
    half = len(sizes) // 2
    assert sizes[:half] == sizes[half:]
    assert max(sizes) == 2
    assert half > 6, "some steps are in several parts"
    check_equal(theirs, ours, model)


def check_equal(theirs, ours, before):
    for (name, a), b, start in zip(theirs.named_parameters(), ours.parameters(), before.parameters(), strict=True):
        assert a.requires_grad != torch.equal(a, start), name
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=name)
