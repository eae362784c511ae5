"""torch.no_grad() and torch.inference_mode() inside a model or a loss: what they make is a constant, as in torch."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.fx_graph.functional import functional
from hbpcompiler.compiler.trace.fx_graph.gradients_off import without_their_derivatives
from hbpcompiler.reference import reference
from tests.selection import few, slow

EXACT = ["grad", "batch_grad", "diag_ggn", "diag_h"]


class Blocks(nn.Module):
    """`inside(model, h)` runs between two layers."""

    def __init__(self, inside):
        super().__init__()
        self.first, self.last, self.inside = nn.Linear(3, 4), nn.Linear(4, 3), inside
        self.register_buffer("centre", torch.zeros(4))

    def forward(self, x):
        return self.last(self.inside(self, self.first(x)))


def scaled(model, h):
    with torch.no_grad():
        size = h.abs().mean(-1, keepdim=True)
    return (h / size).tanh()


def in_a_mode(model, h):
    with torch.inference_mode():
        aside = h.sin()
    return h + aside


@torch.no_grad()
def decorated(h):
    return h.square().sum(1, keepdim=True)


def by_decorator(model, h):
    return h * decorated(h).sigmoid()


def turned_on_again(model, h):
    with torch.no_grad():
        size = h.norm(dim=-1, keepdim=True)
        with torch.enable_grad():
            bent = (h / size).sin()
        factor = bent.exp()
    return bent * factor


def under_autocast(model, h):
    with torch.autocast("cpu", enabled=False):
        with torch.no_grad():
            low = h.amin(1, keepdim=True)
        h = h - low
    return h.sigmoid()


def several_results(model, h):
    with torch.no_grad():
        values, places = h.topk(2, dim=1)
        mask = torch.zeros_like(h).scatter_(1, places, 1.0)
    return h * mask + values.sum(1, keepdim=True)


def moving_average(model, h):
    with torch.no_grad():
        model.centre.mul_(0.9).add_(h.mean(0), alpha=0.1)
    return h - model.centre.detach().clone().mul(0) + h.tanh()


def own_parameter(model, h):
    with torch.no_grad():
        weight = model.first.weight / model.first.weight.norm()
    return (h @ weight @ weight.T).tanh()


def decorated_of_input(model, h):
    return h * decorated(torch.ones(len(h), 4, dtype=h.dtype)).sigmoid()


@few(1, "further cases of one kind")
@pytest.mark.parametrize("inside", [scaled, in_a_mode, by_decorator, turned_on_again, several_results, moving_average,
                                    own_parameter, decorated_of_input])
def test_what_a_block_makes_is_a_constant(inside):
    torch.manual_seed(0)
    model = Blocks(inside).double()
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    loss = nn.CrossEntropyLoss()
    for surroundings in (torch.enable_grad, torch.no_grad):
        with surroundings():
            result = hbp.compile(model, loss, EXACT, verify="full")(X, y)
        for quantity in EXACT:
            for name, expected in reference(model, loss, [X], y, quantity).items():
                torch.testing.assert_close(result[quantity][name], expected, rtol=1e-9, atol=1e-12)


def test_a_value_that_enters_a_block_is_detached_and_the_block_is_laid_open():
    def inside(model, h):
        with torch.no_grad():
            size = h.abs().amax(1, keepdim=True)
        return h / size

    model, X = Blocks(inside), torch.randn(2, 3)
    program = torch.export.export(model, (X,), strict=False)
    before = [str(node.target) for node in program.graph.nodes]
    assert "wrap_with_set_grad_enabled" in " ".join(before)
    without_their_derivatives(program)
    after = [str(node.target) for node in program.graph.nodes]
    assert after.count("aten.detach.default") == 1
    assert "wrap_with_set_grad_enabled" not in " ".join(after)
    torch.testing.assert_close(program.run_decompositions({}).module()(X), model(X))


def test_a_block_that_nothing_trained_comes_into_is_laid_open_as_it_is(monkeypatch):
    """So that no second trace of torch's is needed, in which the block's lines would be lost."""
    model, X = Blocks(decorated_of_input), torch.randn(2, 3)
    program = torch.export.export(model, (X,), strict=False)
    assert "wrap_with_set_grad_enabled" in " ".join(str(node.target) for node in program.graph.nodes)
    without_their_derivatives(program)
    targets = [str(node.target) for node in program.graph.nodes]
    assert "wrap_with_set_grad_enabled" not in " ".join(targets)
    assert "aten.detach.default" not in targets
    torch.testing.assert_close(program.module()(X), model(X))
    monkeypatch.setattr(type(program), "run_decompositions", None)
    assert not program.graph.find_nodes(op="get_attr")
    functional(program)


def test_a_block_inside_autocast_which_the_trace_loses_is_refused_by_the_proof():
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    with pytest.raises(hbp.ProofError, match=r"torch\.no_grad\(\), used in .*test_gradients_off.*x\.detach\(\)"):
        hbp.compile(Blocks(under_autocast).double(), quantities=["grad"])(X, y)


@slow("blocks of the model are tested")
def test_a_block_in_the_loss():
    """A focal loss whose factor is no function of the parameters."""

    def loss(output, target):
        terms = nn.functional.cross_entropy(output, target, reduction="none")
        with torch.no_grad():
            factor = (1 - (-terms).exp()) ** 2
        return (factor * terms).mean()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    result = hbp.compile(model, loss, EXACT)(X, y)
    for quantity in EXACT:
        for name, expected in reference(model, loss, [X], y, quantity).items():
            torch.testing.assert_close(result[quantity][name], expected, rtol=1e-9, atol=1e-12)


def test_a_frozen_part_is_left_out_as_torch_leaves_it():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            with torch.no_grad():
                x = self.body(x).relu()
            return self.head(x)

    torch.manual_seed(0)
    model = Frozen().double()
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    with pytest.warns(hbp.UnusedParametersWarning, match=r"body\.weight"):
        result = hbp.compile(model, quantities=["grad", "kfac"])(X, y)
    assert set(result.grad) == {"head.weight", "head.bias"}
    nn.CrossEntropyLoss()(model(X), y).backward()
    assert model.body.weight.grad is None
    torch.testing.assert_close(result.grad["head.weight"], model.head.weight.grad)


def test_a_change_in_place_under_no_grad_is_refused_by_its_line():
    """Its derivative stays that of the value before, as no operation's does."""

    def clamped(model, h):
        h = h * 2
        with torch.no_grad():
            h[:, :2].clamp_(0, 1)
        return h.sin()

    text = r"changed in place under torch\.no_grad\(\)(.|\n)*test_gradients_off.*\n.*\(changed - h\)\.detach\(\)"
    for verify in (True, False):
        with pytest.raises(hbp.CompileError, match=text):
            hbp.compile(Blocks(clamped), quantities=["grad"], verify=verify)(torch.randn(2, 3), torch.tensor([0, 1]))


class Doubled(torch.autograd.Function):
    """A block without gradients in its forward, where gradients are off anyway."""

    @staticmethod
    def forward(ctx, x):
        with torch.no_grad():
            factor = torch.full_like(x, 2.0)
        return x * factor

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_a_block_in_a_function_of_the_users_ends_with_it():
    torch.manual_seed(0)
    model = Blocks(lambda model, h: Doubled.apply(h).sin()).double()
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    own = vars(torch.autograd.Function)["apply"]
    for verify in (True, False):
        result = hbp.compile(model, quantities=["grad"], verify=verify)(X, y)
        for name, expected in reference(model, nn.CrossEntropyLoss(), [X], y, "grad").items():
            torch.testing.assert_close(result.grad[name], expected, rtol=1e-9, atol=1e-12)
    assert vars(torch.autograd.Function)["apply"] is own


def test_a_tensor_of_inference_mode_that_torch_cannot_differentiate():
    """The model itself fails: a clear word, no number."""

    def saved(model, h):
        with torch.inference_mode():
            factor = h.sin()
        return h * factor

    model = Blocks(saved)
    X, y = torch.randn(2, 3), torch.tensor([0, 1])
    with pytest.raises(RuntimeError, match="Inference tensors"):
        nn.functional.cross_entropy(model(X), y)
    with pytest.raises(hbp.HbpError, match=r"[Ii]nference"):
        hbp.compile(model, quantities=["grad"])(X, y)


class Weighed(nn.Module):
    """A block without gradients that makes no difference where the weights are zero."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x, weight):
        h = self.first(x).tanh()
        with torch.no_grad():
            target = self.last(h).softmax(-1)
        return self.last(h) + weight[:, None] * target


def without_switch(function):
    def run():
        torch.set_grad_enabled(False)
        try:
            return function()
        finally:
            torch.set_grad_enabled(True)

    return run


SURROUNDINGS = {"no_grad": torch.no_grad(), "inference_mode": torch.inference_mode(),
                "set_grad_enabled": without_switch}


@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("verify", [True, False])
def test_gradients_that_are_off_around_the_first_call(name, verify):
    """A trace sees what turns them off in the model all the same."""
    torch.manual_seed(0)
    model = Weighed().double()
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    compiled = hbp.compile(model, quantities=["grad", "diag_ggn"], verify=verify)
    around = SURROUNDINGS[name]
    for weight in (torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)):
        result = around(lambda weight=weight: compiled(X, weight, y))()
        for quantity in ("grad", "diag_ggn"):
            for each, expected in reference(model, nn.CrossEntropyLoss(), [X, weight], y, quantity).items():
                torch.testing.assert_close(result[quantity][each], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", [hbp.optim.KFAC, hbp.optim.Diagonal, hbp.optim.BlockNewton, hbp.optim.Newton])
def test_optimizers_whose_steps_turn_them_off(optimizer):
    torch.manual_seed(0)
    model = Weighed().double()
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    steps = optimizer(model, nn.CrossEntropyLoss())
    for weight in (torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)):
        right = reference(model, nn.CrossEntropyLoss(), [X, weight], y, "grad")
        steps.step(X, weight, y)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, right[name], rtol=1e-9, atol=1e-12)
