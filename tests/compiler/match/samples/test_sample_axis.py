"""Models that keep the sample axis elsewhere than in front, against brute force; samples that mix are refused."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from tests.agreement import agree, close
from tests.selection import few


class Recurrent(nn.Module):
    """batch_first=False, which is torch's default: time before samples."""

    def __init__(self, kind):
        super().__init__()
        self.memory, self.outer = kind(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.outer(self.memory(x.transpose(0, 1))[0][-1])


class TimeFirst(nn.Module):
    """Normalisation, an activation and a mean while time is in front."""

    def __init__(self):
        super().__init__()
        self.memory, self.norm, self.outer = nn.LSTM(2, 3), nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x):
        h = torch.tanh(self.norm(self.memory(x.permute(1, 0, 2))[0]))
        return self.outer(h).mean(0)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.outer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, activation="gelu"), nn.Linear(4, 2)

    def forward(self, x):
        return self.outer(self.layer(x.transpose(0, 1))[0])


class Decoder(nn.Module):
    """Attention between two sequences: each part of one weight meets its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(4, 2, 5, dropout=0.0, batch_first=True)
        self.memory, self.outer = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(2, dtype=x.dtype)
        return self.outer(self.layer(x[:, :2], self.memory(x), tgt_mask=mask).mean(1))


class Widths(nn.Module):
    """Keys and values of other widths than the queries."""

    def __init__(self):
        super().__init__()
        self.attention, self.outer = nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        mixed, weights = self.attention(x, torch.sin(x[..., :3]), x[..., 2:])
        return self.outer(mixed.mean(1)) + weights.square().sum((1, 2), keepdim=True)[:, 0]


class LastValid(nn.Module):
    """The last step of each sample, of outputs with time in front, by the samples' numbers."""

    def __init__(self):
        super().__init__()
        self.memory, self.outer = nn.RNN(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        last = (x[..., 0] > 0).long().sum(1) % 3
        return self.outer(self.memory(x.transpose(0, 1))[0][last, torch.arange(x.shape[0])])


class Merged(nn.Module):
    """Positions merged with samples through operations that count axes from the front."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.inner(x.reshape(-1, 4))).view(-1, 1, 3)
        h = torch.softmax(h, 2)
        return self.outer(torch.cat([h, h[:, :, :1]], 2).view(x.shape[0], 3, 4).amax(1))


class WrittenTo(nn.Module):
    """Places, ranges and diagonals changed in place while positions are in front."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.outer, self.change = nn.Linear(4, 3), nn.Linear(3, 2), change

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        return self.outer(self.change(torch.stack([h, h.sin(), h.exp()])).sum(0))


def written(statement):
    """A function that carries this out on w [3, N, 3] and returns w."""
    def change(w):
        exec(statement, {"w": w})
        return w
    return change


MODELS = {
    "rnn": lambda: (Recurrent(nn.RNN), (3, 2)),
    "gru": lambda: (Recurrent(nn.GRU), (2, 2)),
    "time first": lambda: (TimeFirst(), (2, 2)),
    "encoder": lambda: (Encoder(), (3, 4)),
    "decoder": lambda: (Decoder(), (3, 4)),
    "widths": lambda: (Widths(), (3, 4)),
    "last valid": lambda: (LastValid(), (3, 2)),
    "merged": lambda: (Merged(), (3, 4)),
}


@few(1, "further places of the same axis")
@pytest.mark.parametrize("name", list(MODELS))
def test_against_brute_force(name):
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    model = model.double()
    X, y = torch.randn(3, *shape, dtype=torch.float64), torch.tensor([0, 1, 1])
    result = hbp.compile(model, quantities=["grad", "batch_grad", "diag_ggn", "diag_h"])(X, y)
    close(result.output, model(X).detach(), "output")
    agree(result, model, nn.CrossEntropyLoss(), [X], y)


@few(3, "other ways to write the same")
@pytest.mark.parametrize("statement", [
    "w[0].mul_(2)", "w[1, :, 1:] += 2 * w[0, :, :2]", "w[-1, :, 2] = 2 * w[0, :, 0]",
    "w[::2] = w[1].exp()", "w[1:].mul_(w[:2].clone())", "w[:, :, -1].square_()", "w.diagonal(0, 0, 2).mul_(3)",
])
def test_written_to(statement):
    torch.manual_seed(0)
    model = WrittenTo(written(statement)).double()
    X, y = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 1, 1])
    result = hbp.compile(model, quantities=["grad", "batch_grad", "diag_ggn", "diag_h"], verify=False)(X, y)
    close(result.output, model(X).detach(), "output")
    agree(result, model, nn.CrossEntropyLoss(), [X], y)


def test_any_batch_size():
    torch.manual_seed(0)
    model = Recurrent(nn.GRU).double()
    compiled = hbp.compile(model, quantities=["batch_grad"])
    for samples in (1, 4, 9):
        X, y = torch.randn(samples, 2, 2, dtype=torch.float64), torch.randint(0, 2, (samples,))
        result = compiled(X, y)
        for key, value in reference(model, nn.CrossEntropyLoss(), [X], y, "batch_grad").items():
            close(result.batch_grad[key], value, key)


class OverSamples(nn.Module):
    def __init__(self, mixing):
        super().__init__()
        self.mixing, self.inner = mixing, nn.Linear(3, 2)

    def forward(self, x):
        return self.mixing(self.inner(x).t()).t()


@pytest.mark.parametrize("mixing", [
    lambda h: torch.softmax(h, 1),
    lambda h: h - h.mean(1, keepdim=True),
    lambda h: h @ h.t() @ h,
    lambda h: h.cumsum(1),
    lambda h: h.flip(1),
], ids=["softmax", "mean", "matmul", "cumsum", "flip"])
def test_samples_that_mix_are_refused(mixing):
    with pytest.raises(hbp.UnsupportedOpError, match=r"samples? (axis|are)"):
        hbp.compile(OverSamples(mixing), quantities=["grad"])(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))


def test_samples_that_meet_are_named():
    def contrastive(o, y):
        return nn.functional.cross_entropy(o @ o.t(), y)

    with pytest.raises(hbp.UnsupportedOpError, match=r"each sample meets all others there.*\[N, N\].*backward\(\)"):
        hbp.compile(nn.Linear(3, 2), contrastive, ["grad"])(torch.randn(4, 3), torch.arange(4))


def partial_likelihood(o, y):
    """Cox's: each sample beside all that are still at risk, here all of the batch."""
    return o[:, 0].logsumexp(0) - o[:, 0].mean()


def test_a_loss_of_the_whole_batch_says_what_there_is_of_it():
    model, X, y = nn.Linear(3, 1).double(), torch.randn(4, 3, dtype=torch.float64), torch.zeros(4).double()
    with pytest.raises(hbp.UnsupportedOpError, match=r"is no sum of their shares.*loss\.backward\(\)"):
        hbp.compile(model, partial_likelihood, ["grad"])(X, y)

    def of_weight(weight):
        return partial_likelihood(X @ weight.t() + model.bias.detach(), y)

    expected = torch.autograd.functional.hessian(of_weight, model.weight.detach()).reshape(3, 3)
    for kind in ("hessian", "ggn"):  # the model is linear, so that both are one
        found = hbp.operator(model, partial_likelihood, (X, y), kind=kind, parameters=["weight"]).to_dense()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
