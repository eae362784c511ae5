"""Conditions on whether a mask picks rows: followed where they only save work, at every batch; refused where they
choose."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.conditions.ways import Ways
from hbpcompiler.compiler.trace.rows.saved_work import only_saving_work
from tests.agreement import agree
from tests.compiler.trace.conditions.test_ways import Mixture
from tests.selection import few

REFUSED = r"control flow depends on the values(.|\n)*test_saved_work\.py:\d+: .*where the mask picks nothing"
QUANTITIES = ["grad", "batch_grad", "diag_ggn", "diag_h"]


def plus_one(self, x, weight, choice):
    if (choice == 0).any():
        x = x + 1
    return x


def doubled(self, x, weight, choice):
    rows = torch.where(choice == 0)[0]
    if rows.numel() > 0:
        x = x * 2
    return x


def clamped_beside(self, x, weight, choice):
    """What it does beside, it does to very large numbers alone."""
    out, mask = x, choice == 0
    if mask.any():
        out = out.clamp(-1e6, 1e6)
        out[mask] = self.experts[0](x[mask])
    return out


def shifted_beside(self, x, weight, choice):
    """By a buffer, which is zero at first."""
    out, mask = x.clone(), choice == 0
    if mask.any():
        out[mask] = self.experts[0](x[mask])
        out = out + self.shift
    return out


def another_mask(self, x, weight, choice):
    out = x.clone()
    if (choice == 0).any():
        out[choice == 1] = self.experts[0](x[choice == 1])
    return out


def one_of_two(self, x, weight, choice):
    out = x.clone()
    for number, amount in ((0, 0.0), (1, 1.0)):
        if (choice == number).any():
            out = out + amount
    return out


def shifted(out, mask, amount):
    return out + amount if mask.any() else out


def twice_in_a_line(self, x, weight, choice):
    return shifted(shifted(x, choice == 0, 0.0), choice == 1, 1.0)


def drawn(self, x, weight, choice):
    mask = choice == 0
    if mask.any():
        x = x + torch.randn_like(x)
    return x


def another_value(self, x, weight, choice):
    out, mask = x, choice == 0
    if mask.any():
        out = torch.where(mask[:, None], self.experts[0](x), x.tanh())
    return out


def as_long_as_there_are(self, x, weight, choice):
    mask = choice == 0
    while mask.any():
        x = x + 1
        mask = mask & (x[:, 0] < 3)
    return x


def neither(self, x, weight, choice):
    return x * 2 if not (choice == 0).any() and not (choice == 1).any() else x


def found_none(self, x, weight, choice):
    out, found = x.clone(), False
    for number in (0, 1):
        if (choice == number).any():
            out[choice == number], found = self.experts[number](x[choice == number]), True
    return out if found else 2 * out


def asked_twice(self, x, weight, choice):
    some, times = (choice == 0).any(), 0
    if some:
        times += 1
    if some:
        times += 1
    return x if times else 2 * x


def detached(self, x, weight, choice):
    x = self.experts[0](x)
    return x.detach() if (choice == 0).any() else x


CHOOSING = [plus_one, doubled, clamped_beside, shifted_beside, another_mask, one_of_two, twice_in_a_line, drawn,
            another_value, neither, found_none, asked_twice, detached]


@few(3, "further cases of one kind")
@pytest.mark.parametrize("routed", CHOOSING)
def test_branches_that_choose(routed):
    """Nothing on the first batch has to show it, and no proof has to be asked for."""
    torch.manual_seed(1)
    model = Mixture(routed).double()
    model.register_buffer("shift", torch.zeros(3, dtype=torch.float64))
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(2, (6,))
    with pytest.raises(hbp.CompileError, match=REFUSED):
        hbp.compile(model, quantities=["grad"], verify=False)(x, y)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loop_that_would_not_end_with_rows():
    model = Mixture(as_long_as_there_are).double()
    with pytest.raises(hbp.CompileError, match="control flow depends on the values"):
        hbp.compile(model, quantities=["grad"])(torch.randn(6, 3, dtype=torch.float64), torch.randint(2, (6,)))


def summed(output, y, mask):
    return F.cross_entropy(output[mask], y[mask], reduction="sum")


def mean(output, y, mask):
    return F.cross_entropy(output[mask], y[mask])


def smoothed(output, y, mask):
    return F.cross_entropy(output[mask], y[mask], label_smoothing=0.1)


def mean_of_squares(output, y, mask):
    return F.mse_loss(output[mask], torch.ones_like(output[mask]))


def mean_of_losses(output, y, mask):
    return F.cross_entropy(output, y, reduction="none")[mask].mean()


def over_their_number(output, y, mask):
    return output[mask].square().sum() / mask.sum()


def times_the_mask(output, y, mask):
    return (F.cross_entropy(output, y, reduction="none") * mask.double()).sum() / mask.double().sum()


def over_their_length(output, y, mask):
    return output[mask].square().sum() / len(output[mask])


LOSSES = [summed, mean, smoothed, mean_of_squares, mean_of_losses, over_their_number, times_the_mask, over_their_length]


@few(3, "further cases of one kind")
@pytest.mark.parametrize("part", LOSSES)
def test_parts_of_a_loss(part):
    """A mean of nothing is NaN, but for the condition."""
    def loss(output, y):
        total, mask = 0.1 * output.square().mean(), y > 0
        if mask.any():
            total = total + part(output, y, y > 0)
        return total

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    compiled = hbp.compile(model, loss, ["grad", "diag_h"])
    for y in (torch.tensor([1, 0, 2, 1]), torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 0, 0])):
        x = torch.randn(4, 3, dtype=torch.float64)
        result = compiled(x, y)
        agree(result, model, loss, [x], y)
        assert result.loss.isfinite()


def test_a_mean_of_nothing_that_no_condition_looks_after():
    """Of labels that are all ignored, or of rows of another mask, it is NaN, as torch's is."""
    def loss(output, y):
        total = 0.1 * output.square().mean()
        if (y > 0).any():
            total = total + F.cross_entropy(output[y > 0], y[y > 0], ignore_index=2)
        return total

    def of_another(output, y):
        total, some = 0.1 * output.square().mean(), y > 0
        if some.any():
            total = total + output[some & (y > 1)].mean()
        return total

    model, x = nn.Linear(3, 3).double(), torch.randn(4, 3, dtype=torch.float64)
    compiled = hbp.compile(model, loss, ["grad"])
    assert compiled(x, torch.tensor([1, 0, 2, 1])).loss.isfinite()
    assert compiled(x, torch.tensor([0, 0, 2, 2])).loss.isnan()
    with pytest.raises(hbp.CompileError, match=REFUSED):
        hbp.compile(model, of_another, ["grad"])(x, torch.tensor([1, 0, 2, 1]))


class Told(nn.Module):
    """What it returns says which way it went."""

    def __init__(self):
        super().__init__()
        self.first, self.expert = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        h, mask, used = self.first(x), x[:, 0] > 0, 0
        if mask.any():
            h[mask], used = self.expert(h[mask]), 1
        return {"h": h, "used": used}


def test_what_is_returned_beside_has_to_be_alike():
    model, x, y = Told().double(), torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    with pytest.raises(hbp.CompileError, match=REFUSED):
        hbp.compile(model, lambda output, y: F.cross_entropy(output["h"], y), ["grad"])(x, y)


class Helped(nn.Module):
    """A helper's branch saves work at one place, and chooses at another."""

    def __init__(self, chooses):
        super().__init__()
        self.first, self.expert, self.chooses = nn.Linear(3, 2), nn.Linear(2, 2), chooses

    def forward(self, x):
        h, mask = self.first(x), x[:, 1] > 0
        h = where_any(mask, lambda h: torch.where(mask[:, None], self.expert(h), h), h)
        return where_any(x[:, 0] > 0, lambda h: 2 * h, h) if self.chooses else h


def where_any(mask, function, h):
    if mask.any():
        h = function(h)
    return h


def test_a_helper_is_looked_at_each_time_that_it_is_called():
    torch.manual_seed(0)
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randint(2, (12,))
    x[:, 0] = x[:, 0].abs()
    model = Helped(chooses=False).double()
    agree(hbp.compile(model, quantities=["grad"])(x, y), model, nn.CrossEntropyLoss(), [x], y)
    with pytest.raises(hbp.CompileError, match=REFUSED):
        hbp.compile(Helped(chooses=True).double(), quantities=["grad"])(x, y)


class Put(nn.Module):
    """In place, by a method whose last statement is the branch; beside indices made of inputs."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(8, 3), nn.Linear(3, 2)
        self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

    def put(self, out, mask, h, expert):
        if mask.any():
            out[mask] = expert(h[mask])

    def forward(self, x):
        h = self.table(x[:, 0].long()).tanh()
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            self.put(out, (x[:, 1] > 0) == number, h, expert)
        return self.head(out)


def test_in_place_in_a_method():
    torch.manual_seed(0)
    model = Put().double()
    compiled = hbp.compile(model, quantities=QUANTITIES)
    for size in (6, 1, 3):
        x, y = torch.randn(size, 2, dtype=torch.float64), torch.randint(2, (size,))
        x[:, 0] = torch.arange(size)
        agree(compiled(x, y), model, nn.CrossEntropyLoss(), [x], y)


def test_a_program_without_its_conditions():
    """And without another trace where there are none."""
    class Conditions(nn.Module):
        def forward(self, x):
            mask = x > 0
            return torch.where(mask, x.exp(), x), mask.any()

    class Without(nn.Module):
        def forward(self, x):
            return x, (x > 0).any()

    def traced(module):
        return torch.export.export(module, (torch.randn(3),), strict=False)

    program = traced(Conditions())
    assert only_saving_work(program, Ways(), lambda ways: pytest.fail("traced again")) == (program, {})

    def other_way(ways):
        ways.lines.append("here")
        return traced(Without()), True

    found, zero_means = only_saving_work(program, Ways(lines=["here"]), other_way)
    assert not zero_means
    assert [node.target for node in found.graph.output_node().all_input_nodes] == [torch.ops.aten.where.self]


class InParts(nn.Module):
    """Of no parts at all there is no sum, but each sample is in one of the two."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        mask, parts = x[:, 0] > 0, []
        if mask.any():
            parts.append(self.first(x) * mask[:, None])
        if not mask.all():
            parts.append(self.second(x) * (~mask)[:, None])
        return self.last(sum(parts))


def test_what_is_raised_of_a_batch_that_there_is_not():
    """That neither a mask nor its inverse picks rows is no way of the code."""
    torch.manual_seed(0)
    model, loss = InParts().double(), nn.CrossEntropyLoss()
    compiled = hbp.compile(model, loss, ["grad", "diag_h"])
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 3
    for first in (x[:, 0], x[:, 0].abs(), -x[:, 0].abs()):
        given = torch.cat([first[:, None], x[:, 1:]], 1)
        agree(compiled(given, y), model, loss, [given], y)


def test_what_is_raised_where_another_mask_picks_nothing():
    """Two masks that have nothing to do with each other may both pick nothing."""
    class Other(InParts):
        def forward(self, x):
            mask, other, parts = x[:, 0] > 0, x[:, 1] > 0, []
            if mask.any():
                parts.append(self.first(x) * mask[:, None])
            if other.any():
                parts.append(self.second(x) * other[:, None])
            return self.last(sum(parts))

    compiled = hbp.compile(Other().double(), nn.CrossEntropyLoss(), ["grad"])
    with pytest.raises(hbp.HbpError, match="must be Tensor, not int"):
        compiled(torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 3)


SPELLINGS = {
    "item": lambda m: m.any().item(), "is True": lambda m: m.any().item() is True, "largest": lambda m: m.max() > 0,
    "amax": lambda m: m.amax(), "of numbers": lambda m: m.int().max() > 0, "share": lambda m: m.double().mean() > 0,
    "no zero": lambda m: m.float().mean() != 0, "compared": lambda m: m.any() != False,  # noqa: E712
    "not none": lambda m: not (~m).all().item(),
}
PARTS = {
    "squares": lambda o, m: (((o[:, 0] - 1) * m) ** 2).sum() / m.sum(), "cubes": lambda o, m: ((o[:, 0] * m) ** 3).sum()
    / m.sum(), "sizes": lambda o, m: (o[:, 0] * m).abs().sum() / m.double().sum(),
    "twice": lambda o, m: o[m].square().sum() / (m.sum() * 2), "times classes": lambda o, m: (
        (o * m[:, None]).square().sum() / (o.shape[1] * m.sum())),
}


def some_and_none(condition, part, quantities):
    def loss(output, y):
        total, mask = 0.1 * output.square().mean(), y > 0
        if condition(mask):
            total = total + part(output, mask)
        return total

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    compiled = hbp.compile(model, loss, quantities)
    for y in (torch.tensor([1, 0, 2, 1]), torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 0, 0])):
        x = torch.randn(4, 3, dtype=torch.float64)
        result = compiled(x, y)
        agree(result, model, loss, [x], y)
        assert result.loss.isfinite()


@few(4, "further spellings")
@pytest.mark.parametrize("condition", SPELLINGS)
def test_spellings_of_whether_a_mask_picks_rows(condition):
    some_and_none(SPELLINGS[condition], lambda o, m: o[m].square().mean(), ["grad"])


@few(3, "further cases of one kind")
@pytest.mark.parametrize("part", PARTS)
def test_what_is_zero_of_a_mask_that_picks_nothing(part):
    some_and_none(torch.any, PARTS[part], ["grad", "diag_h"])


@pytest.mark.parametrize("condition", [lambda m: m.double().mean() > 0.5, lambda m: m.max() > 1,
                                       lambda m: m.max() >= 0])
def test_conditions_on_masks_that_ask_for_something_else(condition):
    with pytest.raises(hbp.HbpError, match="control flow depends on the values"):
        some_and_none(condition, lambda o, m: o[m].square().mean(), ["grad"])


IN_NO_FILE = """
def loss(output, target):
    mask = target >= 0
    if mask.all():
        return nn.functional.cross_entropy(output, target)
    return nn.functional.cross_entropy(output[mask], target[mask])
"""


def test_a_condition_in_no_file_is_named_so():
    found = {"nn": nn}
    exec(IN_NO_FILE, found)
    with pytest.raises(hbp.HbpError, match=r"(?s)- a condition in code that is in no file.*inner = outer & "):
        hbp.compile(nn.Linear(4, 3), found["loss"], ["grad"])(torch.randn(6, 4), torch.tensor([0, 1, -1, 2, 0, -1]))
