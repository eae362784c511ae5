"""`sample_weights`: every quantity is that of sum_n w_n l_n, in float64 against brute force; and l_n itself."""

import ast
import copy
import pickle
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hbpcompiler as hbp
from hbpcompiler.reference import Weighted, kflr, reference
from tests.agreement import agree, close
from tests.graph_models import made
from tests.models.test_ways import network
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import cases, few
from tests.ways import WAYS

EXACT = ["grad", "batch_grad", "batch_l2", "second_moment", "variance", "diag_ggn", "diag_h"]
MORE = ["batch_loss", "batch_diag_h", "trace_h", "sqrt_ggn", "block"]
DOUBLE = torch.float64


def compile_quietly(*given, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hbp.IndefiniteCurvatureWarning)
        return hbp.compile(*given, **options)


def run(compiled, *batch, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return compiled(*batch, **arguments)


def check(model, loss, X, y, weights, *, quantities=EXACT, **options):
    """With these weights against brute force, with ones to the bit, and what follows of each other."""
    compiled = compile_quietly(model, loss, [*quantities, *MORE], **options)
    result = run(compiled, X, y, sample_weights=weights)
    held = Weighted(loss, weights)
    scales = reference(model, held, [X], y, "second_moment", seed=0)
    for quantity in quantities:
        for name, value in reference(model, held, [X], y, quantity, seed=0).items():
            if name in result[quantity]:
                close(result[quantity][name], value, f"{quantity} of {name}",
                      scales[name] if quantity == "variance" else None)
    for name, value in result.diag_h.items():
        close(result.batch_diag_h[name].sum(0), value, f"batch_diag_h of {name}")
        close(result.trace_h[name], value.sum(), f"trace_h of {name}")
        close(result.sqrt_ggn[name].square().sum((0, 1)), result.diag_ggn[name], f"sqrt_ggn of {name}")
        entry = torch.zeros_like(value)
        entry.view(-1)[0] = 1
        product = compiled.block_product(result, name, entry)
        close(product.view(-1)[0], value.view(-1)[0], f"block of {name}", value)
    check_losses(compiled, loss, result, X, y, weights)
    check_ones(compiled, X, y)
    assert len(compiled._guards) == 1
    return compiled, result


def check_losses(compiled, loss, result, X, y, weights):
    """batch_loss [N] and result.loss against a run without weights, and against the user's own loss."""
    plain = run(compiled, X, y)
    is_mean = getattr(loss, "reduction", "mean") == "mean"
    torch.testing.assert_close(plain.batch_loss.mean() if is_mean else plain.batch_loss.sum(), plain.loss)
    torch.testing.assert_close(result.batch_loss, weights * plain.batch_loss)
    torch.testing.assert_close(result.batch_loss.mean() if is_mean else result.batch_loss.sum(), result.loss)


def parts(value):
    """The tensors of a result."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else []
    return [part for item in items for part in parts(item)]


def check_ones(compiled, X, y):
    plain, ones = run(compiled, X, y), run(compiled, X, y, sample_weights=torch.ones(len(X)))
    assert torch.equal(plain.loss, ones.loss)
    for quantity in plain:
        for one, other in zip(parts(plain[quantity]), parts(ones[quantity]), strict=True):
            assert torch.equal(one, other), quantity


def drawn(data, samples):
    """Weights, some of them zero."""
    numbers = st.one_of(st.just(0.0), st.floats(0.1, 3))
    return torch.tensor(data.draw(st.lists(numbers, min_size=samples, max_size=samples)), dtype=DOUBLE)


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())), st.data())
def test_random_networks(setting, data):
    model, loss, X, y = setting
    check(model, loss, X, y, drawn(data, len(X)))


WEIGHTS = torch.tensor([0.5, 0.0, 3.0, 1.5], dtype=DOUBLE)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("name", cases(["transformer", "resnet, smooth", "tokens", "attention", "u-net", "group norm"],
                                       ["transformer", "resnet, smooth"], "no other ways to a parameter"))
def test_graphs(name):
    model, X, y = made(name)
    check(model, nn.CrossEntropyLoss(), X, y, WEIGHTS[[2, 0]])


WAY = ["all columns, some samples", "tails of one column", "chunks in chunks in chunks", "pooled"]


@few(1, "other ways")
@pytest.mark.parametrize("way", cases([way for way in WAYS if not way.startswith("route")], WAY,
                                      "weights are multiplied with before any way begins"))
def test_ways(way):
    model, X, y = network()
    quantities = ["grad", "batch_l2", "variance", "diag_ggn", "diag_h", "kflr"]
    result = hbp.compile(model, quantities=quantities, limits=WAYS[way])(X, y, sample_weights=WEIGHTS[:3])
    held = Weighted(nn.CrossEntropyLoss(), WEIGHTS[:3])
    agree(result, model, held, [X], y, quantities[:-1])
    for name, (left, factor) in kflr(model, held, [X], y).items():
        close(result.kflr[name].B, factor, f"B of {name}")
        if left is not None:
            close(result.kflr[name].A, left, f"A of {name}")


# -- losses ----------------------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    """Two tied layers and two tags for each sample."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(3, 3).double(), nn.Linear(3, 6).double()
        self.scale = nn.Parameter(torch.ones((), dtype=DOUBLE))
        self.unused = nn.Linear(2, 2).double()

    def forward(self, x):
        return (self.scale * self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))).view(len(x), 3, 2)


CLASSES = torch.tensor([0.5, 2.0, 1.5], dtype=DOUBLE)
TAGS = torch.tensor([[0, 2], [-100, 1], [1, 1], [2, -100]])
VALUES = torch.rand(4, 3, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def sums_of_losses(output, target):
    each = F.cross_entropy(output, target, reduction="none")
    counted = target != -100
    return (2 * F.cross_entropy(output, target, CLASSES) + (each * counted).sum() / counted.sum() + 3.5
            - 0.5 * output.square().sum() / len(output))


def flat(output, target):
    return F.cross_entropy(output.transpose(1, 2).reshape(-1, 3), target.view(-1), CLASSES, label_smoothing=0.1)


class Total(nn.Module):
    """A sum with a part that is a mean, and a number that is no sample's."""

    reduction = "sum"

    def forward(self, output, target):
        return (output - target).pow(4).sum() + len(output) * F.huber_loss(output, target) + 2.0


LOSSES = {
    "tokens": (nn.CrossEntropyLoss(CLASSES), TAGS),
    "summed tokens": (nn.CrossEntropyLoss(CLASSES, label_smoothing=0.1, reduction="sum"), TAGS),
    "flat tokens": (flat, TAGS),
    "sums of losses": (sums_of_losses, TAGS),
    "binary": (nn.BCEWithLogitsLoss(weight=CLASSES[:, None], pos_weight=CLASSES[:, None] + 1), VALUES),
    "log-likelihoods": (lambda o, t: F.nll_loss(o.log_softmax(1), t, CLASSES), TAGS),
    "total": (Total(), VALUES),
}


@few(4, "other losses")
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    loss, y = LOSSES[name]
    X = torch.randn(4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    if name not in ("sums of losses", "log-likelihoods"):  # these are not known to be convex: no square roots
        check(Tagger(), loss, X, y, WEIGHTS)
        return
    compiled = compile_quietly(Tagger(), loss, [*EXACT, "batch_loss"])
    result = run(compiled, X, y, sample_weights=WEIGHTS)
    for quantity in EXACT:
        for key, value in reference(compiled.model, Weighted(loss, WEIGHTS), [X], y, quantity).items():
            if not key.startswith("unused"):
                close(result[quantity][key], value, f"{quantity} of {key}")
    check_losses(compiled, loss, result, X, y, WEIGHTS)
    check_ones(compiled, X, y)


def test_each_sample_s_loss_is_that_of_the_sample_alone():
    """Where nothing is shared by the samples, and for one that has no loss of its own."""
    model = Tagger()
    X = torch.randn(4, 3, dtype=DOUBLE)
    result = run(hbp.compile(model, nn.CrossEntropyLoss(reduction="sum"), ["batch_loss"]), X, TAGS)
    for n in range(4):
        alone = nn.CrossEntropyLoss(reduction="sum")(model(X[n : n + 1]), TAGS[n : n + 1])
        torch.testing.assert_close(result.batch_loss[n], alone)
    assert list(result) == ["batch_loss"]
    assert result["batch_loss"].shape == (4,)
    result.to_parameters()


def test_a_rule_that_does_not_say_the_losses(tmp_path):
    rule = tmp_path / "soft_margin.py"
    rule.write_text("""
import torch
from hbpcompiler.rule import ZERO, LossRule

RULE = LossRule(operations=["aten.soft_margin_loss"], residual=ZERO, reduction=lambda op: "mean",
                gradient=lambda op: -op.target * torch.sigmoid(-op.target * op.self) / op.shape("self")[0])
""")
    X, y = torch.randn(4, 3), torch.tensor([[1.0, -1.0]]).repeat(4, 1)
    compiled = hbp.compile(nn.Linear(3, 2), nn.SoftMarginLoss(), ["grad"], rules=[rule])
    compiled(X, y)
    with pytest.raises(hbp.InputError, match=r"sample_weights(.|\n)*aten.soft_margin_loss(.|\n)*`each`"):
        compiled(X, y, sample_weights=torch.ones(4))
    with pytest.raises(hbp.UnsupportedOpError, match=r"no l_n for batch_loss(.|\n)*aten.soft_margin_loss"):
        hbp.compile(nn.Linear(3, 2), nn.SoftMarginLoss(), ["batch_loss"], rules=[rule])(X, y)


# -- factors and averages --------------------------------------------------------------------------------------------

TIMES = torch.tensor([2, 0, 1, 3])


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mixed, self.head = nn.Embedding(5, 3), nn.Bilinear(3, 3, 2), nn.Linear(2, 3)

    def forward(self, x):
        words = self.words(x)
        return self.head(torch.tanh(self.mixed(words[:, 0], words[:, 1])))


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 2, 2, groups=2), nn.Tanh(), nn.ConvTranspose2d(2, 2, 2, 2), nn.Sigmoid(),
                         nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3))


FACTORS = ["kflr", "kflr_reduce", "ekfac"]


@few(2, "further cases of one kind")
@pytest.mark.parametrize("kind", ["chain", "words"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_whole_weights_repeat_samples(kind, reduction):
    """A is the same as where sample n stands w_n times; so is B, but for the N that a mean divides by."""
    model = (convolutions() if kind == "chain" else Words()).double()
    X = torch.randn(4, 2, 3, 3, dtype=DOUBLE) if kind == "chain" else torch.tensor([[0, 1], [3, 3], [2, 4], [4, 4]])
    y = torch.tensor([0, 2, 1, 2])
    compiled = hbp.compile(model, nn.CrossEntropyLoss(reduction=reduction),
                           [*FACTORS[:2], *(["kfra"] if kind == "chain" else [])])
    weighted = compiled(X, y, sample_weights=TIMES.double())
    again = compiled(X.repeat_interleave(TIMES, 0), y.repeat_interleave(TIMES))
    scale = int(TIMES.sum()) / 4 if reduction == "mean" else 1
    for quantity in compiled.quantities:
        for name, (A, B) in again[quantity].items():
            close(weighted[quantity][name].B, B * scale, f"{quantity}: B of {name}")
            if A is not None:
                close(weighted[quantity][name].A, A, f"{quantity}: A of {name}")
    check_ones(compiled, X, y)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("joint_bias", [False, True])
def test_eigenvectors_and_joint_blocks(joint_bias):
    """A of what is sampled; its columns are those without weights times the weight's root."""
    model, X, y = convolutions().double(), torch.randn(4, 2, 3, 3, dtype=DOUBLE), torch.tensor([0, 2, 1, 2])
    names = ["kfac", "sqrt_ggn_mc", "kfac_emp"] if joint_bias else ["kfac", "sqrt_ggn_mc", "kfac_emp", "ekfac"]
    compiled = hbp.compile(model, quantities=names, joint_bias=joint_bias)
    weights = TIMES.double()
    plain, weighted = run(compiled, X, y), run(compiled, X, y, sample_weights=weights)
    again = run(compiled, X.repeat_interleave(TIMES, 0), y.repeat_interleave(TIMES))
    for name, columns in plain.sqrt_ggn_mc.items():
        roots = weights.sqrt().view(-1, *[1] * (columns.dim() - 1))
        close(weighted.sqrt_ggn_mc[name], roots * columns, f"sampled columns of {name}")
    for name, factors in again.kfac.items():
        if factors.A is not None:
            close(weighted.kfac[name].A, factors.A, f"A of {name}")
            close(weighted.kfac_emp[name].A, factors.A, f"A of {name}")
    for name, (A, _, values) in weighted.ekfac.items() if not joint_bias else []:
        if A is not None and A.dim() == 2:
            turned = A.T @ weighted.kfac[name].A @ A
            close(turned.diag().diag_embed(), turned, f"eigenvectors of {name}")
            close(values.sum(), weighted.sqrt_ggn_mc[name].square().sum(), f"sum of eigenvalues of {name}")
    check_ones(compiled, X, y)


# -- what a call may bring -------------------------------------------------------------------------------------------

X4, Y4 = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


BAD = {
    "a list": ([1.0, 1, 1, 1], r"must be a tensor of shape \[4\], a number for each sample, not list"),
    "whole numbers": (torch.ones(4).long(), r"torch\.float32.*not torch\.int64; convert it"),
    "a column": (torch.ones(4, 1), r"shape \[4, 1\], but the batch has 4 samples"),
    "too few": (torch.ones(3), r"shape \[3\], but the batch has 4 samples"),
    "nan": (torch.tensor([1, 1, float("nan"), 1]), r"sample_weights\[2\] is nan"),
    "infinite": (torch.tensor([1, float("inf"), 1, 1]), r"sample_weights\[1\] is inf"),
    "elsewhere": (torch.ones(4, device="meta"), r"it is on meta, and the batch on cpu"),
    "negative": (torch.tensor([1.0, -2, 1, 1]), r"sample_weights\[1\] is -2\.0.* not negative for diag_ggn, kflr"),
    "zeros": (torch.zeros(4), r"all weights are zero, so that kflr has no value"),
}


def test_bad_weights_are_refused_before_anything_runs():
    compiled = hbp.compile(linear(), quantities=["grad", "diag_ggn", "kflr"])
    for weights, words in BAD.values():
        with pytest.raises(hbp.InputError, match=words):
            compiled(X4, Y4, sample_weights=weights)
    assert len(compiled._guards) == 0
    with pytest.raises(hbp.InputError, match="weights: there is none of this name; a call takes generator, "
                                             "sample_weights, into, decay, weight"):
        compiled(X4, Y4, weights=torch.ones(4))
    with pytest.raises(hbp.InputError, match=r"shape \[3\](.|\n)*it is on meta"):
        compiled(X4, Y4, sample_weights=torch.ones(3, device="meta"))
    assert compiled(X4, Y4, sample_weights=None).loss == compiled(X4, Y4).loss


def test_negative_weights_of_the_gradient():
    weights = torch.tensor([1.0, -2, 0, 0.5], dtype=DOUBLE)
    names = ["batch_loss", "grad", "batch_grad", "batch_l2", "second_moment", "variance", "batch_dot"]
    compiled = hbp.compile(linear().double(), quantities=names)
    result = compiled(X4.double(), Y4, sample_weights=weights)
    held = Weighted(nn.CrossEntropyLoss(), weights)
    agree(result, compiled.model, held, [X4.double()], Y4, EXACT[:5])


@few(3, "further cases of one kind")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE])
@pytest.mark.parametrize("backend", ["python", "torchscript"])
def test_weights_of_other_dtypes_and_scripts(dtype, backend):
    compiled = hbp.compile(linear(), quantities=["batch_loss", "grad", "kflr", "kfra"], backend=backend)
    weights = torch.tensor([2, 0, 1, 1], dtype=dtype)
    found, expected = (compiled(X4, Y4, sample_weights=given) for given in (weights, weights.double()))
    assert found.loss.dtype == found.kflr["weight"].A.dtype == found.batch_loss.dtype == torch.float32
    for quantity in found:
        for one, other in zip(parts(found[quantity]), parts(expected[quantity]), strict=True):
            torch.testing.assert_close(one, other)
    without = hbp.compile(linear(), quantities=["grad"])(X4[[0, 2, 3]], Y4[[0, 2, 3]])
    kept = torch.tensor([1.0, 0, 1, 1]).to(dtype)
    dropped = compiled(X4, Y4, sample_weights=kept)
    torch.testing.assert_close(dropped.grad["weight"] * 4 / 3, without.grad["weight"])


def test_a_large_program():
    """Of so many parameters that they stand in tables, and what is alike in functions."""
    torch.manual_seed(0)
    layers = [layer for _ in range(11) for layer in (nn.Linear(3, 3), nn.Tanh())]
    model, X, y = nn.Sequential(*layers).double(), torch.randn(4, 3, dtype=DOUBLE), torch.tensor([0, 2, 1, 2])
    loss = nn.CrossEntropyLoss(reduction="sum")
    compiled = hbp.compile(model, loss, ["batch_loss", "grad", "kflr"], backend="torchscript")
    result, again = compiled(X, y, sample_weights=TIMES.double()), compiled(
        X.repeat_interleave(TIMES, 0), y.repeat_interleave(TIMES))
    assert "def linear_back" in compiled.code
    torch.testing.assert_close(result.loss, again.loss)
    torch.testing.assert_close(result.batch_loss, TIMES * F.cross_entropy(model(X), y, reduction="none"))
    for name in result.grad:
        close(result.grad[name], again.grad[name], f"grad of {name}")
        close(result.kflr[name].B, again.kflr[name].B, f"B of {name}")
        if result.kflr[name].A is not None:
            close(result.kflr[name].A, again.kflr[name].A, f"A of {name}")


def test_columns_of_curvature_in_another_dtype():
    model, X, y = network()
    found, expected = (hbp.compile(model, quantities=["diag_ggn", "kflr", "grad"], curvature_dtype=dtype)(
        X, y, sample_weights=WEIGHTS[:3]) for dtype in (torch.float32, None))
    for quantity in found:
        for one, other in zip(parts(found[quantity]), parts(expected[quantity]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_batches_of_one_and_of_none():
    compiled = hbp.compile(linear(), nn.CrossEntropyLoss(reduction="sum"), ["batch_loss", "grad", "diag_h", "kflr"])
    one = compiled(X4[:1], Y4[:1], sample_weights=torch.tensor([3.0]))
    torch.testing.assert_close(one.grad["weight"], 3 * compiled(X4[:1], Y4[:1]).grad["weight"])
    none = compiled(X4[:0], Y4[:0], sample_weights=torch.ones(0))
    assert none.batch_loss.shape == (0,)
    assert not none.grad["weight"].any()


def test_results_and_programs_that_are_kept():
    compiled = hbp.compile(linear(), quantities=["batch_loss", "grad"], example_inputs=(X4, Y4))
    result = compiled(X4, Y4, sample_weights=torch.ones(4))
    kept = pickle.loads(pickle.dumps(result))
    assert torch.equal(kept.batch_loss, result.batch_loss)
    assert torch.equal(copy.deepcopy(compiled)(X4, Y4, sample_weights=torch.ones(4)).loss, result.loss)
    saved = {}
    exec(compile(compiled.code, "derivatives.py", "exec"), saved)
    alone = saved["Program"]()(compiled.state, X4, Y4, torch.tensor([2.0, 2, 2, 2]))
    torch.testing.assert_close(alone.grad["weight"], 2 * result.grad["weight"])


def test_a_program_whose_first_call_has_weights_is_proven():
    class Wrong(nn.Linear):
        pass

    model = Wrong(3, 2)
    model.weight.register_hook(lambda g: 2 * g)
    with pytest.raises(hbp.ProofError, match="grad of 'weight'"):
        hbp.compile(model, quantities=["grad"])(X4, Y4, sample_weights=torch.rand(4))
    with pytest.raises(hbp.InputError, match="weights of the first two are zero"):
        hbp.compile(linear(), quantities=["grad"]).verify(X4, Y4, sample_weights=torch.tensor([0.0, 0, 1, 1]))
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    compiled = hbp.compile(model, quantities=["grad"], verify="full")
    first, second = (compiled(X4, Y4, sample_weights=torch.ones(4), generator=torch.Generator().manual_seed(0))
                     for _ in range(2))
    assert torch.equal(first.grad["0.weight"], second.grad["0.weight"])


class Recorded(TorchDispatchMode):
    """What torch is asked for meanwhile."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls.append(str(function))
        return function(*args, **(kwargs or {}))


def test_weights_that_are_absent_cost_no_call_of_torch(monkeypatch):
    """The program without weights does what it does with all that is about them taken out of its file."""
    model, X, y = network()
    compiled = hbp.compile(model, quantities=["grad", "batch_l2", "variance", "diag_ggn", "diag_h", "kflr"])
    compiled(X, y)
    program, state = compiled.program, compiled.state

    def calls(*weights):
        with torch.no_grad(), Recorded() as recorded:
            program(state, X, y, *weights)
        return recorded.calls

    absent, given = calls(), calls(torch.full((len(X),), 2.0, dtype=DOUBLE))
    module = sys.modules[type(program).__module__]
    without = {"weighted": lambda x, w: x, "weighted_loss": lambda loss, *others: loss,
               "root_weights": lambda w: None, "mean_weights": lambda w: None}
    assert without.keys() & vars(module).keys() >= {"weighted", "weighted_loss"}
    for name in without.keys() & vars(module).keys():
        monkeypatch.setattr(module, name, without[name])
    assert absent == calls()
    assert len(given) > len(absent) > 50
    # and the file does nothing else with them
    nodes = list(ast.walk(ast.parse(compiled.code)))
    handed = {id(argument) for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
              and node.func.id in without for argument in node.args}
    checked = {id(inner) for node in nodes if isinstance(node, ast.Assert) for inner in ast.walk(node)}
    roots = {node.targets[0].id for node in nodes if isinstance(node, ast.Assign)
             and ast.unparse(node.value).startswith("root_weights(")}
    mentions = [node for node in nodes if isinstance(node, ast.Name) and node.id in {"sample_weights", *roots}
                and isinstance(node.ctx, ast.Load) and id(node) not in checked]
    assert len(mentions) > 5
    assert all(id(node) in handed for node in mentions)
