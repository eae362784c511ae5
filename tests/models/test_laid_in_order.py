"""Operations that read memory in order: a program makes no copies that only put numbers in order, but for these."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference, relative_error
from tests.selection import few

D = torch.float64


@torch.library.custom_op("hbptests::sines_in_order", mutates_args=())
def sines_in_order(x: torch.Tensor) -> torch.Tensor:
    """As a kernel does that goes through memory, whatever the strides are."""
    memory = torch.empty(0, dtype=x.dtype, device=x.device)
    return memory.set_(x.untyped_storage(), x.storage_offset(), x.shape).sin()


@sines_in_order.register_fake
def _(x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def keep(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])


sines_in_order.register_autograd(lambda ctx, g: g * ctx.saved_tensors[0].cos(), setup_context=keep)


def turned(h):
    return h.reshape(-1, 2, 4).transpose(1, 2).contiguous()


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.head, self.function = nn.Linear(8, 8), nn.Linear(8, 2), function
        self.pairs = nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        return self.head(self.function(self, x, torch.tanh(self.layer(x))))


FUNCTIONS = {
    "pairs of a layer": lambda model, x, h: torch.view_as_complex(turned(h)).abs().repeat(1, 2),
    "pairs of the input": lambda model, x, h: h * torch.view_as_complex(turned(x)).abs().repeat(1, 2),
    "pairs of a parameter": lambda model, x, h: h * torch.view_as_complex(model.pairs.t().contiguous()).abs().repeat(2),
    "bits": lambda model, x, h: h * (x.t().contiguous().view(torch.int64) % 2).t(),
    "bits as they lie": lambda model, x, h: h * (x.view(torch.int64) % 2),
    "shorter bits": lambda model, x, h: h * (turned(x).view(torch.int32).flatten(1)[:, ::2] % 2),
    "places of the input": lambda model, x, h: h * turned(x).as_strided((len(x), 8), (8, 1)),
    "places of a parameter": lambda model, x, h: h * model.pairs.detach().t().contiguous().as_strided((8,), (1,)),
    "places of a changed input": lambda model, x, h: h * torch.as_strided_scatter(
        turned(x), x[:, :2], (len(x), 2), (8, 3), 1).flatten(1),
    "a kernel of the user's": lambda model, x, h: sines_in_order(turned(h)).flatten(1),
    "a kernel of the user's, of the input": lambda model, x, h: h * sines_in_order(turned(x)).flatten(1),
}


@few(3, "the same two lines")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_reads_memory_in_order(name):
    torch.manual_seed(0)
    model, x, y = Model(FUNCTIONS[name]).double(), torch.randn(3, 8, dtype=D), torch.tensor([0, 1, 1])
    quantities = ["grad", "batch_l2"] if "kernel" in name else ["grad", "batch_l2", "diag_h"]
    result = hbp.compile(model, quantities=quantities)(x, y)
    for quantity in quantities:
        for key, value in result[quantity].items():
            expected = reference(model, nn.CrossEntropyLoss(), [x], y, quantity)[key]
            assert relative_error(value, expected) < 1e-9, f"{quantity} of {key}"


@pytest.mark.parametrize("read", [lambda x: x.as_strided((len(x), 8), (8, 1)), lambda x: x.view(torch.int64).to(D),
                                  lambda x: torch.view_as_complex(x.view(-1, 4, 2)).abs().repeat(1, 2), sines_in_order])
def test_a_later_batch_that_lies_otherwise(read):
    """The copy that the model asks for makes none of the first batch."""
    torch.manual_seed(0)
    model = Model(lambda model, x, h: h * (read(x.contiguous()) % 7)).double()
    y = torch.tensor([0, 1, 1])
    compiled = hbp.compile(model, quantities=["grad"])
    compiled(torch.randn(3, 8, dtype=D), y)
    x = torch.randn(8, 3, dtype=D).t()
    for key, value in compiled(x, y).grad.items():
        expected = reference(model, nn.CrossEntropyLoss(), [x], y, "grad")[key]
        assert relative_error(value, expected) < 1e-9, key
