"""The loss's columns of each position alone, of which loops make so many at a time."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.plan.seeds import with_seeds_by_position
from hbpcompiler.compiler.plan.steps import SampleChunks, Seed, Tail
from hbpcompiler.quantities import GRADIENT
from hbpcompiler.rule.position_columns import positionwise, some_positionwise
from tests.agreement import close
from tests.quantities.test_quantities import check_exact

SAMPLES, CLASSES, LENGTH = 3, 4, 5


class InTheMiddle(nn.Sequential):
    """[N, C, T]."""

    def forward(self, x):
        return super().forward(x).transpose(1, 2)


def flattened(output, target):
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())


def layers(kind=nn.Sequential):
    torch.manual_seed(0)
    return kind(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, CLASSES)).double()


def batch(length=LENGTH):
    target = torch.randint(CLASSES, (SAMPLES, length))
    target[0, 1] = -100
    return torch.randn(SAMPLES, length, 2, dtype=torch.float64), target


def seeds(compiled):
    return [step for step in compiled._current().draft.plan.steps
            if isinstance(step, Seed) and step.piece.stream != GRADIENT]


WAYS = {
    "in the middle": (InTheMiddle, nn.CrossEntropyLoss()),
    "flattened": (nn.Sequential, flattened),
    "weighted sum": (InTheMiddle, nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5, 1.0]).double(), reduction="sum")),
}
LIMITS = {
    "columns apart": hbp.Limits(few_columns=0, spatial_bytes=0, recycled_bytes=500, cache_bytes=1000),
    "samples apart": hbp.Limits(few_columns=0, spatial_bytes=0, recycled_bytes=10_000, cache_bytes=1000),
    "all curvature": hbp.Limits(few_columns=0, all_columns_bytes=0, all_columns_chunk_bytes=1, cache_bytes=1000),
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize(("kind", "loss"), WAYS.values(), ids=WAYS)
def test_loops_make_them_and_agree_with_brute_force(kind, loss, limits):
    x, y = batch()
    compiled, _ = check_exact(layers(kind), loss, x, y, ["grad", "diag_ggn", "diag_h"], limits=limits)
    assert [step.by_position for step in seeds(compiled)] == [True]
    assert any(isinstance(step, Tail | SampleChunks) for step in compiled._current().draft.plan.steps)
    weights = torch.tensor([0.5, 2.0, 1.0])
    expected = hbp.compile(layers(kind), loss, ["diag_ggn"])(x, y, sample_weights=weights).diag_ggn
    for name, value in compiled(x, y, sample_weights=weights).diag_ggn.items():
        close(value, expected[name], f"diag_ggn of {name}, weighted")


def test_kronecker_factors_are_the_same():
    x, y = batch()
    whole = hbp.compile(layers(), flattened, ["kflr"])
    cut = hbp.compile(layers(), flattened, ["kflr"], limits=LIMITS["columns apart"])
    for name, factors in cut(x, y).kflr.items():
        close(factors.B, whole(x, y).kflr[name].B, f"B of {name}")
    assert [[step.by_position for step in seeds(each)] for each in (whole, cut)] == [[False], [True]]


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(each.numel() for each in tree_leaves(made) if torch.is_tensor(each))])
        return made


@pytest.mark.parametrize(("kind", "loss"), list(WAYS.values())[:2], ids=list(WAYS)[:2])
def test_no_tensor_has_all_positions_twice(kind, loss):
    x, y = batch(length=40)
    compiled = hbp.compile(layers(kind), loss, ["diag_ggn", "kflr"], limits=LIMITS["columns apart"], verify=False)
    compiled(x, y)
    with Largest() as largest:
        compiled(x, y)
    assert largest.numbers <= SAMPLES * 40 * CLASSES * CLASSES


def test_one_position_and_several_readers_have_all():
    torch.manual_seed(0)
    compiled = hbp.compile(layers(), nn.CrossEntropyLoss(), ["diag_ggn"], limits=hbp.Limits(vector_bytes=0))
    compiled(torch.randn(SAMPLES, 2, dtype=torch.float64), torch.randint(CLASSES, (SAMPLES,)))
    assert [step.by_position for step in seeds(compiled)] == [False]

    cut = hbp.compile(layers(), flattened, ["diag_ggn"], limits=LIMITS["columns apart"])
    cut(*batch())
    built = cut._current()
    rules, static, steps = built.matched.rules, built.matched.static, built.draft.plan.steps

    def again(given, resources):
        return with_seeds_by_position(given, rules, static, 8, resources)

    limited = Resources(limits=LIMITS["columns apart"])
    assert again(steps, limited) == list(steps)
    (tail,) = [step for step in steps if isinstance(step, Tail)]
    twice = [Seed(step.operation, step.piece) if isinstance(step, Seed) else step for step in (*steps, tail)]
    assert not any(step.by_position for step in again(twice, limited) if isinstance(step, Seed))

    once = [step for step in twice[:-1] if isinstance(step, Seed | Tail)]
    for resources, expected in ((Resources(), False), (Resources(temporaries=1), True)):
        made = [step.by_position for step in again(once, resources) if isinstance(step, Seed)]
        assert any(made) == expected, "columns that fit the cache, unless memory is limited"


def test_some_columns_are_those_of_all():
    torch.manual_seed(0)
    rows = torch.randn(2, 3, 5, 2, 4)  # [N, *d, k, C]
    numbers = torch.tensor([0, 7, 29, 15])
    torch.testing.assert_close(some_positionwise(rows, (3, 5), numbers), positionwise(rows, (3, 5))[:, numbers])
