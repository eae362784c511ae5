"""What goes into a program and what comes out: batches of tensors by name, models that return several tensors, losses
of flattened tokens and sums of losses; in float64 against brute force."""

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


# -- flat token losses -----------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    """Scores for 3 classes at each of T positions."""

    def __init__(self, returned=lambda scores: scores):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head, self.returned = nn.Linear(2, 3), nn.Linear(3, 3), returned
        self.double()

    def forward(self, x):
        return self.returned(self.head(torch.tanh(self.inner(x))))


WEIGHT = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
TAGS = torch.tensor([[0, 2, -100], [-100, -100, 1]])
SPELLED = "another spelling of what another case merges and splits"
TOKEN_LOSSES = {
    "view": lambda out, y: F.cross_entropy(out.view(-1, 3), y.view(-1)),
    "reshape": lambda out, y: F.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1)),
    "flatten": lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()),
    "ignored": lambda out, y: F.cross_entropy(out.view(-1, 3), y.view(-1), ignore_index=1),
    "class weights": lambda out, y: F.cross_entropy(out.view(-1, 3), y.view(-1), weight=WEIGHT),
    "smoothed": lambda out, y: F.cross_entropy(out.view(-1, 3), y.view(-1), label_smoothing=0.2),
    "log-likelihood": lambda out, y: F.nll_loss(F.log_softmax(out, -1).view(-1, 3), y.view(-1)),
    "softmax of rows": lambda out, y: F.nll_loss(F.log_softmax(out.view(-1, 3), 1), y.view(-1)),
    "shifted": lambda out, y: F.cross_entropy(out[:, :-1].reshape(-1, 3), y[:, 1:].reshape(-1)),
}


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", cases(TOKEN_LOSSES, ("view", "class weights", "log-likelihood", "shifted"), SPELLED))
def test_flat_token_losses(name):
    check(Tagger(), TOKEN_LOSSES[name], (draw(2, 3, 2),), TAGS.clamp(min=0) if name == "ignored" else TAGS)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_summed_flat_token_losses(weight):
    loss = Summed(lambda out, y: F.cross_entropy(out.view(-1, 3), y.view(-1), weight, reduction="sum"))
    check(Tagger(), loss, (draw(2, 3, 2),), TAGS)


def test_flat_probabilities_and_flat_errors():
    y = torch.rand(2, 3, 3, dtype=torch.float64)
    check(Tagger(), lambda out, y: F.cross_entropy(out.view(-1, 3), y.view(-1, 3)), (draw(2, 3, 2),), y)
    check(Tagger(), lambda out, y: F.mse_loss(out.view(-1, 3), y.view(-1, 3)), (draw(2, 3, 2),), y)
    check(Tagger(), lambda out, y: F.binary_cross_entropy_with_logits(out.flatten(), y.flatten()),
          (draw(2, 3, 2),), y)


def test_errors_of_positions_in_front():
    check(Tagger(), lambda out, y: F.mse_loss(out.transpose(0, 1), y.transpose(0, 1)), (draw(2, 4, 2),), draw(2, 4, 3))


def test_a_model_that_flattens_its_output():
    model, x = Tagger(lambda scores: scores.view(-1, 3)), draw(2, 3, 2)
    _, result = check(model, lambda out, y: F.cross_entropy(out, y.view(-1)), (x,), TAGS)
    torch.testing.assert_close(result.output, model(x))


def test_flat_losses_serve_every_batch_size_and_backend():
    loss = TOKEN_LOSSES["view"]
    for backend in ("python", "torchscript"):
        model = Tagger(lambda scores: scores.view(-1, 3))
        compiled = hbp.compile(model, lambda out, y: loss(out, y), ["grad"], backend=backend)
        for samples in (2, 1, 3):
            x, y = draw(samples, 3, 2), torch.randint(3, (samples, 3))
            result = compiled(x, y)
            torch.testing.assert_close(result.output, model(x))
            for name, value in reference(model, loss, (x,), y, "grad").items():
                close(result.grad[name], value, name)
        assert "programs=1" in repr(compiled)


def test_flat_targets_are_checked():
    compiled = hbp.compile(Tagger(), TOKEN_LOSSES["view"], ["grad"])
    with pytest.raises(hbp.InputError, match=r"y: target\[0, 1\] is 7, but class indices lie between 0 and 2"):
        compiled(draw(2, 3, 2), torch.tensor([[0, 7, 1], [0, 0, 0]]))
    with pytest.raises(hbp.InputError, match=r"X has 2 samples, y has 6; .*\[2, 3, ...\]"):
        compiled(draw(2, 3, 2), torch.zeros(6, dtype=torch.long))


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
    ({"values": torch.zeros(2, 2).double(), "door": torch.zeros(2).double()}, r"unexpected keyword argument 'door'"),
    ({"power": 1}, r"X must be a tensor, or a tuple or dict of tensors, not dict"),
    ((torch.zeros(2, 2, dtype=torch.float64), object()), r"X\[1\] must be a tensor, not object"),
    ({3: torch.zeros(2, 2)}, "names of forward's arguments"),
]


@pytest.mark.parametrize(("inputs", "words"), WRONG)
def test_wrong_batches_are_named(inputs, words):
    with pytest.raises(hbp.InputError, match=words):
        hbp.compile(Gated(), quantities=["grad"])(inputs, torch.tensor([0, 1]))


# -- sums of losses --------------------------------------------------------------------------------------------------

SUMS = {
    "penalised output": lambda out, y: F.cross_entropy(out, y) + 0.1 * out.square().mean(),
    "mean and sum": lambda out, y: F.cross_entropy(out, y) + 0.3 * out.square().sum(),
    "difference": lambda out, y: 2 * F.cross_entropy(out, y) - (out**3).mean() / 4 + 1,
    "divided by the batch": lambda out, y: out.pow(4).sum() / out.shape[0] + F.cross_entropy(out, y, reduction="sum"),
    "list": lambda out, y: sum([F.cross_entropy(out, y), F.cross_entropy(-out, y), out.sigmoid().mean()]),
    "weighted": lambda out, y: WEIGHT[0] * F.cross_entropy(out, y) - WEIGHT[1] * out.square().mean(),
    "nested": lambda out, y: -(-(F.cross_entropy(out, y) + out.exp().mean()) * 0.5),
}


@few(3, "other sums")
@pytest.mark.parametrize("name", list(SUMS))
def test_sums_of_losses(name):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    check(model, Summed(SUMS[name], "mean"), (draw(3, 2),), torch.tensor([0, 2, 1]), [*EXACT, "batch_l2"])


def test_tasks():
    """Each head has its loss; one head's has no curvature."""
    def loss(output, target):
        labels, value = target["labels"], target["value"]
        return F.cross_entropy(output["labels"], labels) + 0.5 * F.l1_loss(output["value"], value)

    model = Several(lambda m, s, h: {"labels": m, "value": s})
    target = {"labels": torch.tensor([0, 1, 1]), "value": draw(3, 2)}
    check(model, loss, (draw(3, 2),), target)
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.IndefiniteCurvatureWarning)
        result = hbp.compile(model, loss, ["kfac", "kflr", "sqrt_ggn"], mc_samples=2)(draw(3, 2), target)
    assert not result.kflr["scale.weight"].B.any()


@few(1, "further cases of one kind")
@pytest.mark.parametrize("loss", [
    lambda out, y: F.cross_entropy(out, y) + 2 * F.cross_entropy(3 * out, y, reduction="sum"),
    lambda out, y: F.cross_entropy(out, y) - (out**3).mean(),
])
@pytest.mark.filterwarnings("ignore:the loss")
def test_sampled_sums(loss):
    torch.manual_seed(0)
    model, x, y = nn.Linear(2, 3).double(), draw(2, 2), torch.tensor([0, 2])
    check_sampled(model, loss, x, y)


def test_a_penalty_on_parameters_is_refused():
    model = nn.Linear(2, 3).double()

    def loss(out, y):
        return F.cross_entropy(out, y) + 0.1 * model.weight.square().sum()

    with pytest.raises(hbp.CompileError):
        hbp.compile(model, loss, ["grad"])(draw(2, 2), torch.tensor([0, 2]))

    class Penalised(nn.Linear):
        def forward(self, x):
            return super().forward(x), self.weight.square().sum()

    with pytest.raises(hbp.UnsupportedOpError, match=r"reads parameter 'weight' alone(.|\n)*2 \* c \* w to grad"):
        hbp.compile(Penalised(2, 3).double(), lambda out, y: F.cross_entropy(out[0], y) + 0.1 * out[1], ["grad"])(
            draw(2, 2), torch.tensor([0, 2]))


def test_a_curved_function_of_the_whole_loss_is_refused():
    for loss in (lambda out, y: F.cross_entropy(out, y).sqrt(),
                 lambda out, y: F.cross_entropy(out, y) * out.square().mean()):
        with pytest.raises(hbp.UnsupportedOpError, match="only sums and multiples of means"):
            hbp.compile(nn.Linear(2, 3).double(), loss, ["grad"])(draw(2, 2), torch.tensor([0, 2]))


# -- curvature that may be indefinite --------------------------------------------------------------------------------


def bump(output, target):
    return (1 - (-((output - target) ** 2)).exp()).mean()


@few(2, "further cases of one kind")
@pytest.mark.parametrize("quantity", ["diag_ggn", "diag_ggn_mc", "kflr", "kfac", "kfra"])
def test_an_indefinite_ggn_is_warned_of_once(quantity):
    compiled = hbp.compile(nn.Linear(2, 3).double(), bump, [quantity])
    with pytest.warns(hbp.IndefiniteCurvatureWarning, match=f"bump.*{quantity}") as caught:
        compiled(draw(2, 2), draw(2, 3))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(draw(3, 2), draw(3, 3))


@few(2, "further cases of one kind")
@pytest.mark.parametrize(("loss", "quantity"), [
    (bump, "grad"), (bump, "diag_h"), (nn.MSELoss(), "diag_ggn"), (nn.MSELoss(reduction="sum"), "kflr"),
    (lambda out, y: 0.5 * F.mse_loss(out, y), "kfac"), (lambda out, y: F.mse_loss(out, y) / out.shape[0], "diag_ggn")])
def test_no_warning(loss, quantity):
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.IndefiniteCurvatureWarning)
        result = hbp.compile(nn.Linear(2, 3).double(), loss, [quantity])(draw(2, 2), draw(2, 3))
    assert result[quantity].keys() == {"weight", "bias"}


@pytest.mark.parametrize("loss", [
    lambda out, y: ((out - y) ** 2).mean(),
    lambda out, y: 0.5 * (out - y).square().sum(1).mean(),
    lambda out, y: (torch.logsumexp(out, 1) - (out * y).sum(1)).mean(),
    lambda out, y: torch.linalg.vector_norm(out - y, dim=1).sum() + out.exp().mean(),
], ids=["squares", "half the sum of squares", "cross entropy", "norm and exponentials"])
def test_a_convex_loss_written_out_does_not_warn(loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    X, y = draw(4, 3), draw(4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.IndefiniteCurvatureWarning)
        result = hbp.compile(model, loss, quantities=["diag_ggn", "sqrt_ggn"])(X, y)
    for key, value in reference(model, loss, [X], y, "diag_ggn").items():
        close(result.diag_ggn[key], value, key)
        close(result.sqrt_ggn[key].square().sum((0, 1)), value, key)


@pytest.mark.parametrize("loss", [
    lambda out, y: -((out - y) ** 2).mean(),
    lambda out, y: ((out - y) ** 3).mean(),
    lambda out, y: (out.square() * y).mean(),
    lambda out, y: (out.square() - out.exp()).mean(),
    lambda out, y: out.square().square().sub(out.square()).sum(),
], ids=["negative", "cubes", "weighted", "difference", "double well"])
def test_a_loss_that_may_be_indefinite_warns(loss):
    model = nn.Sequential(nn.Linear(3, 2)).double()
    X, y = draw(4, 3), draw(4, 2)
    with pytest.warns(hbp.IndefiniteCurvatureWarning):
        result = hbp.compile(model, loss, quantities=["diag_ggn"])(X, y)
    for key, value in reference(model, loss, [X], y, "diag_ggn").items():
        close(result.diag_ggn[key], value, key)
