"""Advanced indexing against brute force: places of each sample's own, tables, masks; what picks samples is refused."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.agreement import agree
from tests.models.test_modules import check, draw
from tests.selection import few

QUANTITIES = ["grad", "batch_grad", "diag_ggn", "diag_h"]
PLACES = torch.tensor([[0, 3, -1], [2, 2, 1]])


class Heads(nn.Module):
    """The last token of each sample, and others of its own, from values that were put and added in such places."""

    def __init__(self):
        super().__init__()
        self.inner, self.other, self.outer = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2)
        self.token = nn.Parameter(torch.randn(3))

    def forward(self, x, places):
        rows = torch.arange(x.shape[0])
        h, values = torch.tanh(self.inner(x)), self.other(x)
        h = h.index_put((rows[:, None], places), values[:, :3], accumulate=True)
        h[x[..., 0] > 0.5] = self.token
        h = h.clone()
        h[rows, places[:, 0]] = torch.sin(self.token)
        h[rows, 1] *= 2
        picked = h[rows[:, None], places].sum(1) * h[rows, places.abs().argmax(-1)] + h[rows, -1]
        return self.outer(picked + h[rows, :, places[:, 1] % 3].mean(1, keepdim=True))


class Tables(nn.Module):
    """Rows of a parameter and of a function of one, and single entries, by indices of each sample."""

    def __init__(self):
        super().__init__()
        self.rows, self.entries, self.grid = [nn.Parameter(torch.randn(*s)) for s in ((4, 3), (4, 3), (4, 2, 2))]
        self.outer = nn.Linear(3, 2)
        self.register_buffer("column", torch.tensor([2, 0, 0]))

    def forward(self, places):
        h = torch.tanh(self.rows[places]).sum(1) + torch.exp(self.entries)[places[:, 0], :]
        h = h * self.entries[places, self.column] + self.rows.index_select(0, places[:, 1])
        h = h + self.rows.t()[:, places].mean(2).t()
        return self.outer(h) + self.grid[places, places % 2].mean(1)


class Masked(nn.Module):
    """Scores put to a number by a mask, a matrix of parameters put in its lower triangle, a column of one's own."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 2), nn.Linear(2, 2)
        self.lower, self.added = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2, 1))
        self.register_buffer("at", torch.tensor([[0], [1]]))
        self.register_buffer("places", torch.tensor([[[0, 1], [2, 0], [3, 3]]]))

    def forward(self, x):
        matrix = torch.zeros(2, 2, dtype=x.dtype)
        matrix[torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])] = self.lower
        matrix = matrix + torch.zeros_like(matrix).scatter(1, self.at, self.added)
        h = self.inner(x)
        h[x < 0] = 0.0
        h = torch.take_along_dim(h @ matrix, self.places, 1)
        return self.outer(torch.softmax(h.masked_fill_(h > 1, -3.0), -1).mean(1))


MODELS = {
    "heads": lambda: (Heads(), (draw(2, 4, 2), PLACES)),
    "tables": lambda: (Tables(), (PLACES,)),
    "masked": lambda: (Masked(), (draw(2, 4, 2),)),
}


@few(1, "further cases of one kind")
@pytest.mark.parametrize("name", list(MODELS))
def test_against_brute_force(name):
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    inputs = [x % 4 if name == "tables" else x for x in inputs]
    check(model.double(), inputs, torch.tensor([0, 1]), QUANTITIES)


def test_kronecker_factors_of_a_table_are_those_of_an_embedding():
    class Table(nn.Module):
        def __init__(self, embeds):
            super().__init__()
            self.embeds, self.table, self.outer = embeds, nn.Embedding(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            rows = self.table(x) if self.embeds else self.table.weight[x]
            return self.outer(torch.tanh(rows).mean(1))

    models = []
    for embeds in (False, True):
        torch.manual_seed(0)
        models.append(Table(embeds).double())
    found, expected = [hbp.compile(model, quantities=["kflr", "batch_l2"])(PLACES % 4, torch.tensor([0, 1]))
                       for model in models]
    for mine, theirs in zip(found.kflr["table.weight"], expected.kflr["table.weight"], strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(found.batch_l2["table.weight"], expected.batch_l2["table.weight"])


def test_any_batch_size():
    torch.manual_seed(0)
    model = Heads().double()
    compiled = hbp.compile(model, quantities=["batch_grad", "diag_h"])
    for samples in (1, 3):
        x, places, y = draw(samples, 4, 2), torch.randint(0, 4, (samples, 1)) + torch.arange(3), torch.ones(samples)
        given, y = [x, places % 4], y.long()
        found = compiled(*given, y)
        once = hbp.compile(model, quantities=["batch_grad", "diag_h"])(*[v.repeat_interleave(2, 0) for v in given],
                                                                       y.repeat_interleave(2))
        for key, value in found.diag_h.items():
            torch.testing.assert_close(once.diag_h[key], value)
            torch.testing.assert_close(2 * once.batch_grad[key][::2], found.batch_grad[key])


@pytest.mark.parametrize("picking", [
    lambda h: h[torch.arange(h.shape[0]).flip(0)],
    lambda h: h[torch.arange(h.shape[0]) // 2],
    lambda h: h[h.detach()[:, 0].argsort()],
    lambda h: h.index_put((torch.arange(h.shape[0]).flip(0),), h),
], ids=["flipped", "halved", "sorted", "put"])
def test_what_picks_samples_is_refused(picking):
    class Picking(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x):
            return picking(self.inner(x))

    with pytest.raises(hbp.UnsupportedOpError, match="it picks samples; keep all of them, in their order"):
        hbp.compile(Picking(), quantities=["grad"])(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))


class RowsByNumber(nn.Module):
    """Choices merged with the samples, [3 N, T]: whose mask is picked by the numbers of all rows, as transformers does.
    """

    def __init__(self, number):
        super().__init__()
        self.inner, self.outer, self.number = nn.Linear(2, 3), nn.Linear(3, 1), number

    def forward(self, x, mask):
        rows, mask = x.flatten(0, 1), mask.flatten(0, 1)
        places = torch.arange(mask.shape[1])
        seen = mask[self.number(rows)[:, None, None], places[None, None, :]]
        h = torch.tanh(self.inner(rows))
        weights = (h @ h.mT).masked_fill(~seen, -torch.inf).softmax(-1)
        return self.outer((weights @ h).mean(1)).view(x.shape[:2])


def of_choices():
    torch.manual_seed(0)
    mask = torch.rand(4, 3, 5) < 0.7
    mask[..., 0] = True
    return torch.randn(4, 3, 5, 2, dtype=torch.float64), mask, torch.tensor([0, 2, 1, 1])


def test_rows_of_merged_samples_by_their_numbers():
    model = RowsByNumber(lambda rows: torch.arange(len(rows))).double()
    X, mask, y = of_choices()
    compiled = hbp.compile(model, quantities=QUANTITIES)
    agree(compiled((X, mask), y), model, nn.CrossEntropyLoss(), [X, mask], y)
    agree(compiled((X[:2], mask[:2]), y[:2]), model, nn.CrossEntropyLoss(), [X[:2], mask[:2]], y[:2])


@pytest.mark.parametrize("number", [
    lambda rows: torch.arange(len(rows)) // 3,
    lambda rows: torch.arange(len(rows)).flip(0),
    lambda rows: torch.arange(len(rows) - 1, -1, -1),
    lambda rows: (torch.arange(len(rows)) + 1) % len(rows),
], ids=["first samples", "backwards", "counted down", "turned"])
def test_rows_of_other_samples_are_refused(number):
    X, mask, y = of_choices()
    with pytest.raises(hbp.UnsupportedOpError, match="samples"):
        hbp.compile(RowsByNumber(number).double(), quantities=["grad"], verify=False)((X, mask), y)


class FirstHalf(nn.Module):
    """The numbers of half of the rows, of all of them."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        rows = torch.tanh(self.inner(x.flatten(0, 1)))
        return rows[torch.arange(2 * len(x))].view(len(x), 2, 2).sum(1)


def test_numbers_of_fewer_rows_are_refused():
    X, y = torch.randn(3, 4, 2, dtype=torch.float64), torch.tensor([0, 1, 1])
    with pytest.raises(hbp.UnsupportedOpError, match="samples"):
        hbp.compile(FirstHalf().double(), quantities=["grad"], verify=False)(X, y)
