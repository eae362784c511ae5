"""Influence scores against dense matrices and loops over samples, in float64, however data and work are cut."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.bridges.influence import Scores, scores, self_scores
from hbpcompiler.bridges.influence.queries import truncated
from hbpcompiler.bridges.influence.samples import Counted
from hbpcompiler.bridges.influence.shards import Rows, joined, together
from tests.bridges import torchrun_script
from tests.selection import few, slow

SAMPLES, TOKENS = 7, 5
ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("torchrun_script.py")


class Tokens(nn.Module):
    """A class for each token; one layer is used twice, and one matrix has its inputs first."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.twice = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.turned, self.unused = nn.Parameter(torch.randn(4, 3).double()), nn.Parameter(torch.ones(2).double())

    def forward(self, x):
        x = self.norm(torch.tanh(self.first(x)))
        return self.twice(torch.tanh(self.twice(x))) @ self.turned


def token_loss(output, target):
    """A mean over the tokens that count."""
    return F.cross_entropy(output.transpose(1, 2), target, ignore_index=-1)


def measurement(output, target):
    """A sum over queries: the summed logit of one class."""
    return output.sum(1).gather(1, target.unsqueeze(1)).sum()


def cut(X, y, *sizes):
    return list(zip(X.split(sizes), y.split(sizes), strict=True))


class Setting:
    """A model, training data and queries, curvature, and what scores are by dense matrices."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = Tokens().double()
        self.X, self.y = torch.randn(SAMPLES, TOKENS, 3).double(), torch.randint(3, (SAMPLES, TOKENS))
        self.y[0, :3] = self.y[4, 1:] = -1
        self.Q, self.t = torch.randn(4, TOKENS, 3).double(), torch.randint(3, (4,))
        with pytest.warns(hbp.UnusedParametersWarning):
            self.train = hbp.compile(self.model, token_loss, ["kflr"], example_inputs=(self.X, self.y))
        self.query = hbp.compile(self.model, measurement, ["grad"])
        total = hbp.accumulate(self.train, cut(self.X, self.y, 3, 4), progress=False)
        self.H = hbp.curvature(total.kflr)
        valid = (self.y >= 0).sum(1)
        self.losses = self.gradients(token_loss, self.X, self.y) * (valid * SAMPLES / valid.sum()).unsqueeze(1)
        self.measured = self.gradients(measurement, self.Q, self.t)

    def gradients(self, loss, X, y):
        """[N, P], sample by sample."""
        own = [dict(self.model.named_parameters())[name] for name in self.H.names]
        rows = [torch.autograd.grad(loss(self.model(X[n : n + 1]), y[n : n + 1]), own) for n in range(len(X))]
        return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])

    def solved(self, damping):
        """The queries' vectors, [Q, P]."""
        numbers = torch.cat([torch.full(shape, damping[name], dtype=torch.float64).flatten()
                             for name, shape in self.H.shapes.items()])
        return torch.linalg.solve(self.H.to_dense() + numbers.diag(), self.measured.T).T

    def scores(self, **options):
        data = options.pop("data", cut(self.X, self.y, 1, 4, 2))
        return scores(self.H, self.query, cut(self.Q, self.t, 3, 1), options.pop("train", self.train), data,
                      progress=False, **options)


@pytest.fixture(scope="module")
def setting():
    return Setting()


@slow("a second or more; shorter ones of its kind stay")
@pytest.mark.filterwarnings("ignore")
def test_scores_of_pairs_and_of_samples_themselves(setting):
    with pytest.warns(hbp.UnusedParametersWarning, match="'unused'"):
        found = setting.scores(per_parameter=True, at_once=2)
    assert found.left_out == ("unused",)
    for name in setting.H.names:
        assert found.damping[name] == pytest.approx(0.1 * float(setting.H[name].eigenvalues.mean()))
    vectors = setting.solved(found.damping)
    torch.testing.assert_close(found.values, vectors @ setting.losses.T, rtol=1e-9, atol=1e-11)
    first = 0
    for name, shape in setting.H.shapes.items():
        own = slice(first, first := first + torch.Size(shape).numel())
        torch.testing.assert_close(found.by_parameter[name], vectors[:, own] @ setting.losses[:, own].T, rtol=1e-9,
                                   atol=1e-11)

    setting.measured, kept = setting.losses, setting.measured
    right = (setting.solved(dict.fromkeys(setting.H.names, 0.3)) * setting.losses).sum(1)
    setting.measured = kept
    for per_parameter in (False, True):
        own = self_scores(setting.H, setting.train, cut(setting.X, setting.y, 2, 5), damping=0.3, progress=False,
                          per_parameter=per_parameter)
        torch.testing.assert_close(own.values, right, rtol=1e-9, atol=1e-11)
        assert list(own.by_parameter) == (list(setting.H.names) if per_parameter else [])


@pytest.mark.filterwarnings("ignore")
def test_low_rank_and_cuts(setting):
    """Matrices are cut to a rank as they lie over outputs and inputs; how the work is cut changes nothing."""
    limits = hbp.Limits(direction_bytes=1500)  # a query or two for each call
    train = hbp.compile(setting.model, token_loss, ["kflr"], limits=limits)
    vectors = setting.solved(setting.scores().damping)
    pieces = dict(zip(setting.H.names, vectors.split([torch.Size(shape).numel() for shape in setting.H.shapes.values()],
                                                     1), strict=True))
    for name in ("first.weight", "twice.weight", "turned"):
        own = pieces[name].reshape(4, *setting.H.shapes[name])
        left, values, right = torch.linalg.svd(own)
        pieces[name] = (left[:, :, 0] * values[:, :1]).unsqueeze(2).mul(right[:, None, 0]).flatten(1)
    right = torch.cat(list(pieces.values()), 1) @ setting.losses.T
    found = setting.scores(rank=1, train=train)
    torch.testing.assert_close(found.values, right, rtol=1e-9, atol=1e-11)
    assert (found.values - vectors @ setting.losses.T).abs().max() > 1e-3
    torch.testing.assert_close(setting.scores(rank=4, train=train, data=cut(setting.X, setting.y, 7)).values,
                               vectors @ setting.losses.T, rtol=1e-9, atol=1e-11)
    matrices = torch.randn(2, 3, 4, 5).double()
    left, right = truncated(matrices, 4)
    torch.testing.assert_close(left @ right, matrices)


class Interrupted(list):
    """A loader that somebody stops before its last batch."""

    def __iter__(self):
        yield from self[:-1]
        raise KeyboardInterrupt


class Passes:
    """A loader that gives something else each time."""

    def __init__(self, several):
        self.several = several

    def __iter__(self):
        return iter(next(self.several))


@pytest.mark.filterwarnings("ignore")
def test_a_folder_is_gone_on_from(setting, tmp_path, monkeypatch):
    data = cut(setting.X, setting.y, 2, 2, 3)
    whole = setting.scores(data=data, at_once=2).values
    with pytest.raises(KeyboardInterrupt):
        setting.scores(data=Interrupted(data), at_once=2, checkpoint=tmp_path, checkpoint_every=0)
    assert {path.name for path in tmp_path.iterdir()} == {"queries-0-0.batches-0-1.pt", "queries-0-0.batches-1-2.pt"}
    with pytest.raises(hbp.InputError, match="batch 1 of the training data is not the one"):
        setting.scores(data=[data[0], data[2], data[1]], at_once=2, checkpoint=tmp_path)
    found = setting.scores(data=data, at_once=2, checkpoint=tmp_path)
    assert torch.equal(found.values, whole)

    def nothing(*arguments, **more):
        raise AssertionError("all is in the folder")

    with monkeypatch.context() as patched:
        patched.setattr("hbpcompiler.bridges.influence.samples.Samples.result", nothing)
        assert torch.equal(setting.scores(data=data, at_once=2, checkpoint=tmp_path).values, whole)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(hbp.InputError) as caught:
        setting.scores(data=data, at_once=2, checkpoint=tmp_path, damping=1.0, rank=2)
    for what in ("damping: ", "rank: 2 here, None there"):
        assert what in str(caught.value)
    with pytest.raises(hbp.InputError, match="queries: "):
        scores(setting.H, setting.query, cut(setting.Q.flip(0), setting.t, 3, 1), setting.train, data, progress=False,
               at_once=2, checkpoint=tmp_path)
    path = next(iter(before))
    held = torch.load(path)
    held["values"][""] += 1
    torch.save(held, path)
    with pytest.raises(hbp.InputError, match="not what was written"):
        setting.scores(data=data, at_once=2, checkpoint=tmp_path)
    path.write_bytes(before[path][:100])
    with pytest.raises(hbp.InputError, match="damaged"):
        setting.scores(data=data, at_once=2, checkpoint=tmp_path)
    own = tmp_path / "self"
    one = self_scores(setting.H, setting.train, data, progress=False, checkpoint=own)
    assert torch.equal(self_scores(setting.H, setting.train, data, progress=False, checkpoint=own).values, one.values)
    for other, message in (([], "no more than 2"), (data[:-1], "no more than 2"), ([*data, data[0]], "gives more"),
                           ([*data[:-1], (data[2][0] + 1, data[2][1])], "batch 2 of the training data is not the one")):
        with pytest.raises(hbp.InputError, match=message):
            self_scores(setting.H, setting.train, other, progress=False, checkpoint=own)


def a_hook(module, given, output):
    return 2 * output


@few(2, "further cases of one kind")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [
    lambda model: model.eval(), lambda model: setattr(model.norm, "eps", 0.1),
    lambda model: model.first.register_forward_hook(a_hook),
], ids=["mode", "attribute", "hook"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_model_is_refused(tmp_path, change, finished):
    setting = Setting()
    data = cut(setting.X, setting.y, 2, 2, 3)
    if finished:
        self_scores(setting.H, setting.train, data, progress=False, checkpoint=tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            self_scores(setting.H, setting.train, Interrupted(data), progress=False, checkpoint=tmp_path)
    change(setting.model)
    with pytest.raises(hbp.InputError, match="scores of another run"):
        self_scores(setting.H, setting.train, data, progress=False, checkpoint=tmp_path)


@slow("two processes; how their columns are put together is tested beside this")
def test_ranks_give_what_one_process_gives(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(SCRIPT),
               str(tmp_path)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240,
                          env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    model, data, queries = torchrun_script.setting()
    right = torchrun_script.found(model, queries, [data[:]])
    texts = []
    for rank in range(2):
        values, text = torch.load(tmp_path / f"rank{rank}.pt")
        for value, expected in zip(values, right, strict=True):
            torch.testing.assert_close(value, expected)
        texts.append(text)
    assert texts[0].startswith("RankError: scores failed on other ranks:")
    assert texts[1].startswith("InputTypeError: batch 0 of the training data")
    assert {path.name for path in (tmp_path / "scores").iterdir()} == {
        "queries-0-0.batches-0-2.rank0of2.pt", "queries-0-0.batches-0-2.rank1of2.pt"}


def test_ranks_are_put_in_the_order_of_the_data():
    whole = torch.arange(14.0).reshape(2, 7)
    shards = [Rows({"": whole[:, rank::3]}, Counted(len(range(rank, 7, 3)), 2.0, True)) for rank in range(3)]
    found = joined(shards, "strided")
    assert torch.equal(found.values[""], whole)
    assert found.counted == Counted(7, 6.0, True)
    with pytest.raises(hbp.InputError, match="contiguous"):
        joined(shards[::-1], "strided")
    halves = [Rows({"": whole[:, :5]}, Counted(5)), Rows({}, Counted()), Rows({"": whole[:, 5:]}, Counted(2))]
    assert torch.equal(joined(halves, "contiguous").values[""], whole)


def test_a_rank_that_fails_is_named(monkeypatch):
    def gather(told, own, group):
        told[:] = [own, ("ValueError: no", None)]

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    rows = Rows({"": torch.ones(1, 2)}, Counted(2))
    with pytest.raises(hbp.RankError, match="rank 1: ValueError: no"):
        together(rows, None, object(), "strided")
    with pytest.raises(KeyError):
        together(None, KeyError("mine"), object(), "strided")


@pytest.mark.filterwarnings("ignore")
def test_what_does_not_fit_is_listed(setting):
    other = hbp.compile(nn.Linear(2, 2), quantities=["grad"])
    own = hbp.curvature({"first.weight": torch.ones(4, 3).double(), "nobody": torch.ones(2).double()},
                        {"first.weight": (4, 3), "nobody": (2,)})
    setting.model.first.requires_grad_(False)
    try:
        with pytest.raises(hbp.InputError) as caught:
            scores(own, other, [], setting.train, [], rank=0, order="sorted", at_once=True, checkpoint_every=-1)
    finally:
        setting.model.first.requires_grad_(True)
    for what in ("different models", "'nobody'", "'first.weight' is in the curvature, and frozen", "rank must",
                 "at_once must", "'sorted'", "checkpoint_every"):
        assert what in str(caught.value)
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(setting.X, setting.y), shuffle=True)
    with pytest.raises(hbp.InputError, match="loader of data shuffles"):
        self_scores(setting.H, setting.train, shuffled)
    passes = iter([cut(setting.X, setting.y, 7), cut(setting.X.flip(0), setting.y, 7)])
    with pytest.raises(hbp.InputError, match="not the one of the pass before"):
        setting.scores(data=Passes(passes), at_once=2)
    with pytest.raises(hbp.InputError, match="dict"):
        scores({}, setting.query, [], setting.train, [])
    operator = hbp.operator(setting.model, setting.train.loss, [(setting.X, setting.y)])
    with pytest.raises(hbp.InputError, match=r"not Operator: .* take hbp.curvature of factors"):
        scores(operator, setting.query, [], setting.train, [])
    with pytest.raises(hbp.InputError, match=r"not Total, which holds quantities: .*hbp.curvature\(total.kfac\)"):
        scores(hbp.accumulate(setting.train, [(setting.X, setting.y)]), setting.query, [], setting.train, [])
    with pytest.raises(hbp.InputError, match="no samples"):
        scores(setting.H, setting.query, [], setting.train, [], progress=False)
    for given in (((setting.Q, setting.t), []), ([(setting.Q, setting.t)], (setting.X, setting.y))):
        with pytest.raises(hbp.InputError, match=r"batch 0 of .*, pass a list of it, \[\(X, y\)\]"):
            scores(setting.H, setting.query, given[0], setting.train, given[1], progress=False)
    with pytest.raises(hbp.InputError, match="batch 0 of the queries"):
        scores(setting.H, setting.query, [(setting.Q.float(), setting.t)], setting.train, [], progress=False)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_batch_of_which_all_labels_are_ignored(length):
    """Its samples' scores are zero, however the data are cut."""
    torch.manual_seed(0)
    model, loss = nn.Linear(4, 3).double(), nn.CrossEntropyLoss()
    X, y = torch.randn(8, 4).double(), torch.tensor([0, 1, 2, 0, -100, -100, 1, 2])
    compiled = hbp.compile(model, loss, ["grad"])
    curvature = hbp.ekfac(model, loss, [(X, y)], columns="exact", progress=False)

    def found(cut):
        loader, queries = [(X[i : i + cut], y[i : i + cut]) for i in range(0, 8, cut)], [(X[:2], y[:2])]
        return (scores(curvature, compiled, queries, compiled, loader, damping=0.1, progress=False).values,
                self_scores(curvature, compiled, loader, damping=0.1, progress=False).values)

    whole = found(8)
    assert not whole[0][:, 4:6].any()
    assert not whole[1][4:6].any()
    torch.testing.assert_close(found(length), whole)


def test_scores_are_shown_without_their_numbers():
    found = Scores(torch.zeros(30, 600), {"0.weight": torch.zeros(30, 600)}, ("1.bias",), {"0.weight": 0.1})
    assert repr(found) == "Scores([30, 600], by_parameter of 1, left_out=['1.bias'])"
    assert repr(Scores(torch.zeros(600), {}, (), {})) == "Scores([600])"


@pytest.mark.parametrize("made", ["total", "ekfac", "file"])
def test_a_curvature_at_other_weights_is_warned_of(made):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = [(torch.randn(4, 3).double(), torch.randint(2, (4,)))]
    train = hbp.compile(model, nn.CrossEntropyLoss(), ["kflr"])
    if made == "ekfac":
        H = hbp.ekfac(model, nn.CrossEntropyLoss(), data, columns="exact", progress=False)
    else:
        H = hbp.curvature(hbp.accumulate(train, data, progress=False).kflr)
    if made == "file":
        H = hbp.Curvature.from_state_dict(H.state_dict())
    H, damping = (2 * H).to(torch.float64), 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = self_scores(H, train, data, damping=damping, progress=False)
        scores(H, train, data, train, data, damping=damping, progress=False)
    gradients = hbp.compile(model, nn.CrossEntropyLoss(), ["batch_grad"])(*data[0]).batch_grad
    rows = {name: 4 * each for name, each in gradients.items()}
    right = sum((rows[name] * each).flatten(1).sum(1) for name, each in H.solve(rows, damping).items())
    torch.testing.assert_close(before.values, right)
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.warns(hbp.TotalWarning, match="curvature was made at other numbers"):
        scores(H, train, data, train, data, damping=damping, progress=False)
    with pytest.warns(hbp.TotalWarning, match="curvature was made at other numbers"):
        self_scores(H, train, data, damping=damping, progress=False)
    own = hbp.curvature({name: H.diag()[name] for name in H.names}, parameters=model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        self_scores(own, train, data, damping=damping, progress=False)
