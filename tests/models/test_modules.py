"""Modules traced through an equivalent forward, models of several inputs, and sequence outputs."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.agreement import agree
from tests.selection import few

EXACT = ["grad", "batch_grad", "variance", "diag_ggn"]


def check(model, inputs, y, quantities, loss=None):
    loss = loss or nn.CrossEntropyLoss()
    result = hbp.compile(model, loss, quantities)(*inputs, y)
    agree(result, model, loss, inputs, y, quantities)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class LastStep(nn.Module):
    def __init__(self, recurrent, width):
        super().__init__()
        self.recurrent, self.head = recurrent, nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


class FromState(nn.Module):
    """Starts from an encoded first step and from trained or zero memories, and reads the last states too."""

    def __init__(self, recurrent, trained):
        super().__init__()
        layers, width = recurrent.num_layers * (2 if recurrent.bidirectional else 1), recurrent.hidden_size
        seen = recurrent.proj_size or width
        self.recurrent, self.trained, self.layers = recurrent, trained, layers
        self.encoder = nn.Linear(3, layers * seen)
        self.memory = nn.Parameter(torch.randn(layers, 1, width))
        self.head = nn.Linear(layers * seen + seen * (2 if recurrent.bidirectional else 1), 2)

    def forward(self, x):
        hidden = torch.tanh(self.encoder(x[:, 0])).view(len(x), self.layers, -1).transpose(0, 1).contiguous()
        zeros = torch.zeros(self.layers, x.size(0), self.memory.shape[2], dtype=x.dtype)
        memory = self.memory.expand(-1, x.size(0), -1).contiguous() if self.trained else zeros + 0 * self.memory
        several = isinstance(self.recurrent, nn.LSTM)
        time_first = x if self.recurrent.batch_first else x.transpose(0, 1)
        output, last = self.recurrent(time_first, (hidden, memory) if several else hidden * memory)
        steps = output if self.recurrent.batch_first else output.transpose(0, 1)
        ended = (last[0] if several else last).transpose(0, 1).flatten(1)
        return self.head(torch.cat([ended, steps[:, -1]], 1))


RECURRENT = {
    "lstm from encoder and trained memory": lambda: FromState(nn.LSTM(3, 2, batch_first=True), True),
    "projected lstm from zero memory": lambda: FromState(nn.LSTM(3, 3, proj_size=2), False),
    "gru both ways from trained state": lambda: FromState(nn.GRU(3, 2, bidirectional=True), True),
    "rnn": lambda: LastStep(nn.RNN(3, 2, batch_first=True), 2),
    "relu both ways": lambda: LastStep(nn.RNN(3, 2, batch_first=True, nonlinearity="relu", bidirectional=True), 4),
    "gru": lambda: LastStep(nn.GRU(3, 2, batch_first=True), 2),
    "lstm of two layers": lambda: LastStep(nn.LSTM(3, 2, 2, batch_first=True), 2),
    "lstm without bias": lambda: LastStep(nn.LSTM(3, 2, batch_first=True, bias=False), 2),
}


@few(1, "tests/rules/test_recurrent.py has every layer")
@pytest.mark.parametrize("name", list(RECURRENT))
def test_recurrent(name):
    torch.manual_seed(0)
    model = RECURRENT[name]().double()
    check(model, [draw(2, 3, 3)], torch.tensor([0, 1]), [*EXACT, "diag_h"])
    assert "forward" not in vars(model.recurrent), "the module has its own forward again"


@few(1, "further cases of one kind")
@pytest.mark.parametrize("options", [{}, {"activation": "gelu", "norm_first": True}])
def test_transformer_encoder_layer(options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True, **options)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 2)).double().eval()
    check(model, [draw(2, 3, 4)], torch.tensor([0, 1]), [*EXACT, "diag_h"])


def test_masked_attention():
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
            return self.head(self.attention(x, x, x, attn_mask=mask)[0].mean(1))

    torch.manual_seed(0)
    check(Causal().double(), [draw(2, 3, 4)], torch.tensor([0, 1]), [*EXACT, "diag_h"])


@few(1, "further cases of one kind")
@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True},
                                     {"add_bias_kv": True, "add_zero_attn": True, "kdim": 3, "vdim": 3}])
def test_attention_to_a_position_of_its_own(options):
    """A trained one, or zeros, after the sequence's: no mask hides it."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True, **options), nn.Linear(5, 2)

        def forward(self, x):
            seen = x[..., : self.attention.kdim].tanh()
            hidden = torch.ones(3, 3, dtype=torch.bool).triu(1)
            empty = torch.tensor([[True, False, False]]).expand(len(x), 3)
            mixed, weights = self.attention(x, seen, seen, attn_mask=hidden, key_padding_mask=empty)
            return self.head(torch.cat([mixed, weights[..., -1:]], 2).mean(1))

    torch.manual_seed(0)
    model = Reader().double()
    for bias in (model.attention.bias_k, model.attention.bias_v):
        if bias is not None:
            nn.init.normal_(bias)
    check(model, [draw(2, 3, 4)], torch.tensor([0, 1]), [*EXACT, "diag_h"])


def test_attention_to_nothing_is_zero():
    """Rows of which all is masked: zeros, in torch's attention and in ours, and no derivative."""

    class Nothing(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            mask = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
            seen = self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
            scores = seen @ seen.transpose(1, 2)
            return self.head((torch._safe_softmax(scores.masked_fill(mask, float("-inf")), -1) @ seen).mean(1))

    torch.manual_seed(0)
    check(Nothing().double(), [draw(2, 3, 4)], torch.tensor([0, 1]), [*EXACT, "diag_h"])


def test_a_forgotten_batch_first():
    class Forgotten(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, x):
            return self.attention(x, x, x)[0][:, 0]

    with pytest.raises(hbp.UnsupportedOpError, match="MultiheadAttention has an argument batch_first, it may"):
        hbp.compile(Forgotten(), quantities=["grad"])(torch.randn(3, 5, 4), torch.tensor([0, 1, 1]))


def test_two_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, a, b):
            return self.head(torch.tanh(self.left(a)) * torch.sigmoid(self.right(b)))

    torch.manual_seed(0)
    check(Two().double(), [draw(3, 3), draw(3, 2)], torch.tensor([0, 1, 1]), [*EXACT, "diag_h"])


def test_a_class_for_each_token():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.inner(x))).transpose(1, 2)  # [N, classes, T], as the loss wants it

    torch.manual_seed(0)
    y = torch.tensor([[0, 2, -100, 1], [1, -100, -100, 0]])
    check(Tagger().double(), [draw(2, 4, 3)], y, [*EXACT, "diag_h"])


def test_a_weight_for_each_sample():
    """Weights per sample come in with the target."""
    class Weighted(nn.Module):
        def forward(self, output, target):
            return (((output - target[:, 1:]) ** 2).sum(1) * target[:, 0]).mean()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    y = torch.cat([torch.tensor([[0.5], [2.0], [1.0]], dtype=torch.float64), draw(3, 2)], 1)
    check(model, [draw(3, 3)], y, [*EXACT, "diag_h"], Weighted())
