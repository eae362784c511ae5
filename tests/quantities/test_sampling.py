"""Monte-Carlo quantities: with the samples known, against brute force; and in expectation, against the exact ones."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import Forward, jacobian, reference
from tests.agreement import close
from tests.selection import few

LOSSES = {
    "cross entropy": (nn.CrossEntropyLoss(), lambda n, c: torch.randint(0, c, (n,))),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), lambda n, c: torch.randint(0, c, (n,))),
    "weighted": (nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)),
                 lambda n, c: torch.randint(0, c, (n,))),
    "mse": (nn.MSELoss(), lambda n, c: torch.randn(n, c, dtype=torch.float64)),
    "bce": (nn.BCEWithLogitsLoss(), lambda n, c: torch.rand(n, c, dtype=torch.float64).round()),
    "poisson": (nn.PoissonNLLLoss(), lambda n, c: torch.randint(0, 4, (n, c)).double()),
    "huber": (nn.HuberLoss(), lambda n, c: torch.randn(n, c, dtype=torch.float64)),
}


def small(samples=3, loss="cross entropy"):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    function, draw = LOSSES[loss]
    return model, function, torch.randn(samples, 4, dtype=torch.float64), draw(samples, 3)


def columns_drawn(compiled, X, y, seed):
    """The columns at the model's output, [N, M, C]: the loss's own draw under the same seed, and nothing else."""
    built = compiled._current()
    (check,) = built.losses
    rule, op = check.rule, check.op
    output = compiled.model(X).detach()
    tensors = {"target": y, rule.input: output}
    real = op.bound_again(lambda value, batched: value)
    state = compiled.state
    for name in ("weight", "pos_weight"):
        if op.has(name):
            tensors[name] = state[f"loss:{name}"]
    real._tensors = tensors.__getitem__
    torch.manual_seed(seed)
    return rule.sample(real, compiled.options.mc_samples)


@few(4, "further cases of one kind")
@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "huber"])
@pytest.mark.parametrize("samples", [1, 3])
def test_known_samples(loss, samples):
    model, function, X, y = small(loss=loss)
    compiled = hbp.compile(model, function, ["diag_ggn_mc", "kfac"], mc_samples=samples)
    torch.manual_seed(5)
    result = compiled(X, y)
    columns = columns_drawn(compiled, X, y, 5)
    assert columns.shape == (3, samples, 3)
    run = Forward(model, function, [X], y)
    scale = 1 / len(X) if function.reduction == "mean" else 1
    for name, parameter in model.named_parameters():
        rows = jacobian(run.output, parameter).view(3, 3, -1)
        pulled = torch.einsum("nkc,ncp->nkp", columns, rows)
        block = scale * torch.einsum("nkp,nkq->pq", pulled, pulled)
        close(result.diag_ggn_mc[name], block.diagonal().view_as(parameter), f"diag_ggn_mc of {name}")
        if name.endswith("bias"):
            close(result.kfac[name].B, block, f"kfac of {name}")
            weight = name.replace("bias", "weight")
            close(result.kfac[weight].B, block, f"kfac of {weight}: without positions the bias's block is B")


@few(2, "further cases of one kind")
@pytest.mark.parametrize("loss", list(LOSSES))
def test_expectation(loss):
    model, function, X, y = small(loss=loss)
    compiled = hbp.compile(model, function, ["diag_ggn_mc"], mc_samples=4000)
    result = compiled(X, y, generator=torch.Generator().manual_seed(3))
    for name, exact in reference(model, function, [X], y, "diag_ggn").items():
        # 12,000 draws: relative standard errors are below 2 %.
        error = (result.diag_ggn_mc[name] - exact).norm() / exact.norm()
        assert error < 0.08, f"{name}: {error:.3f}"


def test_generator_repeats_draws_and_leaves_the_global_one_alone():
    model, function, X, y = small()
    compiled = hbp.compile(model, function, ["kfac"])
    before = torch.get_rng_state()
    first = compiled(X, y, generator=torch.Generator().manual_seed(0)).kfac["0.weight"].B
    again = compiled(X, y, generator=torch.Generator().manual_seed(0)).kfac["0.weight"].B
    other = compiled(X, y, generator=torch.Generator().manual_seed(1)).kfac["0.weight"].B
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.filterwarnings("ignore::hbpcompiler.errors.IndefiniteCurvatureWarning")
def test_very_many_samples_at_two_outputs():
    """So many columns that a layer without positions closes them in chunks."""
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(4, 1)

        def forward(self, x):
            hidden = torch.tanh(self.inner(x))
            return self.left(hidden), self.right(hidden)

    def loss(output, y):
        return (output[0] * output[1] - y).square().mean()

    torch.manual_seed(0)
    model, X, y = Two().double(), torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    sampled = hbp.compile(model, loss, quantities=["diag_ggn_mc"], mc_samples=40_000)(X, y).diag_ggn_mc
    exact = hbp.compile(model, loss, quantities=["diag_ggn"])(X, y).diag_ggn
    for key, value in exact.items():
        assert (sampled[key] - value).abs().max() < 0.03 * value.abs().max(), key


@few(4, "other quantities")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_can_be_drawn_from_outputs_that_are_not_finite(loss, bad):
    """The results are not finite, as the gradient is; torch's draws would stop there, on a GPU the whole process."""
    model, function, X, y = small(3, loss)
    compiled = hbp.compile(model, function, ["grad", "diag_ggn_mc", "kfac"])
    for first in (True, False):  # what the first call is, is proven
        X[1] = bad if first else float("nan")
        result = compiled(X, y)
        assert not result.grad["2.bias"].isfinite().all()
        assert not result.diag_ggn_mc["0.weight"].isfinite().all()
        assert not result.kfac["0.weight"].A.isfinite().all()
