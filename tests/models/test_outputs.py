"""What goes into a program and what comes out: batches of tensors by name, models that return several tensors; in
float64 against brute force."""

import dataclasses
import warnings
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import ggn_block, reference
from tests.agreement import close
from tests.models.test_modules import draw
from tests.selection import cases, few, slow

WEIGHT = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
EXACT = ["grad", "batch_grad", "variance", "diag_ggn", "diag_h"]


class Summed(nn.Module):
    """A function as a loss that says it is a sum."""

    def __init__(self, function, reduction="sum"):
        super().__init__()
        self.function, self.reduction = function, reduction

    def forward(self, output, target):
        return self.function(output, target)


def check(model, loss, inputs, y, quantities=EXACT, seed=0):
    """`inputs`: a dict or a tuple, as a call takes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hbp.IndefiniteCurvatureWarning)
        compiled = hbp.compile(model, loss, quantities)
        result = compiled(inputs, y)
    for quantity in quantities:
        expected = reference(model, loss, inputs, y, quantity)
        scales = reference(model, loss, inputs, y, "second_moment") if quantity == "variance" else expected
        for name, value in expected.items():
            close(result[quantity][name], value, f"{quantity} of {name}", scales[name])
    return compiled, result


def check_sampled(model, loss, x, y):
    """diag_ggn_mc from 40000 draws for each sample."""
    torch.manual_seed(0)
    x, y = x.repeat(50, *[1] * (x.dim() - 1)), y.repeat(50, *[1] * (y.dim() - 1))
    found = hbp.compile(model, loss, ["diag_ggn_mc"], mc_samples=800)(x, y).diag_ggn_mc
    for name, value in reference(model, loss, (x,), y, "diag_ggn").items():
        assert (found[name] - value).abs().max() < 0.05 * value.abs().max(), name


# -- several outputs -------------------------------------------------------------------------------------------------


class Scores(NamedTuple):
    mean: torch.Tensor
    scale: torch.Tensor


@dataclasses.dataclass
class Answer:
    mean: torch.Tensor
    scale: torch.Tensor
    name: str = "answer"
    cache: object = None


class Several(nn.Module):
    """A mean and a scale from one trunk, returned in some form."""

    def __init__(self, returned):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.mean, self.scale = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(3, 2)
        self.returned = returned
        self.double()

    def forward(self, x):
        hidden = torch.sigmoid(self.trunk(x))
        return self.returned(self.mean(hidden), self.scale(hidden), hidden)


def likelihood(mean, scale, y):
    """A normal distribution's: the two outputs meet in products, so that the Hessian has cross blocks."""
    return (0.5 * ((y - mean) * torch.exp(-scale)) ** 2 + scale).sum(1).mean()


FORMS = {
    "tuple": (lambda m, s, h: (m, s), lambda out, y: likelihood(out[0], out[1], y)),
    "list": (lambda m, s, h: [s, m], lambda out, y: likelihood(out[1], out[0], y)),
    "dict": (lambda m, s, h: {"m": m, "s": s}, lambda out, y: likelihood(out["m"], out["s"], y)),
    "named tuple": (lambda m, s, h: Scores(m, s), lambda out, y: likelihood(out.mean, out.scale, y)),
    "nested": (lambda m, s, h: {"a": (m, None, 3), "b": {"c": [s]}},
               lambda out, y: likelihood(out["a"][0], out["b"]["c"][0], y)),
    "unused": (lambda m, s, h: (h, m, s, h.argmax(1)), lambda out, y: likelihood(out[1], out[2], y)),
    "hidden used too": (lambda m, s, h: (h, m, s), lambda out, y: likelihood(out[1], out[2] * out[0][:, :2], y)),
    "one": (lambda m, s, h: {"m": m * s}, lambda out, y: F.mse_loss(out["m"], y)),
}


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", cases(FORMS, ("tuple", "nested", "hidden used too"),
                                       "forms are taken apart in tests/compiler/trace"))
def test_several_outputs(name):
    returned, loss = FORMS[name]
    model, x = Several(returned), draw(3, 2)
    _, result = check(model, loss, (x,), draw(3, 2))
    found, form = torch.utils._pytree.tree_flatten(result.output)
    expected, expected_form = torch.utils._pytree.tree_flatten(model(x))
    assert form == expected_form
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_columns_of_several_outputs():
    """kflr's factor of a bias is its whole GGN block, the outputs' cross blocks included."""
    returned, loss = FORMS["tuple"]
    model, x, y = Several(returned), draw(3, 2), draw(3, 2)
    with pytest.warns(hbp.IndefiniteCurvatureWarning):
        factors = hbp.compile(model, loss, ["kflr"])(x, y).kflr
    for name in ("trunk.bias", "mean.bias", "scale.bias"):
        close(factors[name].B, ggn_block(model, loss, (x,), y, name), name)


@slow("3 s; one output is compared")
def test_sampled_columns_of_several_outputs():
    returned, loss = FORMS["tuple"]
    model, x, y = Several(returned), draw(2, 2), draw(2, 2)
    with pytest.warns(hbp.IndefiniteCurvatureWarning):
        check_sampled(model, loss, x, y)


def test_a_dataclass_that_nobody_registered():
    model, x, y = Several(lambda m, s, h: Answer(m, s)), draw(3, 2), draw(3, 2)
    result = hbp.compile(model, lambda out, y: likelihood(out.mean, out.scale, y), ["grad"])(x, y)
    assert isinstance(result.output, Answer)
    assert result.output.name == "answer"
    torch.testing.assert_close(result.output.scale, model(x).scale)
    plain = Several(lambda m, s, h: (m, s))
    for name, value in reference(plain, FORMS["tuple"][1], (x,), y, "grad").items():
        close(result.grad[name], value, name)


def test_outputs_in_the_file():
    returned, loss = FORMS["nested"]
    model, x, y = Several(returned), draw(3, 2), draw(3, 2)
    compiled = hbp.compile(model, loss, ["grad"], backend="torchscript")
    result = compiled(x, y)
    assert "    output_a_0: Tensor\n    output_b_c_0: Tensor\n" in compiled.code
    torch.testing.assert_close(result.output["a"], model(x)["a"])


def test_an_output_that_is_no_tensor_is_left_out():
    model = Several(lambda m, s, h: (m + s, {"cache": object()}))
    x, y = draw(2, 2), draw(2, 2)

    def loss(output, target):
        assert output[1]["cache"] is not None  # the loss still has it
        return F.mse_loss(output[0], target)

    result = hbp.compile(model, loss, ["grad"])(x, y)
    assert result.output[1] == {"cache": None}
    for name, value in zip(result.grad, torch.autograd.grad(loss(model(x), y), model.parameters()), strict=True):
        close(result.grad[name], value, name)


def test_an_output_that_is_a_number_of_the_batch_is_refused():
    model = Several(lambda m, s, h: (m + s, m.shape[0]))
    with pytest.raises(hbp.CompileError, match=r"output\[1\] is a number that depends on the batch"):
        hbp.compile(model, lambda out, y: F.mse_loss(out[0], y), ["grad"])(draw(2, 2), draw(2, 2))


@pytest.mark.parametrize("loss", [lambda o, y: (o**2).mean(), lambda o, y: F.cross_entropy(o, o.argmax(1))])
def test_a_loss_without_target(loss):
    torch.manual_seed(0)
    model, X = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double(), draw(4, 3)
    check(model, loss, (X,), None)
    compiled = hbp.compile(model, loss, ["diag_ggn"])
    total = hbp.accumulate(compiled, [(X[:1], None), (X[1:], None)], progress=False)
    close(total.diag_ggn["0.weight"], compiled(X, None).diag_ggn["0.weight"], "0.weight")



def test_a_model_that_makes_the_loss_is_refused():
    model = Several(lambda m, s, h: m.square().mean())
    with pytest.raises(hbp.CompileError, match="The model itself reduces the batch to one number"):
        hbp.compile(model, lambda out, y: out, ["grad"])(draw(2, 2), draw(2, 2))


def test_kfra_of_several_outputs_is_refused():
    returned, loss = FORMS["tuple"]
    with pytest.raises(hbp.CompileError, match="kfra: the loss takes several outputs"):
        hbp.compile(Several(returned), loss, ["kfra"])(draw(2, 2), draw(2, 2))


# -- batches ---------------------------------------------------------------------------------------------------------


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(2, 3), nn.Linear(3, 3)
        self.double()

    def forward(self, values, gate=None, *, power=1):
        left = torch.tanh(self.left(values)) ** power
        return left if gate is None else left * self.right(gate)


def test_arguments_by_name():
    values, gate, y = draw(3, 2), draw(3, 3), torch.tensor([0, 2, 1])
    compiled, _ = check(Gated(), nn.CrossEntropyLoss(), {"gate": gate, "values": values}, y)
    assert "gate: Tensor, values: Tensor, y: Tensor" in compiled.code
    check(Gated(), nn.CrossEntropyLoss(), {"values": values, "gate": gate, "power": 2}, y)


def test_constants_among_the_arguments_have_their_own_programs():
    values, y = draw(3, 2), torch.tensor([0, 2, 1])
    model = Gated()
    model.right.requires_grad_(False)
    compiled = hbp.compile(model, quantities=["grad"])
    for power in (1, 2, 1):
        result = compiled({"values": values, "gate": None, "power": power}, y)
        torch.testing.assert_close(result.output, model(values, power=power))
    assert "programs=2" in repr(compiled)


def test_arguments_by_position():
    values, gate, y = draw(3, 2), draw(3, 3), torch.tensor([0, 2, 1])
    compiled = hbp.compile(Gated(), quantities=["grad"], example_inputs=((values, gate), y))
    for batch in ((values, gate), y), ([values, gate], y), (values, gate, y):
        torch.testing.assert_close(compiled(*batch).output, Gated()(values, gate))
    assert "x: Tensor, x2: Tensor, y: Tensor" in compiled.code


@pytest.mark.parametrize("form", [tuple, list, lambda items: dict(zip("ab", items, strict=True))])
def test_several_targets(form):
    def loss(output, target):
        first, weight = target.values() if isinstance(target, dict) else target
        return (((output - first) ** 2).sum(1) * weight).mean()

    y = form([draw(3, 3), torch.rand(3, dtype=torch.float64)])
    compiled, _ = check(Gated(), loss, (draw(3, 2), draw(3, 3)), y)
    assert ("y_a: Tensor, y_b: Tensor" if isinstance(y, dict) else "y_0: Tensor, y_1: Tensor") in compiled.code


def test_names_that_are_no_identifiers():
    class Any(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, **given):
            return self.layer(given["x y"] + given["class"]) + given["N"]

    batch = {"x y": draw(2, 2), "class": draw(2, 2), "N": draw(2, 3)}
    model = Any().double()
    compiled, _ = check(model, nn.CrossEntropyLoss(), batch, torch.tensor([0, 2]))
    assert "x_y: Tensor, class_: Tensor, N_2: Tensor" in compiled.code


WRONG = [
    ({"values": torch.zeros(2, 2, dtype=torch.float64), "gate": torch.zeros(3, 3, dtype=torch.float64)},
     r"X\['values'\] has 2 samples, X\['gate'\] has 3"),
    ({"values": torch.zeros(2, 2)}, r"X\['values'\] has dtype torch.float32"),
    ({"values": torch.zeros(2, 2, dtype=torch.float64), "gate": torch.tensor(1.0)}, r"X\['gate'\] has no axes.*buffer"),
    ({"values": torch.zeros(2, 2, dtype=torch.float64), "gate": object()}, r"X\['gate'\] must be a tensor, not object"),
    ({"values": torch.zeros(2, 2).double(), "door": torch.zeros(2).double()},
     r"unexpected keyword argument 'door'.*arguments by their names, "),
    ({"power": 1}, r"X must be a tensor, or a tuple or dict of tensors, not dict"),
    ((torch.zeros(2, 2, dtype=torch.float64), object()), r"X\[1\] must be a tensor, not object"),
    ({3: torch.zeros(2, 2)}, "names of forward's arguments"),
]


@pytest.mark.parametrize(("inputs", "words"), WRONG)
def test_wrong_batches_are_named(inputs, words):
    with pytest.raises(hbp.InputError, match=words):
        hbp.compile(Gated(), quantities=["grad"])(inputs, torch.tensor([0, 1]))
