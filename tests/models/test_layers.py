"""Layers that random graphs do not draw: bags of embeddings, bilinear layers, random slopes, trained grids."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from tests.selection import few, slow

QUANTITIES = ("grad", "batch_grad", "diag_ggn", "diag_h")
INDICES = torch.tensor([[0, 2, 2, 1], [4, 1, 0, 1], [1, 1, 1, 1]])


def check(model, inputs, like=None):
    """`like` computes the same by operations that torch differentiates twice."""
    y = torch.tensor([0, 1, 1])
    result = hbp.compile(model, quantities=QUANTITIES)(*inputs, y)
    torch.testing.assert_close(result.output, model(*inputs))
    for quantity in QUANTITIES:
        for name, expected in reference(like or model, nn.CrossEntropyLoss(), inputs, y, quantity).items():
            torch.testing.assert_close(result[quantity][name], expected, rtol=1e-8, atol=1e-11,
                                       msg=lambda text, at=f"{quantity} of {name}": f"{at}: {text}")


class Bags(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(5, 3, **options), nn.Linear(3, 2)

    def forward(self, indices, weights=None):
        return self.head(torch.tanh(self.bag(indices, per_sample_weights=weights)))


class Counts(nn.Module):
    """The same by one-hot vectors."""

    def __init__(self, model):
        super().__init__()
        self.bag, self.head = model.bag, model.head

    def forward(self, indices, weights=None):
        hot = nn.functional.one_hot(indices, 5).double()
        if self.bag.padding_idx is not None:
            hot = hot * (indices != self.bag.padding_idx).unsqueeze(-1)
        if self.bag.mode == "max":
            rows = (hot @ self.bag.weight).masked_fill(hot.sum(-1, True) == 0, -1e9)
            return self.head(torch.tanh(rows.amax(1) * (hot.sum((1, 2)) > 0).unsqueeze(1)))
        hot = hot if weights is None else hot * weights.unsqueeze(-1)
        count = hot.sum((1, 2)).clamp(min=1).unsqueeze(1) if self.bag.mode == "mean" else 1
        return self.head(torch.tanh(hot.sum(1) @ self.bag.weight / count))


@few(2, "further cases of one kind")
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 1])
def test_bags(mode, padding):
    torch.manual_seed(0)
    model = Bags(mode=mode, padding_idx=padding).double()
    check(model, [INDICES], Counts(model))


def test_weighted_bags():
    torch.manual_seed(0)
    model = Bags(mode="sum", padding_idx=1).double()
    check(model, [INDICES, torch.randn(3, 4, dtype=torch.float64)], Counts(model))


def test_weights_by_frequency_are_refused():
    with pytest.raises(hbp.UnsupportedOpError, match="mixes the samples"):
        hbp.compile(Bags(scale_grad_by_freq=True), quantities=["grad"])(INDICES, torch.tensor([0, 1, 1]))


def test_bags_in_one_row_are_refused():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(5, 3), nn.Linear(3, 2)

        def forward(self, indices):
            return self.head(self.bag(indices.flatten(), torch.arange(0, indices.numel(), 4)))

    with pytest.raises(hbp.CompileError, match=r"EmbeddingBag\).* have no sample axis; .*pad_sequence"):
        hbp.compile(Flat(), quantities=["grad"])(INDICES, torch.tensor([0, 1, 1]))


class BagsByFunction(Bags):
    """Of the table itself, as models write that share it."""

    def forward(self, indices, weights=None):
        bag = self.bag
        return self.head(torch.tanh(nn.functional.embedding_bag(
            indices, bag.weight, mode=bag.mode, per_sample_weights=weights,
            padding_idx=None if bag.padding_idx is None else bag.padding_idx - 5)))


@pytest.mark.parametrize("options", [{"mode": "sum"}, {}, {"mode": "max"}, {"mode": "mean", "padding_idx": 2},
                                     {"mode": "max", "padding_idx": 1}])
def test_bags_by_the_function(options):
    torch.manual_seed(0)
    model = BagsByFunction(**options).double()
    check(model, [INDICES], Counts(model))


@pytest.mark.parametrize(("layer", "shape", "words"), [
    (nn.Embedding(5, 3, max_norm=1.0), (3, 4), "leave max_norm out.*embedding_renorm_"),
    (nn.EmbeddingBag(5, 3, max_norm=1.0), (3, 4), "leave it out.*embedding_renorm_"),
    (nn.CrossMapLRN2d(3), (3, 2, 2, 3), "use nn.LocalResponseNorm"),
])
def test_layers_that_change_tensors_in_place_say_what_to_use(layer, shape, words):
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = layer, nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.layer(x)).flatten(1)

    before = [parameter.detach().clone() for parameter in layer.parameters()]
    x = torch.ones(shape) if isinstance(layer, nn.CrossMapLRN2d) else torch.ones(shape, dtype=torch.long)
    with pytest.raises(hbp.CompileError, match=words):
        hbp.compile(Beside(), lambda output, y: output.sum(1).mean(), quantities=["grad"])(x, torch.zeros(3))
    for parameter, value in zip(layer.parameters(), before, strict=True):
        assert torch.equal(parameter, value), "nothing of the user's has changed"


class Pair(nn.Module):
    """nn.Bilinear between two functions of the input."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 3)
        self.bilinear, self.head = nn.Bilinear(2, 3, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.bilinear(self.left(x), self.right(x))))


def test_bilinear():
    torch.manual_seed(0)
    check(Pair().double(), [torch.randn(3, 3, dtype=torch.float64)])


def test_random_slopes_are_refused_in_train_mode_and_their_mean_is_not():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.RReLU(), nn.Linear(4, 2)).double(), torch.randn(3, 3).double()
    with pytest.raises(hbp.UnsupportedOpError, match=r"model.eval\(\)"):
        hbp.compile(model, quantities=["grad"])(x, torch.tensor([0, 1, 1]))
    check(model.eval(), [x])


@slow("derived rules have tests")
def test_a_trained_grid_has_a_derived_rule():
    class Warp(nn.Module):
        def __init__(self):
            super().__init__()
            self.place, self.head = nn.Linear(9, 8), nn.Linear(4, 2)

        def forward(self, x):
            grid = torch.tanh(self.place(x.flatten(1))).reshape(-1, 2, 2, 2)
            return self.head(nn.functional.grid_sample(x, grid, align_corners=False).flatten(1))

    torch.manual_seed(0)
    check(Warp().double(), [torch.randn(3, 1, 3, 3, dtype=torch.float64)])


NEIGHBOURS = {
    "i0": lambda x: torch.i0(2 * x).log(),
    "i1": lambda x: torch.special.i1(x) ** 2 + x,
    "i0e": lambda x: torch.special.i0e(x) * x,
    "lgamma": lambda x: torch.lgamma(x.square() + 1) * x,
    "digamma": lambda x: torch.digamma(x.square() + 1) * x,
    "polygamma": lambda x: torch.polygamma(1, x.square() + 1) * x,
    "ndtr": lambda x: torch.special.ndtr(x) * x,
    "erfinv": lambda x: torch.erfinv(torch.tanh(x)) * x,
    "hyperbolic": lambda x: torch.acosh(x.square() + 2) * x.asinh() + torch.atanh(x / 4).square(),
    "exp2": lambda x: torch.exp2(x) * x,
    "round": lambda x: x.round(decimals=1) * x,
}


@few(2, "other functions")
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_functions_beside_others_on_the_same_value(name):
    class Around(nn.Sequential):
        def forward(self, x):
            return self[1](NEIGHBOURS[name](torch.tanh(self[0](x))))

    torch.manual_seed(0)
    check(Around(nn.Linear(3, 3), nn.Linear(3, 2)).double(), [torch.randn(3, 3, dtype=torch.float64)])


class Factorised(nn.Module):
    """One index for each sample and table, as of users and of what they rate."""

    def __init__(self):
        super().__init__()
        self.users, self.items, self.offsets = nn.Embedding(5, 3), nn.Embedding(4, 3, padding_idx=1), nn.Embedding(5, 2)

    def forward(self, users, items):
        met = torch.tanh(self.users(users) * self.items(items)).sum(1, keepdim=True)
        return met * torch.tensor([1.0, 2.0]).double() + self.offsets(users)


def test_embeddings_of_one_index_for_each_sample():
    torch.manual_seed(0)
    model, inputs, y = Factorised().double(), torch.tensor([[4, 0, 4], [3, 1, 3]]), torch.tensor([0, 1, 1])
    quantities = ["grad", "batch_l2", "second_moment", "diag_ggn", "diag_h"]
    compiled = hbp.compile(model, quantities=quantities)
    for given in (inputs, inputs.int()):
        result = compiled(*given, y)
        for quantity in quantities:
            for name, expected in reference(model, nn.CrossEntropyLoss(), inputs, y, quantity).items():
                torch.testing.assert_close(result[quantity][name], expected, rtol=1e-9, atol=1e-12)
