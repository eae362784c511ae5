"""What weights a call may bring, what they cost, and what programs of them are kept."""

import ast
import copy
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hbpcompiler as hbp
from hbpcompiler.reference import Weighted
from tests.agreement import agree, close
from tests.arguments.weighing import DOUBLE, EXACT, TIMES, WEIGHTS, parts
from tests.models.test_ways import network
from tests.selection import few

X4 = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
Y4 = torch.tensor([0, 1, 0, 1])


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
