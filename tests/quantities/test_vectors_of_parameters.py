"""Products of columns with vectors: V^T d and V w of groups of parameters, and gradients along directions, in float64.

They are known by what they are to each other and to inner products; gradients along a direction by forward mode.
"""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hbpcompiler as hbp
from tests.agreement import close
from tests.graph_models import made
from tests.models.test_random_graphs import graphs
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import few
from tests.uses import USES, used
from tests.ways import WAYS

RANDOM = st.one_of(settings_of(dense_chains()), settings_of(spatial_chains()))
OF_VECTORS = ["nothing fits the cache", "one sample and one column everywhere", "all columns, sample by sample",
              "compressed", "pooled", "route native kernel per column", "route one product of all columns"]
"""Ways of the planner that products with vectors might meet."""


def vectors_for(model, result, count):
    """Directions for every parameter that is in the result, and weights for every column of each group."""
    torch.manual_seed(count)
    shapes = {name: value.shape for name, value in model.named_parameters() if name in result.grad}
    directions = {name: torch.randn(count, *shape, dtype=torch.float64) for name, shape in shapes.items()}
    weights = {group: torch.randn(*gram.shape[:2], count, dtype=torch.float64) for group, gram in result.gram.items()}
    return directions, weights


def check_vectors(model, loss, inputs, y, groups=None, counts=(2,), weights_of_samples=None, *, padding=False,
                  **options):
    """V^T d and V w are adjoint, V^T (V w) is the Gram matrix times w, projected gradients are derivatives of l_n.

    `padding`: torch's gradients leave the row of a padding index out, its derivatives along a direction do not.
    """
    def called(names, **arguments):
        torch.manual_seed(0)
        return hbp.compile(model, loss, names, groups=groups, **options)(*inputs, y, **given, **arguments)

    given = {} if weights_of_samples is None else {"sample_weights": weights_of_samples}
    first = called(["gram", "grad", "batch_grad", "trace_ggn"])
    onto = hbp.compile(model, loss, ["project", "project_ggn"], groups=groups, **options)
    of_columns = hbp.compile(model, loss, ["column_sum"], groups=groups, **options)
    for count in counts:
        directions, weights = vectors_for(model, first, count)
        torch.manual_seed(0)
        projected = onto(*inputs, y, directions=directions, **given)
        torch.manual_seed(0)
        sums = of_columns(*inputs, y, column_weights=weights, **given).column_sum
        torch.manual_seed(0)
        again = onto(*inputs, y, directions=sums, **given).project_ggn
        for group, patterns in (groups or {"all": list(first.grad)}).items():
            own = [name for name in sums if name in patterns]
            trace = torch.einsum("nknk->", first.gram[group])
            close(trace, sum(first.trace_ggn[name] for name in own), f"trace of the Gram matrix, {group}")
            left = torch.einsum("nkf,nkz->fz", projected.project_ggn[group], weights[group])
            right = sum(torch.einsum("f...,z...->fz", directions[name], sums[name]) for name in own)
            close(left, right, f"adjoint, {group}")
            close(again[group], torch.einsum("nkmj,mjf->nkf", first.gram[group], weights[group]), f"V^T V w, {group}")
            shares = sum(torch.einsum("n...,f...->nf", first.batch_grad[name], directions[name]) for name in own)
            close(projected.project[group], shares, f"projected gradients, {group}")
            if padding:
                continue
            for f in range(count):
                slopes = derivatives(model, loss, inputs, y, {name: directions[name][f] for name in own},
                                     weights_of_samples)
                close(projected.project[group][:, f], slopes, f"derivatives along directions, {group}", 1 + shares)


def derivatives(model, loss, inputs, y, direction, weights_of_samples=None):
    """Of the samples' shares of L, [N], along a direction of some parameters: by forward mode, where torch has it."""
    state = {name: value.detach().requires_grad_() for name, value in model.named_parameters() if name in direction}
    count = len(inputs[0])
    weights = torch.ones(count, dtype=torch.float64) if weights_of_samples is None else weights_of_samples

    def shares(parameters):
        torch.manual_seed(0)
        output = torch.func.functional_call(model, parameters, tuple(inputs))
        found = []
        for n, weight in enumerate(weights):  # through its own output alone: all others are held fast
            kept = (torch.arange(count) == n).double().view(-1, *[1] * (output.dim() - 1))
            found.append(weight * loss(output * kept + output.detach() * (1 - kept), y))
        return torch.stack(found)

    with sdpa_kernel(SDPBackend.MATH):  # fused attention has neither of the two
        try:
            return torch.func.jvp(shares, (state,), (direction,))[1]
        except (NotImplementedError, RuntimeError):  # as the derivative of J^T u in u
            along = torch.ones(count, dtype=torch.float64, requires_grad=True)
            back = torch.autograd.grad(shares(state) @ along, list(state.values()), create_graph=True,
                                       allow_unused=True)
            inner = sum((one * direction[name]).sum() for name, one in zip(state, back, strict=True) if one is not None)
            return torch.autograd.grad(inner, along)[0]


def weights_for(samples, weighted):
    """Every third weighs nothing."""
    return torch.tensor([0.3, 2.0, 0.0, 1.0, 0.7], dtype=torch.float64)[:samples] if weighted else None


@given(RANDOM, st.sampled_from(OF_VECTORS), st.booleans())
def test_random_chains_in_every_way(setting, way, weighted):
    model, loss, X, y = setting
    check_vectors(model, loss, [X], y, weights_of_samples=weights_for(len(X), weighted), limits=WAYS[way])


@given(graphs(), st.sampled_from(["mean", "sum"]), st.booleans())
def test_random_graphs(setting, reduction, weighted):
    model, X, y = setting
    try:
        check_vectors(model, nn.CrossEntropyLoss(reduction=reduction), [X, *model.inputs()], y,
                      weights_of_samples=weights_for(len(X), weighted))
    except hbp.UnsupportedOpError:
        assume(False)


@few(1, "other pairs of uses")
@pytest.mark.parametrize("name", USES)
def test_uses_of_a_parameter(name):
    model, X, y = used(name)
    names = [key for key, _ in model.named_parameters()]
    groups = {"first half": names[: len(names) // 2], "the others": names[len(names) // 2 :]}
    check_vectors(model, nn.CrossEntropyLoss(reduction="sum"), [X], y, groups, (3, 1), padding=name == "tokens")


@few(1, "further cases of one kind")
@pytest.mark.parametrize("name", ["transformer", "tokens", "recurrent"])
def test_weights_of_samples(name):
    """Attention, norms, embeddings, tied tables; the gradients are those of w_n l_n."""
    model, X, y = (made if name == "transformer" else used)(name)
    check_vectors(model, nn.CrossEntropyLoss(), [X], y, weights_of_samples=weights_for(len(X), True),
                  padding=name == "tokens")


def test_projected_gradients_are_derivatives_of_what_batch_loss_says():
    """By differences of the losses that a program gives."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 3, (5,))
    directions = {name: torch.randn(1, *value.shape, dtype=torch.float64) for name, value in model.named_parameters()}
    compiled = hbp.compile(model, quantities=["project", "batch_loss"])
    slopes, losses = compiled(X, y, directions=directions).project["all"], []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter += step * directions[name][0]
        losses.append(compiled(X, y, directions=directions).batch_loss)
    assert (5 * slopes[:, 0] - (losses[0] - losses[1]) / 2e-5).abs().max() < 1e-8


def test_sampled_columns_are_the_same_in_calls_that_draw_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 3)).double()
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 3, (5,))
    weights = torch.randn(5, 2, 3, dtype=torch.float64)

    def called(name, **arguments):
        compiled = hbp.compile(model, quantities=[name], mc_samples=2)
        return compiled(X, y, generator=torch.Generator().manual_seed(3), **arguments)[name]

    gram = called("gram_mc")["all"]
    sums = called("column_sum_mc", column_weights={"all": weights})
    projected = called("project_ggn_mc", directions=sums)["all"]
    close(projected, torch.einsum("nkmj,mjf->nkf", gram, weights), "V^T V w")


def test_torchscript():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3)).double()
    X, y = torch.randn(6, 1, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    check_vectors(model, nn.CrossEntropyLoss(), [X], y, counts=(2, 4), backend="torchscript")


@pytest.mark.parametrize(("quantity", "arguments", "message"), [
    ("project", {}, "directions is missing"),
    ("project", {"directions": torch.zeros(1, 2)}, "directions must be a dict of tensors"),
    ("project", {"directions": {"weight": torch.zeros(2, 2, 3)}}, r"that of 'bias' is missing, \[F, 2\]"),
    ("project", {"directions": {"weight": torch.zeros(2, 3), "bias": torch.zeros(1, 2)}},
     r"that of 'weight' has shape \[2, 3\] instead of \[F, 2, 3\]"),
    ("project", {"directions": {"weight": torch.zeros(2, 2, 3), "bias": torch.zeros(1, 2)}}, "the same number"),
    ("project", {"directions": {"weight": torch.zeros(1, 2, 3), "bias": torch.zeros(1, 2).double()}}, "torch.float64"),
    ("column_sum", {"column_weights": {"body": torch.zeros(4, 1, 2)}}, "there is nothing called 'body'; there are all"),
    ("column_sum", {"column_weights": {"all": torch.zeros(4, 2, 2)}}, r"shape \[4, 2, 2\] instead of \[N, 1, F\]"),
    ("column_sum", {"column_weights": {"all": torch.zeros(3, 1, 2)}}, "for 3 samples, and the batch has 4"),
])
def test_what_does_not_fit_is_named(quantity, arguments, message):
    model = nn.Linear(3, 2)
    with pytest.raises(hbp.InputError, match=message):
        hbp.compile(model, quantities=[quantity])(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), **arguments)
