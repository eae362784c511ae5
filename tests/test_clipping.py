"""Clipped gradients and norms over all parameters against a loop over samples, in float64, by each way there is."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.plan.steps import Tied, TiedRows
from hbpcompiler.reference import clipped_grad
from tests.clipped import AGAIN_LIMITS, FORMED_LIMITS, KEPT_LIMITS, WAYS, check_clipped
from tests.graph_models import MODELS, made
from tests.models.test_random_graphs import graphs
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import cases, few, slow
from tests.uses import USES, used

BY_POSITIONS = hbp.Limits(formed_time=0, route_times=(("Gram over positions", 0),))
STYLES = ["flat", "automatic", "opacus", "per_parameter"]
OTHERS = ("grad", "batch_l2", "variance", "diag_ggn")


def settings():
    return st.one_of(settings_of(dense_chains()), settings_of(spatial_chains()))


@given(settings(), st.sampled_from(list(WAYS)), st.sampled_from(STYLES), st.booleans())
def test_random_chains(setting, way, style, alone):
    model, loss, X, y = setting
    model.eval()
    others = () if alone else OTHERS
    _, result = check_clipped(model, loss, [X], y, WAYS[way], others, style)
    if others:
        expected = hbp.compile(model, loss, others)(X, y)
        for quantity in others:
            for name, value in expected[quantity].items():
                torch.testing.assert_close(result[quantity][name], value, rtol=1e-9, atol=1e-11)


@given(graphs(), st.sampled_from(list(WAYS)), st.sampled_from(STYLES), st.sampled_from(["mean", "sum"]), st.booleans())
def test_random_graphs(setting, way, style, reduction, weighted):
    """Also with weights of samples, one of which is zero and one negative."""
    model, X, y = setting
    weights = torch.tensor([0.3, 2.0, 0.0, -1.5], dtype=torch.float64)[: len(X)] if weighted else None
    check_clipped(model, nn.CrossEntropyLoss(reduction=reduction), [X, *model.inputs()], y, WAYS[way], (), style,
                  weights=weights)


@given(st.sampled_from(list(MODELS)), st.sampled_from(list(WAYS)))
def test_graphs(name, way):
    model, X, y = made(name)
    check_clipped(model, nn.CrossEntropyLoss(), [X], y, WAYS[way], OTHERS)


@few(2, "further cases of one kind")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", cases(USES, ["tokens"], "test_graphs draws others"))
def test_every_use_of_a_parameter(name, way):
    """An embedding that is the output layer too; a cell whose steps share weights: norms have cross terms."""
    model, X, y = used(name)
    compiled, _ = check_clipped(model, nn.CrossEntropyLoss(reduction="sum"), [X], y, WAYS[way])
    tied = {type(step) for step in compiled._current().draft.plan.closings() if isinstance(step, Tied)}
    assert tied == {"step by step": {Tied}, "tokens": {TiedRows}}.get(name, set())


class Layers(nn.Module):
    """A transformer of so many layers over five tokens, with a class for each token or for the sequence."""

    def __init__(self, depth, each_token=False):
        super().__init__()
        self.words, self.each_token = nn.Embedding(7, 8), each_token
        self.layers = nn.Sequential(*[nn.TransformerEncoderLayer(
            8, 2, 6, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(depth)])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.layers(self.words(x))
        return self.head(x) if self.each_token else self.head(x.mean(1))


def token_loss(output, target):
    """A mean over the tokens that count."""
    return F.cross_entropy(output.transpose(1, 2), target, ignore_index=-1)


def transformer(depth, **options):
    torch.manual_seed(0)
    return Layers(depth, **options).double(), torch.randint(7, (3, 5))


@few(1, "further cases of one kind")
@pytest.mark.parametrize("way", WAYS)
def test_a_loss_of_tokens_by_a_transformer(way):
    """Whatever the loss divides by, l_n is N times the sample's share of L."""
    model, X = transformer(1, each_token=True)
    y = torch.tensor([[0, 1, -1, 2, 0], [1, -1, -1, -1, 2], [2, 2, 0, 1, 1]])
    check_clipped(model, token_loss, [X], y, WAYS[way])


@slow("alike layers have tests in tests/codegen")
@pytest.mark.parametrize("style", ["flat", "per_parameter"])
def test_layers_that_are_alike_are_written_once(style):
    """Second phases of many layers are calls of one function too, and the numbers those of brute force."""
    lines = {}
    for depth in (2, 4):
        model, X = transformer(depth)
        for name, options in {"norms": {}, "clipped_grad": {"limits": KEPT_LIMITS, "clipping": style}}.items():
            compiled = hbp.compile(model, quantities=[name], example_inputs=(X, torch.tensor([0, 2, 1])), **options)
            lines[name, depth] = len(compiled.code.splitlines())
    norms, clipped = ((lines[name, 4] - lines[name, 2]) / 2 for name in ("norms", "clipped_grad"))
    assert clipped < norms + 40, lines  # forward, and columns on their way, are the same
    check_clipped(model, nn.CrossEntropyLoss(), [X], torch.tensor([0, 2, 1]), KEPT_LIMITS, clipping=style)


class Scaled(nn.Module):
    """A parameter that is one number."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.layer(x) * self.scale


@pytest.mark.parametrize("way", WAYS)
def test_a_parameter_that_is_one_number(way):
    torch.manual_seed(0)
    check_clipped(Scaled().double(), nn.CrossEntropyLoss(), [torch.randn(4, 3).double()], torch.tensor([0, 1, 1, 0]),
                  WAYS[way])


class Sequence(nn.Module):
    """An LSTM, whose steps are unrolled, and its last state."""

    def __init__(self):
        super().__init__()
        self.steps, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.steps(x)[0][:, -1])


@few(1, "further cases of one kind")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", ["python", "torchscript"])
def test_single_precision_and_torchscript(way, backend):
    torch.manual_seed(0)
    model = Sequence()
    X, y = torch.randn(4, 3, 2), torch.tensor([0, 2, 1, 1])
    _, result = check_clipped(model, nn.CrossEntropyLoss(), [X], y, WAYS[way], ("grad",), rtol=2e-5, backend=backend)
    assert result.norms.dtype == torch.float32


def images():
    """In single precision images may lie pixel by pixel: group norms, ReLU, convolutions."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False),
              nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)]
    return nn.Sequential(*layers), torch.randn(5, 3, 6, 6), torch.tensor([0, 1, 2, 3, 0])


@few(1, "further cases of one kind")
@pytest.mark.parametrize("way", WAYS)
def test_images_pixel_by_pixel_and_kept_columns_that_nothing_overwrites(way):
    model, X, y = images()
    compiled, _ = check_clipped(model, nn.CrossEntropyLoss(), [X], y, WAYS[way], ("grad", "kfac", "diag_ggn"),
                                rtol=2e-5)
    assert "mul_(" in compiled.code  # values are written over where nobody needs them


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])


def test_a_bound_may_change_with_every_call():
    model, X, y = small()
    compiled = hbp.compile(model, quantities=["clipped_grad"])
    for bound in (0.1, 1, torch.tensor(0.5), 1e9):
        expected, norms = clipped_grad(model, nn.CrossEntropyLoss(), [X], y, float(bound))
        result = compiled(X, y, max_norm=bound)
        for name, value in expected.items():
            torch.testing.assert_close(result.clipped_grad[name], value)
        torch.testing.assert_close(result.norms, norms["0.weight"])
    assert len(compiled._guards) == 1
    # a bound that nobody exceeds: the sum of the gradients, N times the mean loss's
    for name, value in hbp.compile(model, quantities=["grad"])(X, y).grad.items():
        torch.testing.assert_close(result.clipped_grad[name], 4 * value)


def test_norms_alone():
    """A quantity of its own, without a bound."""
    model, X, y = small()
    found = hbp.compile(model, quantities=["norms", "batch_l2"])(X, y)
    squares = torch.stack(list(found.batch_l2.values())).sum(0)
    torch.testing.assert_close(found.norms, 4 * squares.sqrt())


def test_chosen_parameters_have_a_norm_of_their_own():
    """Norm and sum are of the chosen ones; others, frozen ones and unused ones are in neither."""
    model, X, y = small()
    model.add_module("idle", nn.Linear(2, 2).double())
    model = Picked(model)
    model.chain[0].bias.requires_grad_(False)
    with pytest.warns(hbp.UnusedParametersWarning):
        whole = hbp.compile(model, quantities=["clipped_grad"])(X, y, max_norm=0.5)
    names = ["chain.0.weight", "chain.2.weight", "chain.2.bias"]
    expected, norms = clipped_grad(model, nn.CrossEntropyLoss(), [X], y, 0.5, parameters=names)
    assert list(whole.clipped_grad) == names
    torch.testing.assert_close(whole.norms, norms[names[0]])
    torch.testing.assert_close(whole.clipped_grad[names[0]], expected[names[0]])
    compiled = hbp.compile(model, quantities={"clipped_grad": "chain.2.*", "grad": "*"}, verify=False)
    with pytest.warns(hbp.UnusedParametersWarning):
        part = compiled(X, y, max_norm=0.5)
    expected, norms = clipped_grad(model, nn.CrossEntropyLoss(), [X], y, 0.5, parameters=names[1:])
    assert list(part.clipped_grad) == names[1:]
    assert list(part.grad) == names
    torch.testing.assert_close(part.norms, norms[names[1]])
    for name in names[1:]:
        torch.testing.assert_close(part.clipped_grad[name], expected[name])


class Picked(nn.Module):
    """The first layers of a chain; what else it has is idle."""

    def __init__(self, chain):
        super().__init__()
        self.chain = chain

    def forward(self, x):
        return self.chain[2](self.chain[1](self.chain[0](x)))


@pytest.mark.parametrize("limits", WAYS.values(), ids=WAYS)
def test_gradients_of_zero_and_those_that_are_too_large(limits):
    """A norm of zero weighs 1. One whose square is infinite weighs 0, so that the sample drops out."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    X, y = torch.tensor([[0.0], [2.0], [1e25]]), torch.zeros(3, 1)
    loss = nn.L1Loss(reduction="sum")
    result = hbp.compile(model, loss, ["clipped_grad"], limits=limits, verify=False)(X, y, max_norm=1.0)
    torch.testing.assert_close(result.norms, torch.tensor([0.0, 8**0.5, torch.inf]))
    for value in result.clipped_grad.values():
        torch.testing.assert_close(value, torch.full((1, 1), 0.5**0.5))
    # an infinite entry is no number any more, and is not hidden
    found = hbp.compile(model, loss, ["clipped_grad"], limits=limits, verify=False)(X * 1e20, y, max_norm=1.0)
    assert not any(value.isfinite().all() for value in found.clipped_grad.values())
    assert found.norms.tolist()[2] == torch.inf or found.norms[2].isnan()


@pytest.mark.parametrize("limits", WAYS.values(), ids=WAYS)
def test_one_sample_and_none(limits):
    model, X, y = small()
    loss = nn.CrossEntropyLoss(reduction="sum")
    compiled, _ = check_clipped(model, loss, [X[:1]], y[:1], limits)
    none = compiled(X[:0], y[:0], max_norm=1.0)
    assert none.norms.shape == (0,)
    assert not any(value.any() for value in none.clipped_grad.values())


@pytest.mark.parametrize(("bound", "said"), [
    (None, "max_norm"), (0.0, "positive"), (-1, "positive"), (float("nan"), "positive"), ("1", "number"),
    (torch.ones(2), "number"), (True, "number"), ({"0.weight": 1.0}, "per_parameter")])
def test_bounds_that_cannot_be(bound, said):
    model, X, y = small()
    compiled = hbp.compile(model, quantities=["clipped_grad"])
    given = {} if bound is None else {"max_norm": bound}
    with pytest.raises(hbp.InputError, match=said):
        compiled(X, y, **given)


def test_bounds_of_parameters_that_cannot_be():
    model, X, y = small()
    compiled = hbp.compile(model, quantities=["clipped_grad"], clipping="per_parameter")
    with pytest.raises(hbp.InputError) as caught:
        compiled(X, y, max_norm={"0.weight": 1.0, "0.bias": -1.0, "nobody": 1.0})
    text = str(caught.value)
    for what in ("nobody", "0.bias", "2.weight", "2.bias"):
        assert what in text
    assert "0.weight" not in text.split("Parameters")[0]
    one = compiled(X, y, max_norm=0.5)
    each = compiled(X, y, max_norm=dict.fromkeys(one.clipped_grad, 0.5))
    for name, value in one.clipped_grad.items():
        assert torch.equal(each.clipped_grad[name], value)


def test_a_style_that_is_none():
    with pytest.raises(hbp.CompileError, match="flat, per_parameter, automatic, opacus"):
        hbp.compile(nn.Linear(2, 2), quantities=["clipped_grad"], clipping="global")


def test_a_bound_for_nothing():
    model, X, y = small()
    with pytest.raises(hbp.InputError, match="max_norm"):
        hbp.compile(model, quantities=["grad"])(X, y, max_norm=1.0)


def test_a_loss_without_a_scale_is_refused():
    model, X, y = small()
    with pytest.raises(hbp.CompileError, match="clipped_grad"):
        hbp.compile(model, lambda output, target: F.cross_entropy(output, target, reduction="sum") / len(target) ** 0.5,
                    ["clipped_grad"])(X, y, max_norm=1.0)


def test_weights_of_samples_come_first():
    """g_n is then that of w_n l_n: whatever the weights, no sample adds more than the bound."""
    model, X, y = small()
    weights = torch.tensor([1.0, 0.0, 3.0, -2.0], dtype=torch.float64)
    compiled = hbp.compile(model, quantities=["clipped_grad"])
    plain = compiled(X, y, max_norm=1e-3)
    found = compiled(X, y, max_norm=1e-3, sample_weights=weights)
    torch.testing.assert_close(found.norms, weights.abs() * plain.norms)
    each = {name: value * 4 for name, value in hbp.compile(model, quantities=["batch_grad"])(X, y).batch_grad.items()}
    scale = weights * (1e-3 / (weights.abs() * plain.norms)).clamp(max=1)
    for name, value in each.items():
        torch.testing.assert_close(found.clipped_grad[name], torch.einsum("n,n...->...", scale.nan_to_num(), value))


def test_copies_and_results_that_are_kept():
    model, X, y = small()
    compiled = hbp.compile(model, quantities=["clipped_grad"], clipping="automatic")
    result = compiled(X, y, max_norm=1.0)
    again = copy.deepcopy(compiled)(X, y, max_norm=1.0)
    kept = pickle.loads(pickle.dumps(result))
    for name, value in result.clipped_grad.items():
        assert torch.equal(again.clipped_grad[name], value)
        assert torch.equal(kept.clipped_grad[name], value)
    assert torch.equal(kept.norms, result.norms)
    result.to_parameters()
    assert model[0].weight.clipped_grad is result.clipped_grad["0.weight"]


def test_both_ways_are_equal_to_rounding():
    model, X, y = images()
    model, X = model.double(), X.double()
    found = [hbp.compile(model, quantities=["clipped_grad"], limits=limits)(X, y, max_norm=1.0)
             for limits in (KEPT_LIMITS, AGAIN_LIMITS, FORMED_LIMITS)]
    for name, value in found[0].clipped_grad.items():
        for other in found[1:]:
            torch.testing.assert_close(other.clipped_grad[name], value, rtol=1e-12, atol=1e-15)


def test_words_that_come_twice_and_padding_in_inner_products_of_positions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=2), nn.LayerNorm(3), nn.Flatten(), nn.Linear(18, 2)).double()
    X, y = torch.tensor([[0, 2, 0, 1, 4, 2], [3, 3, 3, 3, 3, 3], [2, 2, 2, 2, 2, 2]]), torch.tensor([0, 1, 0])
    compiled, _ = check_clipped(model, nn.CrossEntropyLoss(), [X], y, BY_POSITIONS)
    assert "one_hot" not in compiled.code
