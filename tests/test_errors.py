"""Every refusal: its type, the offending value in its message, and that nothing of the user's changed."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
import tests.custom_op  # noqa: F401  # its operations


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
        ({"quantities": ["grad, batch_l2", "variance,kfac"]}, ValueError, [
            "'grad, batch_l2' (several names in one string; write 'grad', 'batch_l2')",
            "'variance,kfac' (several names in one string; write 'variance', 'kfac')"]),
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
        ({"quantities": ["hessian_diag", "GGN_diag"]}, ValueError,
         ["'GGN_diag' (is it diag_ggn?), 'hessian_diag' (is it diag_h?)"]),
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
        ({"rules": [3]}, TypeError, ["rules", "int"]),
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
