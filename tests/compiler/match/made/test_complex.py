"""Derivatives that go through complex values: what lies between real numbers and real numbers is one operation."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.made.complex_regions import in_pairs, regions, without_unread
from hbpcompiler.reference import reference, relative_error
from tests.selection import cases, few
from tests.stages import traced

QUANTITIES = ("grad", "batch_grad", "variance", "diag_ggn", "diag_h")
X, Y = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0])


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.layer, self.head, self.function = nn.Linear(4, 4), nn.Linear(4, 3), function
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, x):
        return self.head(self.function(self, self.layer(x)))


def check(model, x=X, loss=None, y=Y, quantities=QUANTITIES, tolerance=1e-9):
    loss = loss or nn.CrossEntropyLoss()
    result = hbp.compile(model, loss, quantities=quantities)(x, y)
    for quantity in quantities:
        for name, expected in reference(model, loss, (x,), y, quantity).items():
            assert relative_error(result[quantity][name], expected) < tolerance, f"{quantity} of {name}"
    return result


def rotary(model, h):
    """Positions as rotations, as in Llama."""
    turns = torch.polar(torch.ones(2, dtype=h.dtype), torch.tensor([0.3, 0.7], dtype=h.dtype))
    return torch.view_as_real(torch.view_as_complex(h.reshape(-1, 2, 2)) * turns).flatten(1)


def pairs(a, b):
    return torch.complex(a, b)


def modes(model, h):
    """A few of a spectrum's modes are mixed, all others are zero, as in Fourier neural operators."""
    spectrum = torch.fft.rfft(h, n=6)
    kept = torch.zeros_like(spectrum)
    kept[:, :2] = spectrum[:, :2] * spectrum[:, 1:3]
    kept[..., -1] = h[:, 0]  # a real number
    return torch.fft.irfft(kept, n=4)


def written_at_places(model, h):
    spectrum = torch.fft.fft(h).view(-1, 2, 2)
    kept = torch.zeros_like(spectrum)
    kept[:, :, [1, 0]] = spectrum * spectrum.conj().mT
    return kept.imag.flatten(1)


FUNCTIONS = {
    "modes": modes, "written at places": written_at_places,
    "fft": lambda model, h: h + torch.fft.fft(h).real,
    "rotary": rotary,
    "abs": lambda model, h: torch.cat([torch.fft.rfft(h).abs(), h[:, :1]], 1),
    "irfft": lambda model, h: torch.fft.irfft(torch.fft.rfft(h) * pairs(h.tanh(), h)[:, :3], n=4),
    "fft2": lambda model, h: torch.fft.fft2(h.reshape(-1, 2, 2)).imag.flatten(1) ** 2,
    "polar": lambda model, h: torch.polar(h.exp(), h).real + torch.polar(h.exp(), h).angle(),
    "conj": lambda model, h: (pairs(h, h.flip(1)) * pairs(h, h**2).conj()).imag,
    "conj beside a square": lambda model, h: pairs(h, h.tanh()).conj().angle() + (pairs(h, h.flip(1)) ** 2).imag,
    "square of both parts": lambda model, h: (lambda z: (z * z).imag)(torch.complex(h.tanh(), model.layer(h))),
    "power": lambda model, h: (pairs(h, h.tanh()) ** 2).imag,
    "product": lambda model, h: (pairs(h, h).reshape(-1, 2, 2) @ pairs(h, h**2).reshape(-1, 2, 2)).imag.flatten(1),
    "where": lambda model, h: torch.where(h > 0, pairs(h, h), pairs(-h, h * h)).abs(),
    "eigenvalues": lambda model, h: torch.linalg.eigvals(h.reshape(-1, 2, 2)).abs().repeat(1, 2),
}


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", cases(FUNCTIONS, {"rotary", "abs", "conj", "power"}, "the same regions"))
def test_functions_by_way_of_complex_numbers(name):
    torch.manual_seed(0)
    check(Between(FUNCTIONS[name]).double())


@pytest.mark.parametrize("count", [1, 2])
def test_rotary_by_trained_angles(count):
    """Laid end to end with one angle, pairs stand at an odd place in memory."""

    def turned(model, h):
        turns = torch.polar(torch.ones(count, dtype=h.dtype), model.angles)
        return torch.view_as_real(torch.view_as_complex(h.reshape(-1, 2, 2)) * turns).flatten(1)

    torch.manual_seed(0)
    check(Between(turned, angles=torch.tensor([0.3, 0.7][:count])).double())


def test_parameters_in_pairs():
    """Weights of a spectrum, some made of others alone."""
    def function(model, h):
        weight = torch.view_as_complex(model.pairs) * torch.polar(model.sizes.exp(), model.sizes)
        return torch.fft.irfft(torch.fft.rfft(h) * weight[:3], n=4) + h * torch.fft.ifft(weight).real.tanh()

    torch.manual_seed(0)
    check(Between(function, pairs=torch.randn(4, 2), sizes=torch.randn(4)).double())


def test_parameters_written_into_the_spectra_of_all_samples():
    def function(model, h):
        spectrum = torch.fft.rfft(h)
        kept = torch.zeros_like(spectrum)
        kept[:, 0], kept[:, 1:] = torch.view_as_complex(model.pairs)[0], torch.view_as_complex(model.pairs)
        return torch.fft.irfft(kept * spectrum, n=4).tanh()

    torch.manual_seed(0)
    check(Between(function, pairs=torch.randn(2, 2)).double())


class Inputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, z):
        return self.layer((z * torch.exp(1j * self.layer(z.real))).real)


def test_complex_inputs():
    torch.manual_seed(0)
    check(Inputs().double(), torch.randn(4, 4, dtype=torch.complex128))
    with pytest.raises(hbp.InputError, match=r"X has dtype torch.complex64.*X.to\(torch.complex128\)"):
        hbp.compile(Inputs().double(), quantities=["grad"])(torch.randn(4, 4, dtype=torch.complex64), Y)


class Outputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return torch.fft.fft(self.layer(x)).conj()


def spread(output, y):
    return ((output.abs() ** 2)[:, :2].sum(1) + (output.real * y.unsqueeze(1)).sum(1)).mean()


@pytest.mark.filterwarnings("ignore::hbpcompiler.errors.IndefiniteCurvatureWarning")
def test_a_complex_output_is_a_pair_of_real_ones_to_its_loss():
    torch.manual_seed(0)
    model = Outputs().double()
    found = hbp.compile(model, spread, quantities=["grad", "diag_ggn", "diag_h"])(X, Y)
    weight = model.layer.weight
    (slope,) = torch.autograd.grad(spread(model(X), Y), weight, create_graph=True)
    second = torch.stack([torch.autograd.grad(entry, weight, retain_graph=True)[0].flatten()
                          for entry in slope.flatten()]).diagonal().view(4, 4)
    assert relative_error(found.grad["layer.weight"], slope.detach()) < 1e-12
    assert relative_error(found.diag_h["layer.weight"], second) < 1e-12
    output = torch.view_as_real(model(X).resolve_conj())
    hessian = torch.autograd.functional.hessian(
        lambda flat: spread(torch.view_as_complex(flat.view_as(output)), Y), output.detach().flatten())
    rows = torch.stack([torch.autograd.grad(entry, model.layer.weight, retain_graph=True)[0].flatten()
                        for entry in output.flatten()])
    expected = (rows.T @ hessian @ rows).diagonal().view(4, 4)
    assert relative_error(found.diag_ggn["layer.weight"], expected) < 1e-12
    assert found.output.is_complex()


def test_what_cannot_be_is_refused_by_name():
    mixing = Between(lambda model, h: pairs(h, h**2).cumsum(0).abs()).double()
    with pytest.raises(hbp.UnsupportedOpError, match=r"abs.* complex.* mixes the samples"):
        hbp.compile(mixing, quantities=["grad"])(X, Y)
    weights = Between(lambda model, h: (h * model.w).real, w=torch.randn(4, dtype=torch.complex64))
    with pytest.raises(hbp.CompileError, match=r"'w'[\s\S]*view_as_real"):
        hbp.compile(weights, quantities=["grad"])


def test_regions():
    graph = in_pairs(traced(Between(rotary), X.float(), Y).graph)
    (region,) = regions(graph)
    assert region.name == "view_as_complex_to_view_as_real"
    assert [value.dtype.is_complex for value in region.inputs.values()] == [False, True]
    assert [operation.short for operation in region.operations] == ["view_as_complex", "mul", "view_as_real"]
    assert len(without_unread(graph).operations) == len(graph.operations)  # all of it is read
