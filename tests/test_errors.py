"""Every refusal: its type, the offending value in its message, and that nothing of the user's changed."""

import functools
import inspect
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.custom_op import Centred, Knot
from tests.selection import few


def mlp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 3))
    model[1].eval()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def batch():
    return torch.randn(6, 4), torch.randint(3, (6,))


def snapshot(model, *tensors):
    """All that a refused call must leave alone."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    flags = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    attributes = [[*sorted(vars(p)), p.requires_grad] for p in model.parameters()]
    batch = {str(number): tensor.clone() for number, tensor in enumerate(tensors)}
    return {**state, **grads, **batch, "random": torch.get_rng_state()}, (flags, attributes)


@contextmanager
def refused(kind, standard, *words, model=None, tensors=()):
    """The block must raise `kind`, which is also the standard type, say all the words, and change nothing."""
    before = snapshot(model or nn.Identity(), *tensors)
    with pytest.raises(hbp.HbpError) as caught:
        yield caught
    after = snapshot(model or nn.Identity(), *tensors)
    assert isinstance(caught.value, kind)
    assert isinstance(caught.value, standard)
    for word in words:
        assert word in str(caught.value)
    assert before[1] == after[1]
    assert before[0].keys() == after[0].keys()
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name]), f"{name} changed"


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "standard", "words"),
    [
        ({"quantities": ["grad", "hessian"]}, ValueError, ["'hessian'", "diag_h"]),
        ({"quantities": ["b", "a"]}, ValueError, ["'a', 'b'"]),
        ({"quantities": ["variances", "KFAC"]}, ValueError, ["'KFAC' (is it kfac?), 'variances' (is it variance?)"]),
        ({"quantities": ["SumGradSquared"]}, ValueError, ["'SumGradSquared' (is it second_moment?)"]),
        ({"quantities": ["grad_batch", "grad_sample", "diag_h_batch", "diag_ggn_exact_batch", "sum_grad_squared"]},
         ValueError, ["'grad_batch' (is it batch_grad?)", "'grad_sample' (is it batch_grad?)",
                      "'diag_h_batch' (is it batch_diag_h?)", "'diag_ggn_exact_batch' (is it batch_diag_ggn?)",
                      "'sum_grad_squared' (is it second_moment?)"]),
        ({"quantities": ["hvp", "GGN"]}, ValueError, [
            "'hvp' (the whole matrix is hbp.operator(model, loss, data, kind='hessian'), by its products; its diagonal "
            "is the quantity diag_h)", "kind='ggn'"]),
        ({"quantities": ["diag_hessian", "diag_h_splt"]}, ValueError,
         ["'diag_h_splt' (is it diag_h_split?), 'diag_hessian' (is it diag_h?)"]),
        ({"loss": ["grad"]}, TypeError, ["loss", "list", "quantities=['grad']"]),
        ({"loss": "cross_entropy"}, TypeError, ["loss", "str", "nn.CrossEntropyLoss()"]),
        ({"quantities": []}, ValueError, ["empty", "grad"]),
        ({"quantities": "grad"}, TypeError, ["'grad'", "list"]),
        ({"quantities": None}, TypeError, ["None"]),
        ({"quantities": ["grad", 3]}, TypeError, ["3", "not a string"]),
        ({"quantities": ["grad", ["diag_h"]]}, TypeError, ["['diag_h']", "not a string"]),
        ({"backend": "cuda"}, ValueError, ["'cuda'", "python, torchscript, inductor"]),
        ({"backend": None}, ValueError, ["None"]),
        ({"mc_samples": 0}, ValueError, ["mc_samples", "positive", "0"]),
        ({"mc_samples": -2}, ValueError, ["mc_samples", "-2"]),
        ({"mc_samples": 1.5}, TypeError, ["mc_samples", "1.5"]),
        ({"mc_samples": True}, TypeError, ["mc_samples", "True"]),
        ({"mc_samples": "3"}, TypeError, ["mc_samples", "'3'"]),
        ({"memory_budget": 0}, ValueError, ["memory_budget", "0"]),
        ({"memory_budget": -5}, ValueError, ["memory_budget", "-5"]),
        ({"memory_budget": "lots"}, ValueError, ["memory_budget", "'lots'", "2GiB"]),
        ({"memory_budget": "5 parsecs"}, ValueError, ["memory_budget", "'5 parsecs'"]),
        ({"memory_budget": "0GiB"}, ValueError, ["memory_budget", "'0GiB'"]),
        ({"memory_budget": 1.5}, TypeError, ["memory_budget", "1.5"]),
        ({"rules": "rule.py"}, TypeError, ["rules", "'rule.py'", "list"]),
        ({"rules": [3]}, TypeError, ["rules", "3"]),
        ({"rules": ["nowhere/rule.py"]}, ValueError, ["rules", "nowhere/rule.py", "not a Python file"]),
        ({"example_inputs": torch.zeros(2, 4)}, TypeError, ["example_inputs", "(X, y)", "Tensor"]),
        ({"example_inputs": (torch.zeros(2, 4),)}, TypeError, ["example_inputs", "(X, y)", "length 1"]),
    ],
)
def test_option(options, standard, words):
    model = mlp()
    with refused(hbp.CompileError, standard, *words, model=model):
        hbp.compile(model, **{"quantities": ["grad"], **options})


def test_parameters_in_the_place_of_the_model():
    model = mlp()
    with refused(hbp.CompileError, TypeError, "not generator: the model itself, not its parameters", model=model):
        hbp.compile(model.parameters(), quantities=["grad"])


def test_no_quantities_at_all():
    model = mlp()
    with refused(hbp.CompileError, ValueError, "quantities is empty", model=model):
        hbp.compile(model)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("answer = 42\n", ["defines no Rule"]),
        ("import no_such_package\n", ["ModuleNotFoundError", "no_such_package"]),
        ("def (:\n", ["SyntaxError"]),
        ("from hbpcompiler.rule import Rule\nR = Rule(['aten.x'], jac_t={})\n", ["residual"]),
        ("from hbpcompiler.rule import Rule\nR = Rule(['aten.x'], residual=0)\n", ["residual must be ZERO"]),
        ("from hbpcompiler.elementwise import elementwise, x\nR = elementwise('aten.linear', x)\n",
         ["aten.linear has no argument 'self'; it has input, weight, bias", "would never be used"]),
        ("from hbpcompiler.elementwise import elementwise, x\nR = elementwise('aten.sofplus', x)\n",
         ["aten.sofplus (is it aten.softplus?)", "torch.ops"]),
        ("from hbpcompiler.elementwise import elementwise, x\nR = elementwise('aten.relu.Scalar', x)\n",
         ["aten.relu.Scalar: aten.relu has no such overload"]),
    ],
)
def test_rule_file(tmp_path, text, words):
    path = tmp_path / "rule.py"
    path.write_text(text)
    model = mlp()
    with refused(hbp.CompileError, ValueError, str(path), *words, model=model):
        hbp.compile(model, quantities=["grad"], rules=[path])


def test_rule_path_is_a_folder(tmp_path):
    model = mlp()
    with refused(hbp.CompileError, ValueError, str(tmp_path), "not a Python file", model=model):
        hbp.compile(model, quantities=["grad"], rules=[tmp_path])


def test_two_rule_files_for_one_operation(tmp_path):
    text = "from hbpcompiler.elementwise import elementwise, x\nR = elementwise('hbptests.{}', x)\n"
    for name, operation in (("one", "swirl"), ("two", "knot"), ("three", "swirl")):
        (tmp_path / f"{name}.py").write_text(text.format(operation))
    paths = [tmp_path / f"{name}.py" for name in ("one", "two", "three")]
    model = mlp()
    with refused(hbp.CompileError, ValueError, "hbptests.swirl", str(paths[0]), str(paths[2]), model=model):
        hbp.compile(model, quantities=["grad"], rules=paths)


def test_a_rule_file_for_an_operation_that_has_one(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from hbpcompiler.elementwise import elementwise, sympy, x\n"
                    "R = elementwise('aten.tanh', sympy.tanh(x))\n")
    model = mlp()
    with refused(hbp.CompileError, ValueError, "aten.tanh", "activations.py", str(path), model=model):
        hbp.compile(model, quantities=["grad"], rules=[path])


# -- model and loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "word"), [
    (torch.tanh, "builtin_function"), (nn.Linear, "Linear(...)"), (None, "NoneType")])
def test_model_is_no_module(model, word):
    with refused(hbp.CompileError, TypeError, "torch.nn.Module", word):
        hbp.compile(model, quantities=["grad"])


def test_nothing_trainable():
    frozen = mlp().requires_grad_(False)
    for model in (frozen, nn.Sequential(nn.Flatten(), nn.ReLU())):
        with refused(hbp.CompileError, ValueError, "nothing trainable", model=model):
            hbp.compile(model, quantities=["grad"])


def test_nothing_trainable_any_more():
    model, (X, y) = mlp(), batch()
    compiled = hbp.compile(model, quantities=["grad"], example_inputs=(X, y))
    model.requires_grad_(False)
    with refused(hbp.CompileError, ValueError, "nothing trainable", model=model):
        compiled(X, y)


def test_loss_is_not_callable():
    model = mlp()
    with refused(hbp.CompileError, TypeError, "loss", "str", model=model):
        hbp.compile(model, "mse", quantities=["grad"])


def test_loss_with_reduction_none():
    model = mlp()
    with refused(hbp.CompileError, ValueError, "'none'", "mean", model=model):
        hbp.compile(model, nn.CrossEntropyLoss(reduction="none"), quantities=["grad"])


def test_loss_function_with_reduction_none():
    model, (X, y) = mlp(), batch()
    loss = functools.partial(F.cross_entropy, reduction="none")
    with refused(hbp.CompileError, ValueError, "[N]", "reduction", model=model):
        hbp.compile(model, loss, quantities=["grad"], example_inputs=(X, y))


def test_batch_norm_in_train_mode():
    model, (X, y) = mlp().train(), batch()
    with refused(hbp.UnsupportedOpError, NotImplementedError, "'1' (BatchNorm1d)", "train mode", "eval()", model=model):
        hbp.compile(model, quantities=["grad"], example_inputs=(X, y))


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class ToNumber(nn.Module):
    def forward(self, x):
        return x * x.max().item()


def line_of(module, text):
    lines, first = inspect.getsourcelines(type(module))
    return first + next(number for number, line in enumerate(lines) if text in line)


def test_control_flow_that_depends_on_data(capfd):
    model, (X, y) = nn.Sequential(nn.Linear(4, 3), nn.Sequential(Branch())), batch()
    where = f"test_errors.py:{line_of(Branch(), 'if x.sum()')}"
    with refused(hbp.CompileError, ValueError, "'1.0' (Branch)", where, "if x.sum() > 0", "torch.where", model=model):
        hbp.compile(model, quantities=["grad"], example_inputs=(X, y))
    assert capfd.readouterr().err == ""


def test_a_tensor_becomes_a_number():
    model, (X, y) = nn.Sequential(nn.Linear(4, 3), ToNumber()), batch()
    where = f"test_errors.py:{line_of(ToNumber(), 'item')}"
    with refused(hbp.CompileError, (ValueError, NotImplementedError), "'1' (ToNumber)", where, model=model):
        hbp.compile(model, quantities=["grad"], example_inputs=(X, y))


def test_model_returns_two_tensors():
    class Two(nn.Linear):
        def forward(self, x):
            return x, super().forward(x)

    model, (X, y) = Two(4, 3), batch()
    with refused(hbp.CompileError, ValueError, "y does not fit the loss", "tuple of [N, 4]", "loss(output[0], y)",
                 model=model):
        hbp.compile(model, quantities=["grad"])(X, y)


@dataclass
class Found:
    hidden: torch.Tensor
    logits: torch.Tensor


@dataclass
class Scored:
    mean: torch.Tensor
    name: str


@pytest.mark.parametrize(("returned", "part"), [
    (lambda z: Found(z * 2, z), "output.logits"), (lambda z: Scored(z, "mean"), "output.mean"),
    (lambda z: {"score": z}, "output['score']"), (lambda z: {"loss": z.sum(), "logits": z}, "output['logits']"),
    (lambda z: (z, z), "output[0]"),
])  # fmt: skip
def test_the_loss_is_told_how_to_read_an_output(returned, part):
    class Several(nn.Linear):
        def forward(self, x):
            return returned(super().forward(x))

    model, (X, y) = Several(4, 3), batch()
    with pytest.raises(hbp.InputError) as caught:
        hbp.compile(model, quantities=["grad"])(X, y)
    assert f"pass lambda output, y: loss({part}, y), say" in str(caught.value)
    hbp.compile(model, lambda output, y: F.cross_entropy(eval(part), y), quantities=["grad"])(X, y)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("pick", [torch.max, torch.median])
def test_a_loss_that_picks_a_sample(pick):
    def hardest(output, target):
        return pick(F.cross_entropy(output, target, reduction="none"))

    named = {"max": "amax", "median": "nanmedian"}[pick.__name__]  # as which they are taken
    model, (X, y), words = nn.Linear(4, 3), batch(), [f"aten.{named} in the loss", "no sum of their shares"]
    with refused(hbp.UnsupportedOpError, NotImplementedError, *words, model=model) as caught:
        hbp.compile(model, hardest, ["grad"])(X, y)
    assert "rule file" not in str(caught.value)


def test_a_loss_that_needs_more_samples_than_there_are():
    def hardest(output, target):
        return F.cross_entropy(output, target, reduction="none").topk(7)[0].mean()

    model, (X, y) = nn.Linear(4, 3), batch()
    words = ["y is [6]", "Tried on two samples: RuntimeError: selected index k"]
    with refused(hbp.CompileError, ValueError, *words, model=model):
        hbp.compile(model, hardest, ["grad"])(X, y)


def test_what_needs_more_samples_than_it_is_tried_on():
    """Two are tried, and then all, of which a mask picks enough."""
    def loss(output, target):
        if output[target == 2].numel() == 0:
            raise ValueError("no sample of class 2")
        return F.cross_entropy(output, target)

    model, X, y = nn.Linear(4, 3), torch.randn(3, 4), torch.tensor([0, 1, 2])
    assert hbp.compile(model, loss, ["grad"])(X, y).loss.isclose(loss(model(X), y))


@pytest.mark.parametrize(("loss", "y", "words"), [
    (nn.MSELoss(), torch.randn(6), "pass y.unsqueeze(1)"),
    (nn.BCEWithLogitsLoss(), torch.rand(6), "pass y.unsqueeze(1)"),
    (nn.CrossEntropyLoss(), torch.randn(6), "or give loss=nn.MSELoss() for a regression"),
])
def test_what_to_write_instead(loss, y, words):
    model, X = nn.Linear(4, 2 if isinstance(loss, nn.CrossEntropyLoss) else 1), torch.randn(6, 4)
    with refused(hbp.CompileError, ValueError, words, model=model):
        hbp.compile(model, loss, ["grad"])(X, y)


def test_every_missing_operation_is_named_at_once():
    model, (X, y) = nn.Sequential(nn.Linear(4, 3), Centred(), nn.Sequential(Knot()), nn.Linear(3, 3), Knot()), batch()
    words = ["hbptests.centred in module '1' (Centred)", "mixes the samples", "hbptests.knot in module '2.0' (Knot)",
             "hbptests.knot in module '4' (Knot)", f"custom_op.py:{line_of(Knot(), 'return')}",
             "return torch.ops.hbptests.centred(x)", "centred.py", "knot.py", "rules="]
    with refused(hbp.UnsupportedOpError, NotImplementedError, *words, model=model):
        hbp.compile(model, quantities=["grad"], example_inputs=(X, y))


@pytest.mark.parametrize(("function", "words"), [
    (lambda x: x / x.abs().max(), ["aten.max in", "mixes the samples", "reduce over the axes after the sample axis"]),
    (lambda x: x.roll(1, 0), ["it moves values along the sample axis", "change only the axes after it"]),
    (lambda x: x.flip(0), ["it reverses the sample axis", "change only the axes after it"]),
])  # fmt: skip
def test_what_mixes_samples_is_to_be_written_otherwise(function, words):
    class Between(nn.Module):
        def forward(self, x):
            return function(x)

    model, (X, y) = nn.Sequential(nn.Linear(4, 3), Between()), batch()
    with pytest.raises(hbp.UnsupportedOpError) as caught:
        hbp.compile(model, quantities=["grad"])(X, y)
    assert all(word in str(caught.value) for word in words)
    assert "rule" not in str(caught.value)


def test_a_missing_operation_has_the_name_that_the_user_knows():
    class Zeta(nn.Module):
        def forward(self, x):
            return torch.special.zeta(x.square() + 2, x.square() + 1)

    model, (X, y) = nn.Sequential(nn.Linear(4, 3), Zeta()), batch()
    words = ["aten.special_zeta", "not implemented", "rules/special_zeta.py"]
    with refused(hbp.UnsupportedOpError, NotImplementedError, *words, model=model):
        hbp.compile(model, quantities=["grad"])(X, y)


# -- batches ---------------------------------------------------------------------------------------------------------

CROSS_ENTROPY = [
    (lambda X, y: (X[:, :3], y), ValueError, ["[6, 3]"]),
    (lambda X, y: (torch.cat([X, X], 1), y), ValueError, ["[6, 8]"]),
    (lambda X, y: (X, y[:5]), ValueError, ["X has 6", "y has 5"]),
    (lambda X, y: (X[:0], y[:0]), ValueError, ["X", "[0, 4]", "empty"]),
    (lambda X, y: (X.tolist(), y), TypeError, ["X", "list"]),
    (lambda X, y: (X.numpy(), y), TypeError, ["X", "ndarray"]),
    (lambda X, y: (X, y.tolist()), TypeError, ["y", "list"]),
    (lambda X, y: (X, None), ValueError, ["y is None", "NoneType"]),
    (lambda X, y: (X,), TypeError, ["(X, y)", "1 argument"]),
    (lambda X, y: (torch.tensor(1.0), y), ValueError, ["X has no axes"]),
    (lambda X, y: (X.double(), y), TypeError, ["X", "torch.float64", "torch.float32"]),
    (lambda X, y: (X.half(), y), TypeError, ["X", "torch.float16", "torch.float32"]),
    (lambda X, y: (X.to(torch.complex64), y), ValueError, ["X", "torch.complex64"]),
    (lambda X, y: (X.long(), y), ValueError, ["X", "torch.int64"]),
    (lambda X, y: (X > 0, y), ValueError, ["X", "torch.bool"]),
    (lambda X, y: (X.to("meta"), y), ValueError, ["X", "meta", "cpu"]),
    (lambda X, y: (X, y.to("meta")), ValueError, ["y", "meta", "cpu"]),
    (lambda X, y: (X, y + 3), ValueError, ["y", "between 0 and 2", "3 classes"]),
    (lambda X, y: (X, torch.tensor([0, 1, 2, -7, 0, 1])), ValueError, ["y", "[3] is -7", "3 classes"]),
    (lambda X, y: (X, torch.full((6,), -100)), ValueError, ["y", "-100"]),
    (lambda X, y: (X, y.float()), ValueError, ["y", "torch.float32"]),
    (lambda X, y: (X, y.int()), ValueError, ["y", "torch.int32"]),
    (lambda X, y: (X, y > 0), ValueError, ["y", "torch.bool"]),
    (lambda X, y: (X, y.unsqueeze(1)), ValueError, ["y", "[6, 1]", "classes are [N]: pass y.squeeze(1)"]),
    (lambda X, y: (X, torch.rand(6, 4)), ValueError, ["y", "[6, 4]"]),
    (lambda X, y: (X, -torch.ones(6, 3)), ValueError, ["y", "-1", "loss=nn.MSELoss()"]),
    (lambda X, y: (X, torch.full((6, 3), torch.nan)), ValueError, ["y", "NaN", "[0, 0]"]),
    (lambda X, y: (X, torch.rand(6, 3, dtype=torch.float64)), TypeError, ["y", "torch.float64", "torch.float32"]),
]


TARGETS = [
    (nn.MSELoss(), lambda y: y[:, 0], ValueError, ["[6]", "[N, 3]"]),
    (nn.MSELoss(), lambda y: y[:, :1], ValueError, ["[6, 1]", "[N, 3]"]),
    (nn.HuberLoss(), lambda y: y.long(), ValueError, ["torch.int64"]),
    (nn.MSELoss(), lambda y: y.double(), TypeError, ["torch.float64", "torch.float32"]),
    (nn.HuberLoss(), lambda y: y[:, :2], ValueError, ["[6, 2]", "[N, 3]"]),
    (nn.HuberLoss(), lambda y: y * torch.nan, ValueError, ["NaN"]),
    (nn.BCEWithLogitsLoss(), lambda y: y[:, :1], ValueError, ["[6, 1]", "[N, 3]"]),
    (nn.BCEWithLogitsLoss(), lambda y: y.long(), ValueError, ["torch.int64"]),
    (nn.PoissonNLLLoss(), lambda y: y[:, :1], ValueError, ["[6, 1]", "[N, 3]"]),
    (nn.PoissonNLLLoss(), lambda y: -torch.ones_like(y), ValueError, ["-1", "not negative"]),
]


@functools.cache
def compiled_before(kind):
    """A model and its program, which has seen a good batch."""
    model, (X, y) = mlp(), batch()
    y = y if kind is nn.CrossEntropyLoss else torch.rand(6, 3)
    return model, hbp.compile(model, kind(), quantities=["grad"], example_inputs=(X, y))


@pytest.mark.parametrize(("change", "standard", "words"), CROSS_ENTROPY)
def test_first_batch(change, standard, words):
    model, (X, y) = mlp(), batch()
    compiled, wrong = hbp.compile(model, quantities=["grad"]), change(X, y)
    with refused(hbp.InputError, standard, *words, model=model, tensors=(X, y)):
        compiled(*wrong)


@few(3, "further cases of one kind")
@pytest.mark.parametrize(("change", "standard", "words"), CROSS_ENTROPY)
def test_later_batch(change, standard, words):
    model, compiled = compiled_before(nn.CrossEntropyLoss)
    X, y = batch()
    wrong = change(X, y)
    with refused(hbp.InputError, standard, *words, model=model, tensors=(X, y)):
        compiled(*wrong)
    compiled(X, y)  # and the program still works


@pytest.mark.parametrize(("loss", "change", "standard", "words"), TARGETS)
def test_first_target(loss, change, standard, words):
    model, X, y = mlp(), torch.randn(6, 4), torch.randint(2, (6, 3)).float()
    compiled, wrong = hbp.compile(model, loss, quantities=["grad"]), change(y)
    with refused(hbp.InputError, standard, "y", *words, model=model, tensors=(X, y)):
        compiled(X, wrong)


@pytest.mark.parametrize(("loss", "change", "standard", "words"), TARGETS)
def test_later_target(loss, change, standard, words):
    model, compiled = compiled_before(type(loss))
    X, y = torch.randn(6, 4), torch.randint(2, (6, 3)).float()
    wrong = change(y)
    with refused(hbp.InputError, standard, "y", *words, model=model, tensors=(X, y)):
        compiled(X, wrong)
    compiled(X, y)


def test_target_that_would_broadcast_against_the_output():
    model, X, y = nn.Linear(4, 1), torch.randn(6, 4), torch.randn(6)
    with refused(hbp.InputError, ValueError, "y", "[6]", "[N, 1]", model=model):
        hbp.compile(model, nn.MSELoss(), quantities=["grad"])(X, y)


def test_generator_is_no_generator():
    model, (X, y) = mlp(), batch()
    compiled = hbp.compile(model, quantities=["grad"], example_inputs=(X, y))
    with refused(hbp.InputError, TypeError, "generator", "3", model=model):
        compiled(X, y, generator=3)


def test_one_error_catches_everything():
    assert issubclass(hbp.CompileError, hbp.HbpError)
    assert issubclass(hbp.InputError, hbp.HbpError)
    assert issubclass(hbp.UnsupportedOpError, hbp.CompileError)


# -- before there is anything to show --------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [torch.func.grad, torch.vmap, torch.func.jacrev])
def test_a_call_within_a_transform(transform):
    """Its derivative would be zero without a word."""
    model, (X, y) = mlp(), batch()
    compiled = hbp.compile(model, quantities=["grad"], example_inputs=(X, y))
    with refused(hbp.InputError, ValueError, "within torch.func", "outside", model=model):
        transform(lambda x: compiled(x.reshape(-1, X.shape[1]), y[: x.numel() // X.shape[1]]).loss)(X)


def test_no_program_yet():
    compiled = hbp.compile(mlp(), quantities=["grad"])
    for look in (lambda: compiled.code, lambda: compiled.graph, compiled.explain, lambda: compiled.save("x.py")):
        with refused(hbp.CompileError, Exception, "first", "example_inputs"):
            look()


def test_a_quantity_that_was_not_asked_for():
    model, (X, y) = mlp(), batch()
    result = hbp.compile(model, quantities=["grad"])(X, y)
    with pytest.raises(AttributeError, match=r"'diag_h'; it has grad"):
        _ = result.diag_h
    with pytest.raises(KeyError, match="diag_h"):
        result["diag_h"]


def test_a_step_function_among_elementwise_operations():
    class Steps(nn.Module):
        def forward(self, x):
            return torch.floor(x * 3) + torch.tanh(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Steps(), nn.Linear(4, 2)).double()
    x, y = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1])
    result = hbp.compile(model, quantities=["grad"])(x, y)
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    for (name, found), value in zip(result.grad.items(), expected, strict=True):
        torch.testing.assert_close(found, value, msg=name)


def test_an_operation_with_side_effects_is_named():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            torch.ops.hbptests.count(self.calls)
            return self.inner(x) * self.calls

    with pytest.raises(hbp.CompileError, match=r"torch.ops.hbptests.count\(self.calls.*side effects"):
        hbp.compile(Counting(), quantities=["grad"])(torch.randn(3, 4), torch.tensor([0, 1, 1]))


def test_ctc_loss_says_what_to_write():
    def loss(output, target):
        lengths = torch.full((len(target),), 6), torch.full((len(target),), 2)
        return torch.nn.functional.ctc_loss(output.log_softmax(-1).transpose(0, 1), target, *lengths)

    compiled = hbp.compile(nn.Linear(3, 4), loss, ["grad"])
    with pytest.raises(hbp.UnsupportedOpError, match=r"ctc_loss has no rule.* a loop over frames"):
        compiled(torch.randn(2, 6, 3), torch.tensor([[1, 2], [2, 3]]))


def test_a_model_without_numbers():
    model = nn.Linear(4, 3, device="meta")
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["grad"])
    with pytest.raises(hbp.InputError, match=r"parameters are on the device meta.*to_empty"):
        compiled(torch.randn(6, 4, device="meta"), torch.zeros(6, dtype=torch.long, device="meta"))
