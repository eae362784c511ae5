"""Random graphs of operations drawn from the rule table: the cases of every rule enrol themselves; and rows of
elementwise operations in one module, which the compiler joins."""

from math import prod

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from hbpcompiler.rule import Rule
from hbpcompiler.rule.registry import builtin
from hbpcompiler.testing.layer import CaseLayer
from hbpcompiler.testing.setting import SAMPLES, Setting
from tests.elementwise_uses import in_range, uses

QUANTITIES = ("grad", "batch_grad", "diag_ggn", "diag_h")
FEATURES, CLASSES, SIZE = 2, 2, 20
"""Of these numbers in the tensors of a case, at most: brute force takes a backward pass for each parameter."""



def numbers(shape):
    """How many numbers a tensor of this shape has, or a list of tensors of these shapes."""
    return sum(numbers(one) for one in shape) if isinstance(shape, list) else prod(shape)


def draws(setting):
    """Whether the operation draws random numbers, which a reference would draw in another order."""
    return torch.Tag.nondeterministic_seeded in setting.overload.tags


USES = [
    (operation, rule, case)
    for operation, rule in builtin()
    if isinstance(rule, Rule)
    for case in rule.cases
    if sum(numbers(shape) for shape in case.shapes.values()) <= SIZE and not draws(Setting(rule, operation, case))
]


class Graph(nn.Module):
    """Branches of operations side by side on the same features, joined by a sum, a product or a concatenation."""

    def __init__(self, branches, join, residual):
        super().__init__()
        self.stem = nn.Linear(FEATURES, FEATURES)
        self.layers = nn.ModuleList(nn.ModuleList(branch) for branch in branches)
        self.backs = nn.ModuleList(
            nn.ModuleList(nn.Linear(layer.width, FEATURES) for layer in branch) for branch in branches)
        self.join, self.residual = join, residual
        self.head = nn.Linear(FEATURES * (len(branches) if join == "cat" else 1), CLASSES)

    def inputs(self):
        return [extra for branch in self.layers for layer in branch for extra in layer.extras]

    def forward(self, x, *extras):
        x = torch.tanh(self.stem(x))
        given, ends = iter(extras), []
        for branch, backs in zip(self.layers, self.backs, strict=True):
            end = x
            for layer, back in zip(branch, backs, strict=True):
                after = back(layer(end, *[next(given) for _ in layer.extras]))
                end = end + after if self.residual or not layer.makers else after  # of parameters or constants alone
            ends.append(end)
        if self.join == "cat":
            return self.head(torch.cat(ends, 1))
        joined = ends[0]
        for end in ends[1:]:
            joined = joined + end if self.join == "add" else joined * end
        return self.head(joined)


def check(model, x, y):
    inputs = [x, *model.inputs()]
    loss = nn.CrossEntropyLoss()
    result = hbp.compile(model, loss, QUANTITIES)(*inputs, y)
    for quantity in QUANTITIES:
        try:
            references = reference(model, loss, inputs, y, quantity)
        except RuntimeError as error:  # some operations torch differentiates once only
            if quantity == "diag_h" and "not implemented" in str(error):
                continue
            raise
        for name, expected in references.items():
            if name not in result[quantity]:  # behind a step, say, where no derivative passes
                assert not expected.any(), name
                continue
            torch.testing.assert_close(result[quantity][name], expected, rtol=1e-7, atol=1e-9,
                                       msg=lambda text, at=f"{quantity} of {name}": f"{at}: {text}")


def batch():
    return torch.randn(SAMPLES, FEATURES, dtype=torch.float64), torch.arange(SAMPLES) % CLASSES


def fits_any_batch(layer):
    """Whether the case has not the size of its batch among its attributes."""
    few = [extra[: SAMPLES - 1] for extra in layer.extras]
    try:
        features = torch.zeros(SAMPLES - 1, FEATURES, dtype=torch.float64)
        return layer(features, *few).shape == (SAMPLES - 1, layer.width)
    except RuntimeError:
        return False


@st.composite
def graphs(draw):
    seed = draw(st.integers(0, 2**16))
    assume(seed)  # the first example has all draws at their least and says little
    torch.manual_seed(seed)

    def layer():
        operation, rule, case = draw(st.sampled_from(USES))
        found = CaseLayer(rule, operation, case, FEATURES)
        assume(fits_any_batch(found))
        return found

    branches = [[layer() for _ in range(draw(st.integers(1, 2)))] for _ in range(draw(st.integers(1, 2)))]
    model = Graph(branches, draw(st.sampled_from(["add", "mul", "cat"])), draw(st.booleans())).double()
    return model, *batch()


@given(graphs())
def test_agrees_with_brute_force(setting):
    check(*setting)


ELEMENTWISE = [use for cases in uses().values() for use in cases if not draws(use.setting)]


class Row(nn.Module):
    """Elementwise operations in a row between two linear layers; their result may meet what they began with."""

    def __init__(self, chain, meets):
        super().__init__()
        self.stem, self.head = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)
        self.chain, self.meets = chain, meets

    def inputs(self):
        return []

    def hidden(self, x):
        return torch.tanh(self.stem(x))

    def forward(self, x):
        begun = end = self.hidden(x)
        for use in self.chain:
            end = use(end)
        return self.head({"nothing": end, "in a sum": begun + end, "in a product": begun * end,
                          "in a quotient": end / (2 + begun)}[self.meets])


@st.composite
def rows(draw):
    torch.manual_seed(draw(st.integers(0, 2**16)))
    chain = draw(st.lists(st.sampled_from(ELEMENTWISE), min_size=2, max_size=4))
    model = Row([], draw(st.sampled_from(["nothing", "in a sum", "in a product", "in a quotient"]))).double()
    x, y = batch()
    with torch.no_grad():
        model.chain = in_range(chain, model.hidden(x))
    return model, x, y


@given(rows())
def test_elementwise_operations_of_one_module_agree_with_brute_force(setting):
    check(*setting)
