"""Programs that draw by sample: each sample's columns are the same in any batch, in loops and scripts too."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.by_sample import by_sample, draws_of
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.draws import signs_of_samples
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.limits import Limits
from tests.selection import few

SAMPLES = 6


class Noisy(nn.Module):
    """Draws of every kind, of which one belongs to no sample."""

    def __init__(self, shared):
        super().__init__()
        self.shared = shared
        self.first = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Dropout1d(0.5), nn.Tanh(), nn.Dropout(0.2),
                                   nn.AlphaDropout(0.2))
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))

    def forward(self, x):
        scale = torch.rand(1, dtype=x.dtype) if self.shared else 1.0
        return self.last(self.first(x) * scale)


class Shaped(nn.Module):
    """Draws by a shape, in another dtype than the model's too."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.first(x.flatten(1)) + torch.randn(x.shape[0], 4, dtype=x.dtype)
        h = h * torch.rand(h.shape).to(h.dtype) + torch.randn_like(h) * torch.rand_like(h)
        h = h + torch.empty_like(h).normal_(1.0, 0.1) + torch.empty_like(h).uniform_(-1, 1)
        h = h + torch.normal(0.5, 0.1, h.shape, dtype=h.dtype) * torch.randint(0, 3, (h.shape[0], 1))
        h = h + torch.normal(torch.zeros_like(h), torch.ones_like(h)) + torch.poisson(h.detach().exp())
        h = h + torch.empty(h.shape[0], 4, dtype=h.dtype).exponential_(2.0)
        h = h + torch.multinomial(h.detach().softmax(1), 1)
        return self.last(nn.functional.gumbel_softmax(h))


class Tagger(nn.Module):
    """[N, T] -> [N, classes, T]: samples and positions in one axis where labels are drawn."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(7, 4), nn.Dropout(0.3), nn.Linear(4, 3))

    def forward(self, x):
        return self.layers(x).transpose(1, 2)


def numbers(*shape):
    return torch.rand(SAMPLES, *shape, dtype=torch.float64)


def labels(*shape):
    return torch.randint(3, (SAMPLES, *shape))


def setting(name):
    torch.manual_seed(0)
    if name == "sequences":
        return Tagger(), nn.CrossEntropyLoss(), torch.randint(7, (SAMPLES, 5)), labels(5), {}
    if name == "shapes":
        return Shaped(), nn.CrossEntropyLoss(), numbers(2, 4), labels(), {"backend": "torchscript"}
    loss, y, options = {
        "labels": (nn.CrossEntropyLoss(), labels(), {"mc_samples": 2}),
        "normal": (nn.MSELoss(), numbers(3), {"backend": "torchscript"}),
        "counts": (nn.PoissonNLLLoss(reduction="sum"), numbers(3).round(), {"backend": "torchscript"}),
        "bits": (nn.BCEWithLogitsLoss(), numbers(3).round(), {}),
        "signs": (nn.HuberLoss(), numbers(3), {}),
        "loops": (nn.MSELoss(), numbers(3), {
            "limits": Limits(few_columns=0, all_columns_bytes=0, all_columns_chunk_bytes=1500)}),
    }[name]
    if name == "loops":  # residuals are drawn for on their way, where all columns go in chunks of samples
        layers = [nn.Flatten(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 3)]
        return nn.Sequential(*layers), loss, numbers(2, 4), y, options
    return Noisy(shared=False), loss, numbers(2, 4), y, options


NAMES = ["grad", "diag_ggn_mc", "diag_h_mc", "diag_h_mc_all", "kfac"]


@few(1, "other networks")
@pytest.mark.parametrize("name", ["labels", "normal", "counts", "bits", "signs", "loops", "sequences",
                                  "shapes"])
def test_parts_of_a_batch_add_up_to_the_whole(name):
    model, loss, X, y, options = setting(name)
    compiled = hbp.compile(model.double(), loss, NAMES, **options)
    keys = torch.randint(-2**62, 2**62, (SAMPLES,))

    def drawn(rows):
        return compiled._drawn_by_sample(lambda batch: keys[rows], (X[rows], y[rows]), {})

    whole = drawn(torch.arange(SAMPLES))
    parts = [drawn(torch.tensor(rows)) for rows in ([0, 3], [4], [2, 1, 5])]
    shares = [2 / 6, 1 / 6, 3 / 6] if loss.reduction == "mean" else [1.0, 1.0, 1.0]
    for quantity in NAMES:
        for parameter, value in whole[quantity].items():
            of = [part[quantity][parameter] for part in parts]
            if quantity == "kfac":
                value, of = value.B, [part.B for part in of]
            added = sum(share * part for share, part in zip(shares, of, strict=True))
            torch.testing.assert_close(added, value, rtol=1e-10, atol=1e-13)
    built = compiled._current()
    assert built.draws
    assert built.by_sample[1] == []
    check_program(by_sample(built.draft.graph)[0], Level.FINAL)
    again = compiled(X, y).kfac  # the program itself draws as before
    assert not torch.equal(next(iter(again.values())).B, next(iter(whole.kfac.values())).B)


def test_random_signs_in_loops_take_the_keys_of_their_chunk():
    model, loss, X, y, options = setting("loops")
    compiled = hbp.compile(model.double(), loss, ["diag_h_mc"], example_inputs=(X, y), **options)
    graph = by_sample(compiled._current().draft.graph)[0]
    loops = [node for node in graph.nodes if isinstance(node.target, Loop)]
    inside = [own for node in loops for own in node.target.body.nodes if own.target is signs_of_samples]
    assert inside
    assert max(node.target.chunk for node in loops) > 1
    assert {meta.shape(own.args[0]) for own in inside} == {("n",)}
    assert not draws_of(graph)


def test_what_belongs_to_no_sample_is_left_as_it_is():
    torch.manual_seed(0)
    compiled = hbp.compile(Noisy(shared=True).double(), None, ["grad"])
    compiled._prepare(batch_of((numbers(2, 4), labels())))
    assert compiled._current().by_sample[1] == ["rand"]


def test_a_program_without_draws_asks_for_no_keys():
    torch.manual_seed(0)
    compiled = hbp.compile(nn.Linear(3, 3).double(), None, ["grad"])
    X, y = numbers(3), labels()
    own = compiled._drawn_by_sample(lambda batch: 1 / 0, (X, y), {})
    assert torch.equal(own.grad["weight"], compiled(X, y).grad["weight"])
    with pytest.raises(hbp.InputError, match="draw_keys: there is none of this name"):
        compiled(X, y, draw_keys=torch.zeros(SAMPLES))
