"""Inner products of columns over groups of parameters, against the samples' own GGN blocks by brute force.

Columns are square roots, of which there are many: what is compared does not depend on the choice. With G_n the share of
sample n in the group's GGN and g_m that of sample m in the gradient, sum_kj gram[n, k, m, j]^2 is the product
<G_n, G_m>, and sum_k cross[n, k, m]^2 is g_m^T G_n g_m.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import Forward, jacobian
from tests.agreement import close
from tests.graph_models import MODELS, made
from tests.models.test_indices import PLACES, Tables
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import few
from tests.uses import USES, used
from tests.ways import WAYS

RANDOM = st.one_of(settings_of(dense_chains()), settings_of(spatial_chains()))
OF_INNER_PRODUCTS = ["nothing fits the cache", "one sample and one column everywhere", "tails of one column",
                     "all columns, sample by sample", "compressed", "pooled", "route inner products of pairs",
                     "route product in parts", "route batched product"]
"""Ways of the planner that inner products might meet."""


class BruteForce:
    """G_n and g_n of a group of parameters, from autograd."""

    def __init__(self, model, loss, inputs, y, names=None, seed=0):
        run = Forward(model, loss, inputs, y, seed)
        names = list(run.parameters) if names is None else names
        rows = torch.cat([jacobian(run.output, run.parameters[name]) for name in names], 1)
        size, count = run.output[0].numel(), run.batch
        rows, curvature = rows.view(count, size, -1), run.curvature.view(count, size, count, size)
        self.ggn = torch.stack([rows[n].T @ curvature[n, :, n] @ rows[n] for n in range(count)])
        self.gradients = torch.cat([run.batch_grad(name).flatten(1) for name in names], 1)

    def check(self, gram, cross, what):
        products = torch.einsum("nab,mab->nm", self.ggn, self.ggn)
        close(gram.square().sum((1, 3)), products, f"products of blocks, {what}")
        trace = torch.einsum("nknk->n", gram)
        close(trace, torch.einsum("naa->n", self.ggn), f"traces, {what}")
        assert torch.equal(gram, gram.permute(2, 3, 0, 1))
        half = torch.einsum("nab,mb->nma", self.ggn, self.gradients)
        scale = products.max().sqrt() * self.gradients.square().sum(1).max()
        close(cross.square().sum(1), torch.einsum("nma,ma->nm", half, self.gradients), f"lengths, {what}", scale)
        close(torch.einsum("nkm,nkpj,pjl->nmpl", cross, gram, cross), torch.einsum("nma,pla->nmpl", half, half),
              f"both together, {what}", scale * products.max().sqrt())


@given(RANDOM, st.sampled_from(OF_INNER_PRODUCTS))
def test_random_chains_in_every_way(setting, way):
    model, loss, X, y = setting
    torch.manual_seed(0)
    result = hbp.compile(model, loss, ["gram", "cross", "batch_dot", "diag_h"], limits=WAYS[way])(X, y)
    wanted = BruteForce(model, loss, [X], y)
    wanted.check(result.gram["all"], result.cross["all"], way)
    close(sum(result.batch_dot.values()), wanted.gradients @ wanted.gradients.T, f"batch_dot, {way}")


@given(st.sampled_from(list(MODELS)), st.sampled_from(OF_INNER_PRODUCTS))
def test_graphs(name, way):
    model, X, y = made(name)
    loss = nn.CrossEntropyLoss()
    result = hbp.compile(model, loss, ["gram", "cross"], limits=WAYS[way])(X, y)
    BruteForce(model, loss, [X], y).check(result.gram["all"], result.cross["all"], f"{name} by {way}")


@few(1, "other pairs of uses")
@pytest.mark.parametrize("name", USES)
def test_uses_of_a_parameter_in_groups(name):
    """Tied weights, embeddings, norms, convolutions of all kinds, attention, a recurrent layer; a group for each half
    of the parameters and one parameter in none."""
    model, X, y = used(name)
    loss, names = nn.CrossEntropyLoss(reduction="sum"), [key for key, _ in model.named_parameters()][1:]
    groups = {"first half": names[: len(names) // 2], "the others": names[len(names) // 2 :]}
    result = hbp.compile(model, loss, ["gram", "cross"], groups=groups)(X, y)
    assert list(result.gram) == list(result.cross) == list(groups)
    for group, own in groups.items():
        BruteForce(model, loss, [X], y, own).check(result.gram[group], result.cross[group], f"{group} of {name}")


@few(1, "other layers")
@pytest.mark.parametrize("way", OF_INNER_PRODUCTS)
def test_tables_by_index(way):
    """Rows of parameters that are picked by tensors of indices, index_select and an embedding, equal ones among them;
    single entries of one; a row for each sample."""
    torch.manual_seed(0)
    model, y = WithWords().double(), torch.tensor([0, 1])
    result = hbp.compile(model, nn.CrossEntropyLoss(), ["gram", "cross", "batch_dot"], limits=WAYS[way])(PLACES, y)
    wanted = BruteForce(model, nn.CrossEntropyLoss(), [PLACES], y)
    wanted.check(result.gram["all"], result.cross["all"], way)
    close(sum(result.batch_dot.values()), wanted.gradients @ wanted.gradients.T, f"batch_dot, {way}")


class WithWords(nn.Module):
    """Tables beside an embedding whose third row learns nothing, and one word more for each sample."""

    def __init__(self):
        super().__init__()
        self.tables, self.words = Tables(), nn.Embedding(4, 3, padding_idx=2)

    def forward(self, places):
        words = self.words(places % 4)
        return self.tables(places) + (words.mean(1) * self.words(places[:, 0])).cumsum(1)[:, 1:]


class TwoHeads(nn.Module):
    """Two outputs, one of them reversed, that share a layer; a scale behind the reversal."""

    def __init__(self):
        super().__init__()
        self.body, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0]))

    def forward(self, x):
        x = torch.tanh(self.body(x))
        return self.left(x), self.right(x).flip(1) * self.scale


def of_both(output, y):
    """Curvature that arrives in three pieces: columns at one output, two diagonals at the other."""
    (left, right), (label, near, far) = output, y
    return F.cross_entropy(left, label) + F.mse_loss(right, near) + 0.5 * F.huber_loss(right, far)


def test_columns_of_several_outputs_and_losses_have_one_number_everywhere():
    torch.manual_seed(0)
    model, X = TwoHeads().double(), torch.randn(3, 3, dtype=torch.float64)
    y = (torch.tensor([0, 2, 1]), *torch.randn(2, 3, 2, dtype=torch.float64))
    groups = {"body": ["body.*"], "heads": ["left.*", "right.*", "scale"]}
    for given_groups in (None, groups):
        result = hbp.compile(model, of_both, ["gram", "cross", "grad"], groups=given_groups)(X, y)
        for group in given_groups or {"all": None}:
            own = None if given_groups is None else [name for name, _ in model.named_parameters()
                                                     if name.startswith("body") == (group == "body")]
            BruteForce(model, of_both, [X], y, own).check(result.gram[group], result.cross[group], group)


def test_square_roots_of_several_parameters_belong_together():
    """Also those at heads that some columns do not reach."""
    torch.manual_seed(0)
    model, X = TwoHeads().double(), torch.randn(3, 3, dtype=torch.float64)
    y = (torch.tensor([0, 2, 1]), *torch.randn(2, 3, 2, dtype=torch.float64))
    root = hbp.compile(model, of_both, ["sqrt_ggn"])(X, y).sqrt_ggn
    rows = torch.cat([columns.flatten(2) for columns in root.values()], 2)
    close(torch.einsum("nka,nkb->nab", rows, rows), BruteForce(model, of_both, [X], y).ggn, "blocks")


def test_a_group_that_does_not_reach_the_loss_is_left_out():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    X, y = torch.randn(3, 2), torch.tensor([0, 1, 1])
    model.forward = lambda x: model["a"](x)
    with pytest.warns(hbp.UnusedParametersWarning):
        assert list(hbp.compile(model, quantities=["gram"], groups={"a": "a.*", "b": "b.*"})(X, y).gram) == ["a"]
    model["b"].requires_grad_(False)
    with pytest.raises(hbp.CompileError, match="no trainable parameter is in these groups: 'b'"):
        hbp.compile(model, quantities=["gram"], groups={"a": "a.*", "b": "b.*"})(X, y)


def test_sampled_columns_belong_to_the_sampled_diagonal():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 3, (5,))
    names = ["gram_mc", "cross_mc", "sqrt_ggn_mc", "batch_grad"]
    result = hbp.compile(model, quantities=names, mc_samples=2)(X, y)
    rows = torch.cat([columns.flatten(2) for columns in result.sqrt_ggn_mc.values()], 2)
    gradients = torch.cat([shares.flatten(1) for shares in result.batch_grad.values()], 1)
    close(result.gram_mc["all"], torch.einsum("nka,mja->nkmj", rows, rows), "gram_mc")
    close(result.cross_mc["all"], torch.einsum("nka,ma->nkm", rows, gradients), "cross_mc")


def test_the_same_program_for_torchscript_and_another_batch_size():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3)).double()
    X, y = torch.randn(6, 1, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    names, limits = ["gram", "cross", "batch_dot"], hbp.Limits(cache_bytes=1, recycled_bytes=1)
    plain, scripted = (hbp.compile(model, quantities=names, backend=backend, limits=limits)
                       for backend in ("python", "torchscript"))
    for rows in (slice(0, 3), slice(0, 6), slice(0, 1)):
        found, again = plain(X[rows], y[rows]), scripted(X[rows], y[rows])
        BruteForce(model, nn.CrossEntropyLoss(), [X[rows]], y[rows]).check(found.gram["all"], found.cross["all"], rows)
        for name in names:
            for key, value in found[name].items():
                assert torch.equal(value, again[name][key])


def test_one_matrix_is_alive():
    """The peak is that of the result, once, and of what a part takes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 5))
    X, y = torch.randn(64, 50), torch.randint(0, 5, (64,))
    compiled = hbp.compile(model, quantities=["gram"], example_inputs=(X, y))
    matrix = 4 * (1000 * 4) ** 2
    assert matrix < compiled.predicted_memory(1000) < 1.5 * matrix


def test_columns_of_either_sign_are_refused():
    def negative(output, y):
        return -F.mse_loss(output, y)

    model = nn.Linear(2, 2)
    with pytest.raises(hbp.UnsupportedOpError, match=r"gram: the curvature of this loss is not known to be positive"):
        hbp.compile(model, negative, ["gram"], example_inputs=(torch.randn(3, 2), torch.randn(3, 2)))


@pytest.mark.parametrize(("groups", "message"), [
    ([["0.weight"]], "groups must be a dict"),
    ({}, "groups must be a dict"),
    ({"head": []}, r"groups\['head'\] must be"),
    ({"head": ["2.weigth"]}, r"match no parameter:\s*- group 'head': '2.weigth'"),
    ({"a": ["0.*"], "b": ["*.bias"]}, r"in several groups.*\s*- 0.bias: 'a', 'b'"),
])
def test_groups_are_checked(groups, message):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    with pytest.raises(hbp.CompileError, match=message):
        hbp.compile(model, quantities=["gram"], groups=groups)


def test_a_group_that_learns_nothing_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    compiled = hbp.compile(model, quantities=["gram"], groups={"body": ["0.*"], "head": ["1.*"]})
    with pytest.raises(hbp.CompileError, match="in these groups: 'body'"):
        compiled(torch.randn(3, 2), torch.tensor([0, 1, 1]))


def test_parameters_do_not_get_what_groups_have():
    model = nn.Linear(2, 2)
    hbp.compile(model, quantities=["gram", "grad"])(torch.randn(3, 2), torch.tensor([0, 1, 1])).to_parameters()
    assert model.weight.grad is not None
    assert not hasattr(model.weight, "gram")
