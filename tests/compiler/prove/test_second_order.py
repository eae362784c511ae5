"""What `compiled.verify` says of quantities beyond the gradient."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.prove import factors
from hbpcompiler.compiler.prove.by_autograd import COUNTS
from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import compared
from hbpcompiler.compiler.prove.double import double
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.entries import SMALL
from hbpcompiler.compiler.prove.factors import FACTORS
from hbpcompiler.compiler.prove.second_order import second_order
from hbpcompiler.compiler.prove.twin import twin_program
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.quantities import QUANTITIES, WITHOUT_VECTORS
from hbpcompiler.reference import Forward, reference


def chain():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3)).double()
    return model, torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])


def test_every_quantity_has_lines_and_agrees():
    model, X, y = chain()
    compiled = hbp.compile(model, quantities=WITHOUT_VECTORS)
    table = compiled.verify(X, y, max_norm=1.0)
    assert table.agrees, str(table)
    compared = {line.quantity.partition(".")[0] for line in table if line.compared}
    assert compared == {"loss", "output", *WITHOUT_VECTORS} - set(COUNTS)
    assert {line.quantity for line in table if not line.compared} == set(COUNTS)
    assert max(error for by_name in table.errors.values() for error in by_name.values()) < 1e-9
    assert {"kflr.A", "kflr.B", "kfac.A", "kflr_reduce.B", "kfac_reduce.A", "kfac_emp.B"} <= set(table.errors)
    assert {"kfac.B", "kfac_reduce.B", "block", "kfra.A", "kfra.B", "ekfac", "ekfac.A", "gram"} <= set(table.errors)
    assert compiled.verify(X, y, max_norm=1.0, sample_weights=torch.rand(6))  # of another dtype.agrees
    assert "its exact twin kflr_reduce" in str(table)
    assert set(FACTORS) <= set(QUANTITIES)


def test_wrong_blocks_and_twins_are_noticed(monkeypatch):
    model, X, y = chain()
    compiled = hbp.compile(model, quantities=["block", "kfac"], example_inputs=(X, y))
    candidate = replace(compiled._candidate(*compiled._program_used()),
                        block_diagonal=lambda name, kept, entries: torch.zeros(len(entries), dtype=torch.float64))
    monkeypatch.setitem(factors.TWINS, "kfac", "kfra")  # averaged over the batch: other factors in the first layer
    lines = second_order(candidate, batch_of((X[:2], y[:2])), Draws.now(X.device), 1e-16, random=False)
    wrong = {line.key for line in lines if not line.agrees}
    assert wrong == {*[("block", name) for name, _ in model.named_parameters()],
                     ("kfac.B", "0.weight"), ("kfac.B", "0.bias")}


def test_entries_by_double_backward():
    model, X, y = chain()
    run = Forward(model, nn.CrossEntropyLoss(), [X], y)

    def check(own):
        for name in ("0.weight", "2.bias"):
            hessian, ggn = run.hessian(name).diagonal(), run.ggn(name).diagonal()
            for entry in (0, 2):
                torch.testing.assert_close(own.hessian(name, entry), hessian[entry])
                torch.testing.assert_close(own.ggn(name, entry), ggn[entry])
            torch.testing.assert_close(own.shares([0], len(y))[name], run.batch_grad(name))
        return True

    assert double(model, nn.CrossEntropyLoss(), batch_of((X, y)), Draws.now(X.device), check)


def test_what_cannot_be_compared_says_why():
    """Curvature schemes, outputs with samples merged into positions, models whose backward has no derivative."""
    model, X, y = chain()
    table = hbp.compile(model, quantities=["diag_h"], curvature="pch_abs").verify(X, y)
    assert "nothing like curvature='pch_abs'" in str(table)
    merged = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 3), nn.Flatten(0, 1)).double()
    pairs = torch.arange(12).reshape(6, 2) % 3
    loss = hbp.compile(merged, lambda output, target: nn.functional.cross_entropy(output, target.flatten()),
                       ["variance", "diag_ggn"])
    table = loss.verify(X, pairs)
    assert "samples merged with positions" in str(table)
    assert "diag_ggn" in table.errors


def test_a_twin_is_the_program():
    model, X, y = chain()
    compiled = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y))
    candidate = compiled._candidate(*compiled._program_used())
    assert isinstance(candidate, Candidate)
    found = twin_program(candidate.matched, candidate.options, ("diag_h",))(candidate.state, X, y)["diag_h"]
    for name, expected in compiled(X, y).diag_h.items():
        torch.testing.assert_close(found[name], expected)
    lines = second_order(candidate, batch_of((X[:2], y[:2])), Draws.now(X.device), 1e-16, random=False)
    assert {line.parameter for line in lines} == set(found)
    assert any(f" of {found['0.weight'].numel()} entries" in line.how for line in lines)
    assert found["0.weight"].numel() > SMALL


class Contracted(nn.Module):
    """Two axes met at once, the parameter's in another order: torch makes a copy and a view of it."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(3, 2, 4) / 2), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(torch.einsum("npi,ipo->no", x, self.weight)))


def test_a_twin_copies_where_memory_lies_otherwise():
    torch.manual_seed(0)
    model, X, y = Contracted().double(), torch.randn(3, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 2])
    result = hbp.compile(model, quantities=["diag_ggn", "norms"])(X, y)
    for name, value in reference(model, nn.CrossEntropyLoss(), [X], y, "diag_ggn").items():
        torch.testing.assert_close(result.diag_ggn[name], value)


class Truncated(nn.Module):
    """A sigmoid times its whole part, which is zero: so is every derivative, exactly in torch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        inside = self.linear(x).sigmoid() * 0.8 + 0.1
        return inside * inside.trunc()


def test_rounding_beside_exact_zeros_is_no_fault():
    torch.manual_seed(0)
    model = Truncated().double()
    X, y = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    result = hbp.compile(model, nn.MSELoss(), ["grad", "diag_ggn", "diag_h"], verify="full")(X, y)
    assert all(value.abs().max() < 1e-16 for value in result.diag_h.values())
    wrong = compared({("diag_h", "w"): torch.tensor(1e-9)}, {("diag_h", "w"): torch.tensor(0.0)}, 1e-16, of_zero=1e-16)
    assert not wrong[0].agrees


SOME_LOSSES = {
    "mean": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "class weights": nn.CrossEntropyLoss(torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)),
}


@pytest.mark.parametrize("name", SOME_LOSSES)
def test_losses_of_other_samples_are_noticed(name):
    """One by one, where single samples make up the loss; otherwise by their mean, and the table says so."""
    model, X, y = chain()
    compiled = hbp.compile(model, SOME_LOSSES[name], ["batch_loss"], example_inputs=(X, y))
    candidate = compiled._candidate(*compiled._program_used())

    def lines_of(of_losses):
        def run(batch, **arguments):
            result = candidate.run(batch, **arguments)
            return SimpleNamespace(loss=result.loss, batch_loss=of_losses(result.batch_loss))

        found = second_order(replace(candidate, run=run), batch_of((X[:2], y[:2])), Draws.now(X.device), 1e-16, False)
        (line,) = found
        return line

    right = lines_of(lambda losses: losses)
    assert right.agrees
    assert right.how == ("two samples" if name != "class weights" else "their mean is the loss")
    assert lines_of(lambda losses: losses.flip(0)).agrees == (name == "class weights")
    assert not lines_of(lambda losses: losses * 1.001).agrees


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.gate, self.outer = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.outer(self.value(x) * self.gate(x).sigmoid())


def sure(gap, dtype):
    """A model whose outputs for the true class are so far above the others."""
    torch.manual_seed(0)
    model, X = Gated().to(dtype), torch.randn(4, 2, dtype=dtype)
    with torch.no_grad():
        scale = gap / float(model(X).diff().abs().min())
        model.outer.weight.mul_(scale)
        model.outer.bias.mul_(scale)
    return model, X, model(X).argmax(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [6.0, 14.0, 28.0, 34.0, 60.0, 300.0])
def test_a_saturated_loss_is_no_fault(gap, dtype):
    """Where p rounds to 1 autograd has 0 for p (1 - p), and the program has what the other p is."""
    model, X, y = sure(gap, dtype)
    for verify in (True, "full"):
        result = hbp.compile(model, quantities=["diag_h", "diag_ggn"], verify=verify)(X, y)
        assert all(value.isfinite().all() for value in result.diag_h.values())


def lines_off_by(times, model, loss, X, y):
    """Of a program whose diagonals are so many times what they should be."""
    compiled = hbp.compile(model, loss, ["diag_h", "diag_ggn"], example_inputs=(X, y), verify=False)
    candidate = compiled._candidate(*compiled._program_used())

    def run(batch, **arguments):
        result = candidate.run(batch, **arguments)
        return SimpleNamespace(loss=result.loss, **{
            quantity: {name: times * value for name, value in getattr(result, quantity).items()}
            for quantity in ("diag_h", "diag_ggn")})

    return second_order(replace(candidate, run=run), batch_of((X, y)), Draws.now(X.device),
                        torch.finfo(X.dtype).eps, random=False)


@pytest.mark.parametrize(("gap", "dtype"), [(6.0, torch.float32), (14.0, torch.float32), (17.0, torch.float32),
                                            (14.0, torch.float64), (20.0, torch.float64)])
def test_a_fault_is_seen_where_a_loss_is_saturated(gap, dtype):
    """In single precision by numbers in double precision; only what these lose is lost."""
    model, X, y = sure(gap, dtype)
    loss = nn.CrossEntropyLoss()
    assert all(line.agrees for line in lines_off_by(1.0, model, loss, X, y))
    wrong = [line for line in lines_off_by(1.2, model, loss, X, y) if not line.agrees]
    assert {line.parameter for line in wrong} == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fault_is_seen_where_a_loss_is_flat_and_not_saturated(dtype):
    """The curvature of a Poisson loss is exp(o), of which small outputs take no digits."""
    model, X, y = sure(1.0, dtype)
    with torch.no_grad():
        model.outer.bias.sub_(17.0)
    loss, y = nn.PoissonNLLLoss(), torch.zeros(4, 2, dtype=dtype)
    assert all(line.agrees for line in lines_off_by(1.0, model, loss, X, y))
    wrong = [line for line in lines_off_by(1.01, model, loss, X, y) if not line.agrees]
    assert {line.parameter for line in wrong} == {name for name, _ in model.named_parameters()}


class Attention(nn.Module):
    """Of one feature: softmax(a b^T) a."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.outer = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return self.outer((torch.softmax(a[:, :, None] * b[:, None, :], -1) @ a[:, :, None])[:, :, 0])


def test_eight_digits_are_enough():
    torch.manual_seed(4)
    model, X = Attention().double(), 30 * torch.randn(6, 3, dtype=torch.float64)
    y = torch.randint(2, (6,))
    result = hbp.compile(model, quantities=["diag_h"])(X, y)
    expected = reference(model, nn.CrossEntropyLoss(), [X], y, "diag_h")
    for name, value in expected.items():
        torch.testing.assert_close(result.diag_h[name], value, rtol=0, atol=1e-6 * float(value.abs().max()))
