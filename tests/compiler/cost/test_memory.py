"""Predicted memory and the memory budget: what is predicted, what a budget changes, and what it refuses."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler import budget
from hbpcompiler.compiler.cost.meter import Meter
from hbpcompiler.reference import reference
from tests.agreement import close
from tests.selection import few, slow

MIB = 2**20


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
                         nn.Flatten(), nn.Linear(256, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch(samples):
    torch.manual_seed(1)
    return torch.randn(samples, 1, 8, 8, dtype=torch.float64), torch.randint(3, (samples,))


@slow("given budgets are tested")
def test_without_a_budget_calls_keep_to_what_is_free(monkeypatch):
    X, y = batch(24)
    model, limits = network(), hbp.Limits(unchecked_bytes=2**10, free_share=0.5)
    plenty = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y))
    room = int(0.6 * plenty.predicted_memory(24))
    monkeypatch.setattr(budget, "free_bytes", lambda device: 2 * room)
    tight = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y), limits=limits)
    assert tight.predicted_memory(24) <= room < plenty.predicted_memory(24)
    for name, value in plenty(X, y).diag_h.items():
        close(tight(X, y).diag_h[name], value, name)
    monkeypatch.setattr(budget, "free_bytes", lambda device: room // 8)  # somebody else has taken it since
    with pytest.raises(hbp.InputError, match=r"a batch of 24 needs about .* of memory that are free"):
        tight(X, y)


def test_the_meter_counts_what_runs():
    left, right = torch.empty(4, 5, 6, device="meta"), torch.empty(4, 6, 7, device="meta")
    with Meter() as meter:
        product = left @ right
        assert meter.held == product.numel() * 4
        view = product.flatten()
        del product
        assert meter.held == view.numel() * 4  # a view keeps its memory
        squared = view.square()
        del view
        assert meter.held == squared.numel() * 4
        squared.mul_(2)
    assert meter.peak == 2 * 4 * 5 * 7 * 4
    assert meter.counts.multiply_adds == meter.counts.batched == 4 * 5 * 6 * 7
    assert meter.counts.calls == 3
    assert meter.counts.cached == 4 * (120 + 168 + 140 + 2 * 140 + 2 * 140)


def test_a_convolution_copies_what_it_reads_and_then_what_it_makes():
    """Not both at once, as measured; its derivative in the input reads no input."""
    x, weight = torch.empty(8, 16, 10, 10, device="meta"), torch.empty(32, 16, 3, 3, device="meta")
    read, made, weights = 4 * x.numel(), 4 * 8 * 32 * 8 * 8, 4 * weight.numel()

    def peak(call):
        with Meter() as meter:
            call()
        return meter.peak

    def backward(*mask):
        return peak(lambda: torch.ops.aten.convolution_backward(
            torch.empty(8, 32, 8, 8, device="meta"), x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, mask))

    slope = made  # is as large as the output, and was made inside here too
    assert peak(lambda: torch.nn.functional.conv2d(x, weight)) == made + max(read + weights, made)
    assert backward(True, False, False) == slope + read + max(slope + weights, read)
    assert backward(False, True, False) == slope + weights + slope + read + weights
    images = x.contiguous(memory_format=torch.channels_last)
    assert peak(lambda: torch.nn.functional.conv2d(images, weight)) == made


@pytest.mark.parametrize("quantities", [["batch_grad"], ["diag_h"], ["variance", "kflr"]])
def test_the_prediction_is_what_a_call_holds(quantities):
    """The same count on real tensors, all rounds of all loops run."""
    X, y = batch(40)
    compiled = hbp.compile(network(), quantities=quantities, example_inputs=(X[:2], y[:2]))
    with torch.no_grad(), Meter() as meter:
        result = compiled.program(compiled.state, X, y)
    assert 1.0 <= compiled.predicted_memory(40) / meter.peak <= 1.2
    assert compiled.predicted_memory(80) > compiled.predicted_memory(40)
    assert result.loss > 0


def test_what_a_call_brings_counts():
    """Copies of what weights multiply, and any number of vectors; a budget is for these calls too."""
    model = nn.Sequential(nn.Linear(30, 20), nn.Sigmoid(), nn.Linear(20, 4)).double()
    X, y = torch.randn(40, 30, dtype=torch.float64), torch.randint(4, (40,))
    weights = torch.rand(40, dtype=torch.float64)
    compiled = hbp.compile(model, quantities=["kfac", "project_ggn"], example_inputs=(X[:2], y[:2]))
    peaks = {}
    for count in (1, 60):
        directions = {name: torch.randn(count, *p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
        for given in (None, weights):
            with torch.no_grad(), Meter() as meter:
                compiled.program(compiled.state, X, y, directions=directions, sample_weights=given)
            predicted = compiled.predicted_memory(40, sample_weights=given is not None, vectors=count)
            assert 1.0 <= predicted / meter.peak <= 1.1
            peaks[count, given is not None] = predicted
    assert peaks[1, False] < peaks[1, True]
    assert compiled.predicted_memory(40) == compiled.predicted_memory(40, vectors=hbp.Limits().typical_vectors)
    tight = hbp.compile(model, quantities=["kfac", "project_ggn"], memory_budget=int(1.1 * peaks[1, True]))
    with pytest.raises(hbp.CompileError, match="is too small: a batch of 40 needs"):
        tight(X, y, directions=directions)
    few = {name: direction[:1] for name, direction in directions.items()}
    tight(X, y, directions=few, sample_weights=weights)
    with pytest.raises(hbp.InputError, match="a batch of 40 needs about"):
        tight(X, y, directions=directions)


def test_per_sample_gradients_need_the_memory_of_their_result():
    model = nn.Linear(1000, 1000)
    compiled = hbp.compile(model, nn.MSELoss(), ["batch_grad"],
                           example_inputs=(torch.zeros(2, 1000), torch.zeros(2, 1000)))
    assert 32 * 4_000_000 <= compiled.predicted_memory(32) <= 1.3 * 32 * 4_000_000


@few(1, "further cases of one kind")
@pytest.mark.parametrize("quantities", [["diag_h"], ["diag_h_split", "kflr"], pytest.param(
    ["diag_ggn", "variance"], marks=slow("the same chunks"))])
def test_a_budget_is_kept_and_changes_no_number(quantities):
    X, y = batch(24)
    model = network()
    free = hbp.compile(model, quantities=quantities, example_inputs=(X, y))
    budget = int(0.6 * free.predicted_memory(24))
    tight = hbp.compile(model, quantities=quantities, example_inputs=(X, y), memory_budget=budget)
    assert tight.predicted_memory(24) <= budget
    assert tight.code != free.code
    with torch.no_grad(), Meter() as meter:
        tight.program(tight.state, X, y)
    assert meter.peak <= budget
    ours, theirs = tight(X, y), free(X, y)
    for name in quantities:
        for key, value in ours[name].items():
            other = theirs[name][key]
            pairs = [(value, other)] if torch.is_tensor(value) else list(zip(value, other, strict=True))
            assert all((number is None) == (same is None) for number, same in pairs)
            for number, same in pairs:
                if number is not None:
                    close(number, same, f"{name} {key}")


@slow("tests/compiler/plan has each kind of chunk")
def test_the_smallest_chunks_are_exact():
    X, y = batch(3)
    model = network()
    least = None
    whole = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y)).predicted_memory(3)
    for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        try:
            least = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y), memory_budget=int(share * whole))
        except hbp.CompileError:
            break
    assert least is not None
    assert "for first" in least.code
    for name, value in reference(model, nn.CrossEntropyLoss(), [X], y, "diag_h").items():
        close(least(X, y).diag_h[name], value, name)


class Branching(nn.Module):
    """Residual columns of all blocks meet where branches join."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12), nn.Sigmoid()) for _ in range(4))
        self.double()

    def forward(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h).mean(1)


@slow("a large program in small chunks")
def test_columns_of_several_branches_are_not_laid_side_by_side_where_memory_is_short():
    model, X, y = Branching(), torch.randn(2, 5, 6, dtype=torch.float64), torch.tensor([0, 2])
    whole = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y)).predicted_memory(2)
    tight = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y), memory_budget=whole // 8)
    assert tight.predicted_memory(2) <= whole // 8
    for name, value in reference(model, nn.CrossEntropyLoss(), [X], y, "diag_h").items():
        close(tight(X, y).diag_h[name], value, name)


def test_a_budget_that_cannot_be_met_is_refused_at_compile_time():
    X, y = batch(64)
    with pytest.raises(hbp.CompileError, match=r"memory_budget=1000 .*batch of 64 needs about [\d.]+ KiB") as error:
        hbp.compile(network(), quantities=["grad"], example_inputs=(X, y), memory_budget=1000)
    assert isinstance(error.value, ValueError)
    assert "Not even one sample fits" in str(error.value)
    with pytest.raises(hbp.CompileError, match=r"Batches of up to \d+ fit"):
        hbp.compile(network(), quantities=["batch_grad"], example_inputs=(X, y), memory_budget="512KiB")


def test_a_batch_beyond_the_budget_is_refused_before_anything_runs():
    X, y = batch(200)
    compiled = hbp.compile(network(), quantities=["batch_grad"], example_inputs=(X[:8], y[:8]), memory_budget=MIB)
    with pytest.raises(hbp.InputError, match=r"a batch of 200 needs about .*1.0 MiB.*up to (\d+) fit") as error:
        compiled(X, y)
    fits = int(str(error.value).split("up to ")[1].split()[0])
    assert 8 <= fits < 200
    compiled(X[:fits], y[:fits])
    with pytest.raises(hbp.InputError):
        compiled(X[: fits + 1], y[: fits + 1])


@slow("a second or more; shorter ones of its kind stay")
def test_loops_over_axes_and_samples_are_counted_whole():
    """A budget makes the file run on meta tensors: patches of three axes, and what is made sample by sample."""

    def scaled(x):
        return torch.linalg.inv(x.flatten(1).unsqueeze(-1) @ x.flatten(1).unsqueeze(1) + torch.eye(8).double())

    class Volumes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv3d(1, 2, (1, 2, 2)), nn.Linear(8, 2)

        def forward(self, x):
            return self.linear(scaled(torch.tanh(self.conv(x)))).flatten(1)

    torch.manual_seed(0)
    model, X, y = Volumes().double(), torch.randn(3, 1, 4, 2, 2, dtype=torch.float64), torch.randint(16, (3,))
    compiled = hbp.compile(model, quantities=["grad", "batch_l2"], memory_budget="1GB")
    result = compiled(X, y)
    assert compiled.predicted_memory(30) > compiled.predicted_memory(3) > 0
    for quantity in ("grad", "batch_l2"):
        for name, value in reference(model, nn.CrossEntropyLoss(), (X,), y, quantity).items():
            close(result[quantity][name], value, name)


def test_a_size_at_which_a_kernel_divides_by_zero():
    """The estimate ends there without a word, and the call says what is wrong."""
    model = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 4))
    compiled = hbp.compile(model, nn.MSELoss(), quantities=["clipped_grad"])
    compiled(torch.randn(4, 3), torch.randn(4, 4), max_norm=0.5)
    with pytest.raises(hbp.ProofError, match="Expected more than 1 value per channel"):
        compiled(torch.randn(1, 3), torch.randn(1, 4), max_norm=0.5)
