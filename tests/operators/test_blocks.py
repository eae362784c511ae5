"""Blocks of vectors: two compiled programs multiply as torch's passes do; the choice between them is measured."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.errors import OptionError
from hbpcompiler.operators.blocks import PASSES, PROGRAMS, Trial
from tests.models.test_random_graphs import graphs
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.operators.dense import dense, double, forward, same
from tests.operators.test_matrices import Custom, Tied, two_losses
from tests.selection import few, slow
from tests.transformers_models import cross_entropy, needed, tied_gpt2

MODEL = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
BATCH = double(7, 3), torch.tensor([0, 1, 2, 2, 0, 1, 2])


def check(model, loss, inputs, y, names="*", chunk=7):
    """The whole matrix by programs, in blocks that do not divide it."""
    batch = (inputs, y) if isinstance(inputs, dict) else (*inputs, y)
    operator = hbp.operator(model, loss, batch, blocks=PROGRAMS, parameters=names, chunk=chunk)
    expected = dense(forward(operator, model, loss, inputs, y), "ggn", None if names == "*" else names)
    many = torch.randn(len(expected), 2 * chunk + 3, dtype=torch.float64)
    same(operator @ many, expected @ many)
    same(operator @ many[:, 0], expected @ many[:, 0])


@slow("random networks; fixed ones are beside it")
@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())))
def test_random_chains(setting):
    """Of all losses, both reductions, frozen parameters, one sample or several, with dropout in training mode."""
    model, loss, X, y = setting
    check(model, loss, (X,), y)


@given(graphs())
def test_random_graphs(setting):
    model, X, y = setting
    check(model, nn.CrossEntropyLoss(), (X, *model.inputs()), y)


def test_tied_and_unused_parameters_and_several_outputs():
    """Two losses, one of which has no rule of its own; parameters that do not reach the loss have rows of zeros."""
    model, inputs, y = Tied().double(), (double(4, 3), double(4, 3)), torch.tensor([0, 2, 1, 1])
    check(model, two_losses, inputs, y)
    check(model, two_losses, inputs, y, ["idle", "scale"])


@slow("a transformer")
@needed
def test_a_tied_transformer_with_inputs_by_name():
    """GPT-2's tokens, some of which are ignored."""
    model, x, y = tied_gpt2()
    check(model.double().eval(), cross_entropy, x, y, ["transformer.wte.weight", "transformer.ln_f.weight"])


@few(1, "further cases of one kind")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_one_sample_and_unequal_batches_of_a_loader(reduction):
    """Class weights; the last batch has one sample."""
    X, y = BATCH
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 0.2]).double(), reduction=reduction)
    loader = DataLoader(TensorDataset(X, y), batch_size=3)
    found = hbp.operator(MODEL, loss, loader, blocks=PROGRAMS).to_dense()
    same(found, hbp.operator(MODEL, loss, BATCH, blocks=PASSES).to_dense())
    check(MODEL, loss, (X[:1],), y[:1])


def test_dropout_is_one_matrix():
    """Both programs, and the passes, meet the same masks."""
    model = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    state = torch.get_rng_state()
    found = {way: hbp.operator(model, nn.CrossEntropyLoss(), BATCH, blocks=way, seed=3).to_dense()
             for way in (PROGRAMS, PASSES)}
    same(found[PROGRAMS], found[PASSES])
    assert torch.equal(torch.get_rng_state(), state)


def impatient(model=MODEL, loss=None, batch=BATCH, **options):
    operator = hbp.operator(model, loss or nn.CrossEntropyLoss(), batch, **options)
    operator.blocks.patience = 0.0
    return operator


def test_the_faster_way_is_kept_and_shown():
    operator = impatient(chunk=5)
    exact = hbp.operator(MODEL, nn.CrossEntropyLoss(), BATCH, blocks=PASSES).to_dense()
    assert "tried when these have taken" in str(operator.blocks)
    operator @ double(31)
    assert not operator.blocks.trials  # a vector alone is no block
    same(operator.to_dense(), exact)
    (trial,) = operator.blocks.trials
    assert trial.vectors == 5
    assert operator.blocks.way(5) == trial.way
    assert "measured: " in str(operator.blocks)
    for faster, passes, programs in ((PASSES, 1.0, 2.0), (PROGRAMS, 2.0, 1.0)):
        operator.blocks.trials[:] = [Trial(5, passes, programs)]
        assert operator.blocks.way(5) == faster
        assert operator.blocks.way(4) == (PASSES if faster == PASSES else None)
        assert operator.blocks.way(6) == (None if faster == PASSES else PROGRAMS)
        used = []
        operator.blocks.programs.times = lambda *given, used=used: used.append(1) or type(
            operator.blocks.programs).times(operator.blocks.programs, *given)
        same(operator.to_dense(), exact)
        assert bool(used) == (faster == PROGRAMS)


def test_programs_wait_until_they_may_pay():
    operator = hbp.operator(MODEL, nn.CrossEntropyLoss(), BATCH)
    operator.to_dense()
    assert not operator.blocks.trials
    assert operator.blocks.way(16) is None


class Words(nn.Module):
    """Many outputs a sample."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x):
        return x.repeat(1, 10) * self.scale.sum()


def test_where_programs_cannot_be_had_it_is_said():
    for operator, note in (
        (impatient(Custom(2).double(), batch=(double(3, 2), torch.tensor([0, 1, 1]))), "two programs cannot be had"),
        (impatient(Words(), batch=(double(3, 2), torch.tensor([0, 1, 1]))), "the model has 20 outputs a sample"),
        (impatient(kind="hessian"), "only the GGN has programs"),
    ):  # fmt: skip
        one = operator.to_dense()
        assert note in str(operator.blocks)
        assert operator.blocks.way(16) == PASSES
        same(operator.to_dense(), one)


def test_ways_that_disagree_are_an_error():
    operator = impatient()
    times = operator.blocks.programs.times
    operator.blocks.programs.times = lambda *given: [2 * part for part in times(*given)]
    with pytest.raises(hbp.ProofError, match=r"differ by .*blocks='passes'"):
        operator.to_dense()


def test_choices_that_cannot_be():
    with pytest.raises(OptionError, match="choose one of auto, passes, programs"):
        hbp.operator(MODEL, nn.CrossEntropyLoss(), BATCH, blocks="fast")
    with pytest.raises(OptionError, match="is for kind 'ggn'"):
        hbp.operator(MODEL, nn.CrossEntropyLoss(), BATCH, "hessian", blocks=PROGRAMS)
    with pytest.raises(hbp.HbpError, match="not known to be"):
        hbp.operator(MODEL, lambda output, y: torch.sin(3 * output).mean(), BATCH, blocks=PROGRAMS).to_dense()


def test_a_model_that_programs_refuse_later_takes_passes():
    """Batch norm that goes to training mode after the trial."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double().eval()
    operator = hbp.operator(model, nn.CrossEntropyLoss(), BATCH)
    operator.blocks.trials.append(Trial(2, 2.0, 1.0))
    exact = dense(forward(operator, model, nn.CrossEntropyLoss(), BATCH[:1], BATCH[1]), "ggn")
    same(operator.to_dense(), exact)
    model.train()
    same(operator.to_dense(), hbp.operator(model, nn.CrossEntropyLoss(), BATCH, blocks=PASSES).to_dense())
    model.eval()
    same(operator.to_dense(), exact)


def test_a_parameter_that_is_frozen_later():
    """Programs left out what it was multiplied with."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    operators = {way: hbp.operator(model, nn.CrossEntropyLoss(), BATCH, blocks=way) for way in ("auto", PROGRAMS)}
    operators["auto"].blocks.trials.append(Trial(2, 2.0, 1.0))
    exact = {way: operator.to_dense() for way, operator in operators.items()}
    model[0].weight.requires_grad_(False)
    same(operators["auto"].to_dense(), exact["auto"])
    with pytest.raises(hbp.CompileError, match=r"0\.weight: frozen after the operator was made"):
        operators[PROGRAMS].to_dense()
    model[0].weight.requires_grad_(True)
    same(operators[PROGRAMS].to_dense(), exact[PROGRAMS])


@slow("threads")
def test_threads_wait_for_each_other():
    """Passes put values in the place of the model's parameters, which another thread's program found."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.4), nn.Linear(4, 3)).double()
    operator = impatient(model)
    exact = hbp.operator(model, nn.CrossEntropyLoss(), BATCH, blocks=PASSES).to_dense()
    many = [double(len(exact), count) for count in (1, 2, 3, 5, 8, 17)]
    with ThreadPoolExecutor(len(many)) as pool:
        for vectors, product in zip(many, pool.map(operator.__matmul__, many), strict=True):
            same(product, exact @ vectors)


class OtherInPrograms(nn.Module):
    """Draws otherwise in eager passes than in the trace that programs are made of, as attention may on a GPU."""

    def forward(self, x):
        mask = torch.rand(2, *x.shape, dtype=x.dtype, device=x.device)
        return x * mask[1 if torch.compiler.is_exporting() else 0].clamp(min=0.1)


@slow("several programs for one sentence")
def test_programs_that_draw_otherwise_than_passes():
    """They are left out; and refused at once where they are asked for."""
    model = nn.Sequential(nn.Linear(3, 4), OtherInPrograms(), nn.Tanh(), nn.Linear(4, 3)).double()
    operator = impatient(model)
    exact = hbp.operator(model, nn.CrossEntropyLoss(), BATCH, blocks=PASSES).to_dense()
    same(operator.to_dense(), exact)
    same(operator.to_dense(), exact)
    assert operator.blocks.trials == []
    with pytest.raises(hbp.HbpError):
        hbp.operator(model, nn.CrossEntropyLoss(), BATCH, blocks=PROGRAMS)
