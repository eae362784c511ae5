"""Rules made of torch's own derivatives: whole networks against brute force, and what is refused."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.made.derived import notes
from hbpcompiler.compiler.match.made.probe import close
from hbpcompiler.compiler.match.operation.composites import composite
from tests.compiler.match.made.test_complex import Between, X, Y, check
from tests.custom_op import Swirl
from tests.selection import cases, few, slow
from tests.stages import traced


def traced_inverse():
    return traced(Between(FUNCTIONS["inverse"]).double(), X, Y).graph


EYE = torch.eye(2, dtype=torch.float64)


def square(h):
    return h.reshape(-1, 2, 2)


def positive(h):
    return square(h) @ square(h).mT + EYE


FUNCTIONS = {
    "solve": lambda model, h: torch.linalg.solve(positive(h), square(h)).flatten(1),
    "inverse": lambda model, h: torch.linalg.inv(positive(h)).flatten(1),
    "cholesky": lambda model, h: torch.linalg.cholesky(positive(h)).flatten(1),
    "eigh": lambda model, h: torch.linalg.eigh(positive(h)).eigenvalues.repeat(1, 2),
    "qr": lambda model, h: torch.linalg.qr(positive(h)).R.flatten(1),
    "svd": lambda model, h: torch.linalg.svdvals(square(h)).repeat(1, 2),
    "slogdet": lambda model, h: torch.linalg.slogdet(positive(h)).logabsdet.unsqueeze(1) * h,
    "matrix_exp": lambda model, h: torch.matrix_exp(square(h)).flatten(1),
    "kthvalue": lambda model, h: torch.kthvalue(h, 2).values.unsqueeze(1) * h,
    "fold": lambda model, h: nn.functional.fold(h.reshape(-1, 2, 2), (1, 3), (1, 2)).flatten(1).repeat(1, 2)[:, :4],
    "trained grid": lambda model, h: nn.functional.grid_sample(
        h.reshape(-1, 1, 2, 2), torch.tanh(h).reshape(-1, 2, 1, 2), align_corners=False).flatten(1).repeat(1, 2),
    "trained limits": lambda model, h: torch.clamp(h, min=0.1 * h.flip(1), max=1 + h.square()),
}


@few(1, "further cases of one kind")
@pytest.mark.parametrize("name", cases(FUNCTIONS, {"solve", "eigh", "trained grid", "trained limits"}, "as those"))
def test_functions_without_a_rule(name):
    torch.manual_seed(0)
    check(Between(FUNCTIONS[name]).double())


@slow("2 s; each operation's rule is taken away in test_taken_away")
def test_parameters():
    """A matrix of trained numbers meets samples; another is made of trained numbers alone."""
    def function(model, h):
        solved = torch.linalg.solve(model.a + 4 * EYE, h.reshape(-1, 2, 2)).flatten(1)
        return solved * torch.linalg.det(torch.linalg.inv(model.b + 4 * EYE)) * model.b.exp().sum()

    torch.manual_seed(0)
    check(Between(function, a=torch.randn(2, 2), b=torch.randn(2, 2)).double())


def test_a_users_operation_whose_backward_torch_knows():
    torch.manual_seed(0)
    check(nn.Sequential(nn.Linear(4, 3), Swirl(), nn.Linear(3, 2)).double())


@slow("derived rules have tests")
def test_a_function_of_torchs_calls():
    compiled = hbp.compile(Between(FUNCTIONS["inverse"]).double(), quantities=["grad"], example_inputs=(X, Y))
    graph = compiled._current().matched.graph
    inverse = next(operation for operation in graph.operations if operation.target == "derived.linalg_inv")
    matrices = next(iter(inverse.tensors.values()))
    plain = next(operation for operation in traced_inverse().operations if "inv" in operation.target)
    made = composite("derived_inverse", [plain], plain.tensors)
    given = torch.randn(3, *matrices.sample_shape) + 3 * torch.eye(2)
    assert torch.equal(made(given), torch.linalg.inv(given))
    assert made(given.to("meta")).shape == given.shape


def test_the_file_says_what_was_derived_and_where():
    torch.manual_seed(0)
    model = Between(FUNCTIONS["inverse"])
    compiled = hbp.compile(model.double(), quantities=["diag_h"], example_inputs=(X, Y))
    flat = " ".join(compiled.code.split())
    assert "No rule, so that torch differentiates them" in flat
    assert "inv in " in flat
    assert ".py:" in flat
    assert "def derived_linalg_inv(" in compiled.code
    assert "hbpcompiler import" not in compiled.code
    assert "aten.linalg_inv" in compiled.explain()
    assert notes({}, {}) == []
    assert compiled.predicted_memory(8) > 0


@slow("ways and derived rules each have tests")
def test_every_way_of_chunks_meets_derived_rules():
    torch.manual_seed(0)
    model = Between(FUNCTIONS["solve"]).double()
    expected = hbp.compile(model, quantities=["diag_h"])(X, Y).diag_h
    for limits in (hbp.Limits(vector_bytes=0, vector_chunk_bytes=1),
                   hbp.Limits(few_columns=0, all_columns_bytes=0, all_columns_chunk_bytes=1)):
        found = hbp.compile(model, quantities=["diag_h"], limits=limits)(X, Y).diag_h
        assert all(close(found[name], value) for name, value in expected.items())


@slow("a second or more; shorter ones of its kind stay")
def test_what_is_refused():
    def refused(function, words, x=X, **options):
        with pytest.raises(hbp.UnsupportedOpError, match=words):
            hbp.compile(Between(function).double(), quantities=["grad", "diag_h"], **options)(x, Y)

    refused(lambda model, h: torch.ops.hbptests.centred(h), r"centred.*mixes the samples")
    refused(lambda model, h: torch.special.zeta(h.square() + 2, h.square() + 1), "zeta.*not implemented")
    refused(FUNCTIONS["inverse"], r"linalg_inv.*TorchScript cannot", backend="torchscript")
    refused(FUNCTIONS["inverse"], r"would take 4 columns.*derived_columns=3", limits=hbp.Limits(derived_columns=3))
    once = hbp.compile(Between(FUNCTIONS["inverse"]).double(), quantities=["grad"],
                       limits=hbp.Limits(derived_columns=3))
    assert once(X, Y).grad.keys()


class Laid(nn.Module):
    """Features of images over the places of a mask, one after the other: a sample's place says which it gets."""

    def __init__(self):
        super().__init__()
        self.text, self.image, self.head = nn.Linear(4, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x, features, mask):
        laid = self.text(x).tanh().masked_scatter(mask[..., None], self.image(features).tanh())
        return self.head(laid).mean(1)


@pytest.mark.parametrize("mask", [torch.zeros(4, 3), torch.ones(4, 3), torch.tensor([[1.0] * 3] * 2 + [[0.0] * 3] * 2)])
def test_samples_that_meet_by_what_a_mask_says(mask):
    """Whatever that of the first batch says."""
    x, features = torch.randn(4, 3, 4).double(), torch.randn(4, 3, 6).double()
    for verify in (True, False):
        compiled = hbp.compile(Laid().double(), quantities=["batch_grad"], verify=verify)
        with pytest.raises(hbp.CompileError, match="how many elements the masks of those before it take"):
            compiled(x, features, mask > 0, torch.tensor([0, 1, 2, 0]))


@torch.library.custom_op("hbptests::half_square", mutates_args=(), tags=(torch.Tag.pointwise,))
def half_square(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x * x, 0 * x)


@half_square.register_fake
def _(x):
    return torch.empty_like(x)


half_square.register_autograd(
    lambda ctx, gradient: torch.where(ctx.saved_tensors[0] > 0, 2 * ctx.saved_tensors[0] * gradient, 0),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]))


def test_flat_pieces_select():
    """Where the user's formula for the operation is 0 whatever arrives, as the infinite slope of a root, it is 0."""
    torch.manual_seed(0)
    model, loss = nn.Sequential(nn.Linear(2, 2), Applied(half_square), nn.Linear(1, 1)).double(), nn.MSELoss()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
    x, y = torch.rand(3, 2).double(), torch.randn(3, 1).double()
    compiled = hbp.compile(model, loss, ["grad", "batch_grad", "diag_ggn"])
    compiled(x, y)
    x[1] = 0
    found = compiled(x, y)
    (expected,) = torch.autograd.grad(loss(model(x), y), model[0].bias)
    assert expected.isfinite().all()
    torch.testing.assert_close(found.grad["0.bias"], expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.batch_grad["0.bias"].sum(0), expected, rtol=1e-12, atol=1e-14)
    rows = torch.stack([torch.autograd.grad(model(x[i : i + 1]).sum(), model[0].bias)[0] for i in (0, 2)])
    torch.testing.assert_close(found.diag_ggn["0.bias"], 2 / 3 * rows.square().sum(0), rtol=1e-12, atol=1e-14)


class Applied(nn.Module):
    """The root of a sum of an elementwise function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h).sum(1, keepdim=True).sqrt()


def named_as_torchs(name):
    """An operation of the user's that is a b + a where torch's of this name is another."""
    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a * b + a

    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        return gradient * (b + 1), gradient * a

    own = torch.library.custom_op(f"hbptests_named_as_torchs::{name}", function, mutates_args=())
    own.register_fake(lambda a, b: torch.empty_like(a))
    own.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    return own


@pytest.mark.parametrize("name", ["mul", "mean", "mm", "clone", "where", "rand_like", "expand"])
def test_a_users_operation_may_be_called_as_one_of_torchs(name):
    """It ran torch's: another was refused with strange words, and one that differs elsewhere alone was not."""
    torch.manual_seed(0)
    first, second = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    own = named_as_torchs(name)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x):
            return own(self.first(x), self.second(x))

    X, y = torch.randn(5, 3).double(), torch.tensor([0, 1, 1, 0, 1])
    found = hbp.compile(Both(), quantities=["grad", "diag_h"], verify=False)(X, y)
    a, b = first(X), second(X)
    loss = nn.functional.cross_entropy(a * b + a, y)
    for key, weight in (("first.weight", first.weight), ("second.bias", second.bias)):
        (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
        curved = [torch.autograd.grad(number, weight, retain_graph=True)[0].flatten()[place]
                  for place, number in enumerate(slope.flatten())]
        torch.testing.assert_close(found.grad[key], slope, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.diag_h[key].flatten(), torch.stack(curved), rtol=1e-10, atol=1e-12)
