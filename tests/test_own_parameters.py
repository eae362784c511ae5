"""However a model reaches its parameters, derivatives are its own: each way, with all that runs it on other numbers."""

import math
import re

import pytest
import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

import hbpcompiler as hbp
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.elsewhere import Stretched
from hbpcompiler.compiler.prove.in_double import Doubled
from hbpcompiler.compiler.prove.noise import Noise
from hbpcompiler.compiler.prove.own_step import UnseenError, own_step
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.monitor.eigenvalue import Sharpness
from hbpcompiler.operators.at_outputs import LossHessian
from hbpcompiler.operators.passes import Passes
from hbpcompiler.operators.products import Products
from hbpcompiler.reference import Forward
from tests.operators.dense import check, dense, same
from tests.selection import few
from tests.ways_to_parameters import (
    BY_MODULES,
    OTHERWISE,
    WAYS,
    Flattened,
    Got,
    InAClosure,
    InAList,
    Net,
    OnlyParameters,
    PastModules,
    Recomputed,
    RecomputedOfAList,
    Renormed,
    Reversible,
    Seen,
    Sliced,
    ToAFunction,
    WithoutInfluence,
    used_once,
)

LOSS = nn.CrossEntropyLoss()


def batch(samples=5):
    torch.manual_seed(2)
    return torch.randn(samples, 4).double(), torch.randint(3, (samples,))


def gradients(model, X, y):
    named = dict(model.named_parameters())
    found = torch.autograd.grad(LOSS(model(X), y), list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_operators(way):
    X, y = batch()
    check(way(), LOSS, (X,), y)
    check(way(), LOSS, (X,), y, names=["a.weight", "several.1"])


@few(3, "batches are weighed and targets drawn at the outputs")
@pytest.mark.parametrize("way", WAYS)
def test_operators_over_loaders_and_with_drawn_targets(way):
    X, y = batch()
    one, loader = (X, y), [(X[:2], y[:2]), (X[2:], y[2:])]
    for data, kind in ((loader, "ggn"), (loader, "fisher_empirical"), (loader, "fisher_sampled"),
                       (one, "fisher_sampled")):
        plain = Net()
        plain.load_state_dict(way().state_dict())
        if way is PastModules:
            plain.weights = lambda plain=plain: [plain.a.weight, *Net.weights(plain)]
        found, expected = (hbp.operator(model, LOSS, data, kind) for model in (way(), plain))
        same(found.to_dense(), expected.to_dense(), what=kind)
        vector = torch.randn(found.shape[0]).double()
        same(found @ vector, expected @ vector, what=kind)


def test_what_is_found_zero_now_is_not_when_the_parameters_have_moved():
    X, y = batch()
    model = WithoutInfluence()
    operator = hbp.operator(model, LOSS, (X, y))
    with torch.no_grad():
        model.b.weight.copy_(torch.randn(3, 4))
    same(operator.to_dense(), dense(Forward(model, LOSS, (X,), y), "ggn"))


@pytest.mark.parametrize("way", WAYS)
def test_the_quadratic_model_of_optimizers(way):
    X, y = batch()
    model = way()
    named = dict(model.named_parameters())
    vectors = [[torch.randn_like(each) for each in named.values()] for _ in range(2)]
    products = Products(Passes(model, LOSS, tuple(named), 0), LossHessian(), 2)
    V = torch.stack([torch.cat([part.flatten() for part in vector]) for vector in vectors], 1)
    same(products.inner(0, batch_of((X, y)), vectors), V.T @ dense(Forward(model, LOSS, (X,), y), "ggn") @ V)


@few(2, "one quadratic model, which has each way of its own above")
@pytest.mark.parametrize("optimizer", [hbp.optim.KFAC, hbp.optim.EKFAC])
@pytest.mark.parametrize("way", [Sliced, OnlyParameters, Got])
def test_steps_of_optimizers(way, optimizer):
    X, y = batch()
    made = [optimizer(used_once(each)(), LOSS) for each in (way, Net)]
    runs = [[float(each.step(X, y)) for _ in range(3)] for each in made]
    torch.testing.assert_close(*map(torch.tensor, runs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_the_largest_eigenvalue_of_monitors(way):
    X, y = batch()
    model = way()
    found = Sharpness(model, LOSS, 0, tolerance=1e-9).at(batch_of((X, y)), 0)
    expected = torch.linalg.eigvalsh(dense(Forward(model, LOSS, (X,), y), "hessian"))[-1]
    assert math.isclose(found, float(expected), rel_tol=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_of_monitors(way):
    X, y = batch()
    model = way()
    monitor = hbp.Monitor(model, LOSS, None, track=["grad_norm"], every=1)
    _, found = monitor._programs.by_autograd(batch_of((X, y)), 0)
    expected = gradients(model, X, y)
    for name, gradient in found.items():
        same(gradient, expected[name], what=name)
    assert all(not expected[name].any() for name in expected.keys() - found.keys())


@pytest.mark.parametrize("way", [way for way in WAYS if way is not Seen])  # a view has the parameter's old memory
def test_steps_on_other_numbers(way):
    X, y = batch()
    model, moved = way(), way()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(4)
    given = batch_of((X, y))
    for moves, expected in ((None, gradients(model, X, y)), (Stretched(4.0, 4.0), gradients(moved, 4 * X, y)),
                            (Noise(0.0, 1), gradients(model, X, y))):
        step = own_step(model, LOSS, given, Draws.now(torch.device("cpu")), moves)
        for name, gradient in step.gradients.items():
            same(gradient, expected[name], what=name)
        assert all(not expected[name].any() for name in expected.keys() - step.gradients.keys())


@pytest.mark.parametrize("way", [*BY_MODULES, *OTHERWISE])
def test_steps_in_double_precision(way):
    """Tensors of another dtype are put in the place of parameters: rather no number than one without some."""
    X, y = batch()
    single, given = way().float(), batch_of((X.float(), y))
    single.keep()  # views are made anew
    double = way()
    with torch.no_grad():
        for parameter, own in zip(double.parameters(), single.parameters(), strict=True):
            parameter.copy_(own)

    def step():
        return own_step(single, LOSS, given, Draws.now(torch.device("cpu")), Doubled())

    if way in OTHERWISE:
        with pytest.raises((UnseenError, RuntimeError)):
            step()
    else:
        expected = gradients(double, X.float().double(), y)
        for name, gradient in step().gradients.items():
            same(gradient, expected[name], what=name)


@pytest.mark.parametrize("way", BY_MODULES)
def test_proofs(way):
    X, y = batch()
    quantities = ["grad", "batch_grad", "diag_h", "diag_ggn"]
    compiled = hbp.compile(way(), LOSS, quantities, verify="full")
    assert all(line.agrees for line in compiled.verify(X, y).lines if line.compared)
    plain = hbp.compile(Net(), LOSS, quantities)(X, y)
    for name, value in compiled(X, y).diag_h.items():
        same(value, plain.diag_h[name], what=name)


@pytest.mark.parametrize(("way", "said"), [
    (InAList, "Read each as its own attribute"), (ToAFunction, "Read each as its own attribute"),
    (InAClosure, r"parameter 'several\.0' is read other than as an attribute .* read several\.0, or write"),
    (PastModules, r"parameter 'a\.weight' is read other than as an attribute .* read a\.weight, or write")])
def test_programs_are_refused_where_a_parameter_would_be_a_constant(way, said):
    with pytest.raises(hbp.HbpError, match=r"'a\.weight'") as caught:
        hbp.compile(way(), LOSS, ["grad"])(*batch())
    assert re.search(said, str(caught.value))


class Touched:
    """What a user has of a model's parameters, and whether it is the same afterwards."""

    def __init__(self, model, X, y, expected=None):
        self.model, self.calls = model, []
        self.gradients = gradients(model, X, y) if expected is None else expected
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
            parameter.register_post_accumulate_grad_hook(lambda _: self.calls.append("accumulated"))
        self.nodes = [get_gradient_edge(parameter).node for parameter in model.parameters()]
        for node in self.nodes:  # where processes' reductions listen
            node.register_hook(lambda *_: self.calls.append("arrived"))
        self.loss = LOSS(model(X), y)  # a graph that saved them
        self.before = self.now()

    def now(self):
        return [(id(each), each.data_ptr(), each._version, each.requires_grad, id(each.grad), each.stride(),
                 each.detach().clone(), each.grad.clone(), dict(each._backward_hooks or {}),
                 dict(each._post_accumulate_grad_hooks)) for each in self.model.parameters()]

    def check(self, but=()):
        assert not set(self.calls) - set(but)
        for before, now in zip(self.before, self.now(), strict=True):
            for one, other in zip(before, now, strict=True):
                assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        self.loss.backward()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, 1 + self.gradients[name])


def operators(model, X, y):
    for kind in ("ggn", "hessian", "fisher_empirical", "fisher_sampled"):
        operator = hbp.operator(model, LOSS, (X, y), kind, parameters=["a.*", "several.0"])
        operator @ torch.randn(operator.shape[0], 3).double()


def proofs(model, X, y):
    given = batch_of((X, y))
    for moves in (None, Noise(1e-3, 1), Stretched(4.0, 4.0), Doubled()):
        own_step(model, LOSS, given, Draws.now(torch.device("cpu")), moves)


def monitors(model, X, y):
    Sharpness(model, LOSS, 0).at(batch_of((X, y)), 0)
    hbp.Monitor(model, LOSS, None, track=["hess_max_ev"], every=1).observe(X, y)


@pytest.mark.parametrize("run", [operators, proofs, monitors])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_the_users_changes(way, run):
    X, y = batch()
    model = way()
    touched = Touched(model, X, y)
    run(model, X, y)
    # the one way left where neither torch.autograd.grad nor tensors in the place of parameters are the user's step
    touched.check(but=["arrived"] if way is ToAFunction and run is proofs else [])


def test_frozen_parameters_stay_frozen():
    X, y = batch()
    model = PastModules()
    model.several[0].requires_grad_(False)
    operator = hbp.operator(model, LOSS, (X, y), "hessian")
    assert "several.0" not in operator.parameters
    same(operator.to_dense(), dense(Forward(model, LOSS, (X,), y), "hessian"))
    assert [each.requires_grad for each in model.several] == [False, True]


def test_gradients_that_appear_at_the_parameters_alone():
    """Those of a step are found, and set aside: nothing is added to the user's."""
    X, y = batch()
    model = Reversible()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    LOSS(model(X), y).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    kept = {name: gradient.clone() for name, gradient in expected.items()}
    for moves in (None, Noise(0.0, 1)):
        step = own_step(model, LOSS, batch_of((X, y)), Draws.now(torch.device("cpu")), moves)
        for name, gradient in step.gradients.items():
            same(gradient, expected[name], what=name)
        assert step.gradients["a.weight"].any()
    with pytest.raises(hbp.HbpError):
        hbp.operator(model, LOSS, (X, y), "hessian")
    for name, parameter in model.named_parameters():
        assert parameter.grad is expected[name]
        assert torch.equal(parameter.grad, kept[name])


@pytest.mark.parametrize("way", [Recomputed, RecomputedOfAList])
def test_checkpoints_of_torchs_older_kind(way):
    X, y = batch()
    model = way()
    LOSS(model(X), y).backward()
    expected = {name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for name, parameter in model.named_parameters()}
    touched = Touched(model, X, y, expected)
    for moves in (None, Noise(0.0, 1)):
        step = own_step(model, LOSS, batch_of((X, y)), Draws.now(torch.device("cpu")), moves)
        for name, gradient in step.gradients.items():
            same(gradient, expected[name], what=name)
        assert step.gradients["several.0"].any()
    touched.check(but=["arrived"] if way is RecomputedOfAList else [])


def test_hooks_of_gradients_have_a_part_in_steps_and_none_in_operators():
    X, y = batch()
    model, calls = InAList(), []
    expected = dense(Forward(model, LOSS, (X,), y), "hessian")
    own = gradients(model, X, y)
    model.a.weight.register_hook(lambda gradient: (calls.append(1), 2 * gradient)[1])
    same(hbp.operator(model, LOSS, (X, y), "hessian").to_dense(), expected)
    assert not calls
    for moves in (None, Noise(0.0, 1)):
        step = own_step(model, LOSS, batch_of((X, y)), Draws.now(torch.device("cpu")), moves)
        same(step.gradients["a.weight"], 2 * own["a.weight"])
    assert len(calls) == 2


def test_what_forward_writes_into_parameters_is_gone_afterwards():
    model = Renormed().double()
    X, y = torch.randint(6, (5, 2)), torch.randint(3, (5,))
    weight, version = model.first.weight.detach().clone(), model.first.weight._version
    kept = model.first.weight.square().sum()
    found = hbp.operator(model, LOSS, (X, y), "ggn").to_dense()
    Sharpness(model, LOSS, 0).at(batch_of((X, y)), 0)
    assert torch.equal(model.first.weight, weight)
    assert model.first.weight._version == version
    kept.backward()
    model(X)
    same(found, dense(Forward(model, LOSS, (X,), y), "ggn"))


def test_only_copies_of_a_recurrent_layers_weights_are_moved_for_cudnn():
    model = Flattened(4, 3, batch_first=True).double()
    users = {each.data_ptr() for each in model.parameters()}
    moved = model.pointers = []
    X, y = torch.randn(5, 2, 4).double(), torch.randn(5, 2, 3).double()

    def loss(output, target):
        return nn.functional.mse_loss(output[0], target)

    operator = hbp.operator(model, loss, (X, y), "hessian", parameters="weight_ih_l0")
    operator @ torch.randn(operator.shape[0]).double()
    assert not moved
    operator = hbp.operator(model, loss, (X, y), "hessian")
    same(operator.to_dense(), dense(Forward(model, loss, (X,), y), "hessian"))
    assert moved
    assert all(users.isdisjoint(pointers) for pointers in moved)
