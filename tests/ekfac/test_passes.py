"""`hbp.ekfac`: two passes over a data set, against brute force over all of its samples."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.curvature import Dense, Diagonal, EigenKronecker
from hbpcompiler.ekfac.structure import met_by, structure_of
from hbpcompiler.reference import ggn_block
from tests.agreement import close
from tests.selection import cases, few, slow

SAMPLES, CLASSES = 9, 3


class Net(nn.Module):
    """An embedding, a grouped convolution, a linear layer at several positions; scales and biases."""

    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.conv, self.head = nn.Conv1d(4, 4, 2, groups=2), nn.Linear(4, CLASSES)

    def forward(self, x):
        found = torch.tanh(self.conv(self.norm(self.words(x)).mT)).mT
        return self.head(found).mean(1)


def setting(samples=SAMPLES):
    torch.manual_seed(0)
    model = Net().double()
    return model, torch.randint(5, (samples, 4)), torch.randint(CLASSES, (samples,))


def cut(X, y, *lengths):
    return list(zip(X.split(lengths), y.split(lengths), strict=True))


def gradients(model, X, y, name):
    """Of each sample's own loss, [N, *theta]."""
    parameter, found = model.get_parameter(name), []
    for n in range(len(X)):
        loss = nn.functional.cross_entropy(model(X[n : n + 1]), y[n : n + 1])
        found.append(torch.autograd.grad(loss, parameter)[0])
    return torch.stack(found)


def columns_of(model, X, y, name, columns):
    """[N, K, *theta]: exact ones by the Jacobian and a root of the loss's Hessian, or the gradients."""
    if columns == "empirical":
        return gradients(model, X, y, name).unsqueeze(1)
    parameter, found = model.get_parameter(name), []
    for n in range(len(X)):
        output = model(X[n : n + 1]).squeeze(0)
        p = output.detach().softmax(0)
        values, vectors = torch.linalg.eigh(p.diag() - torch.outer(p, p))
        root = vectors * values.clamp(min=0).sqrt()
        rows = [torch.autograd.grad(output, parameter, column, retain_graph=True)[0] for column in root.T]
        found.append(torch.stack(rows))
    return torch.stack(found)


def by_group(block, groups):
    """Without what is between groups, of which no factors know anything."""
    size = len(block) // groups
    return torch.block_diag(*[block[n : n + size, n : n + size] for n in range(0, len(block), size)])


@few(1, "further cases of one kind")
@pytest.mark.parametrize(("columns", "reduction"), [("exact", "mean"), ("empirical", "sum")])
def test_squares_by_hand_and_the_best_eigenvalues(columns, reduction):
    model, X, y = setting()
    loss, scale = nn.CrossEntropyLoss(reduction=reduction), 1 / SAMPLES if reduction == "mean" else 1
    H = hbp.ekfac(model, loss, cut(X, y, 2, 1, 6), columns, diagonal=["norm.weight"], progress=False)
    factors = "kflr" if columns == "exact" else "kfac_emp"
    kfac = hbp.curvature(hbp.compile(model, loss, [factors])(X, y)[factors])
    assert H.names == tuple(dict(model.named_parameters()))
    for name in H.names:
        T = columns_of(model, X, y, name, columns)
        rows = T.flatten(2).flatten(0, 1)
        block, own = scale * rows.T @ rows, H[name]
        if name.endswith("bias"):
            assert isinstance(own, Dense)
            close(own.to_dense(), block, name)
        elif name == "norm.weight":
            assert isinstance(own, Diagonal)
            close(own.values, block.diagonal(), name)
        else:
            assert isinstance(own, EigenKronecker)
            A, B = own.A.reshape(-1, *own.A.shape[-2:]), own.B.reshape(-1, *own.B.shape[-2:])
            seen = B.mT @ own.place.gather({name: T.flatten(0, 1)}) @ A
            close(own.values, scale * seen.square().sum(0), name)
            for Q, group in ((A, "A"), (B, "B")):
                close(Q.mT @ Q, torch.eye(Q.shape[-1], dtype=Q.dtype).expand_as(Q), f"{group} of {name}")
            block = by_group(block, len(A))
            assert (own.to_dense() - block).norm() <= (kfac[name].to_dense() - block).norm() * (1 + 1e-12)
            assert (own.to_dense() - block).norm() > 0
    dense = H.to_dense() + 0.1 * torch.eye(H.shape[0], dtype=torch.float64)
    v = torch.randn(H.shape[0], dtype=torch.float64)
    close(H.solve(v, damping=0.1), torch.linalg.solve(dense, v), "solve")
    close(H.inverse(damping=0.1) @ v, torch.linalg.solve(dense, v), "inverse")
    close(H.logdet(damping=0.1), torch.logdet(dense), "logdet")
    again = hbp.Curvature.from_state_dict(H.state_dict())
    assert torch.equal(again.to_dense(), H.to_dense())


def test_exact_columns_are_those_of_the_ggn():
    """The brute force above, against the GGN by double backward."""
    model, X, y = setting(3)
    for name in ("words.weight", "conv.weight"):
        rows = columns_of(model, X, y, name, "exact").flatten(2).flatten(0, 1)
        close(rows.T @ rows / 3, ggn_block(model, nn.CrossEntropyLoss(), (X,), y, name), name)


@pytest.mark.parametrize("kind", cases(["sampled, expand", "sampled, reduce", "exact, reduce", "empirical, reduce"],
                                       ["sampled, reduce"], "other quantities of the same two tables"))
def test_any_cutting_gives_the_whole(kind):
    columns, positions = kind.split(", ")
    model, X, y = setting()
    options = {"positions": positions, "joint_bias": True, "seed": 3, "progress": False, "mc_samples": 2}
    options = options if columns == "sampled" else {**options, "mc_samples": 1}
    kept = {"parameters": ["head.*", "norm.*", "words.*"]}
    whole = hbp.ekfac(model, None, [(X, y)], columns, **options, **kept)
    parts = hbp.ekfac(model, None, DataLoader(TensorDataset(X, y), batch_size=4), columns, **options, **kept)
    assert whole.names == parts.names == ("words.weight", "norm.weight", "norm.bias", "head.weight", "head.bias")
    assert whole["head.weight"] is whole["head.bias"]
    close(parts.to_dense(), whole.to_dense(), "cut")
    name = {"sampled": "diag_ggn_mc", "exact": "diag_ggn", "empirical": "second_moment"}[columns]
    compiled = hbp.compile(model, None, [name], mc_samples=options["mc_samples"])
    total = hbp.accumulate(compiled, [(X, y)], seed=3, progress=False)
    close(whole["words.weight"].trace(), total[name]["words.weight"].sum(), "the same draws")


class Stops(list):
    """Batches of which the first passes go through, and one is interrupted."""

    def __init__(self, batches, passes, after):
        super().__init__(batches)
        self.passes, self.after = passes, after

    def __iter__(self):
        self.passes -= 1
        for number, batch in enumerate(super().__iter__()):
            if self.passes < 0 and number == self.after:
                raise KeyboardInterrupt
            yield batch


READS = 1
"""Before the two passes: the first batch is looked at."""


@slow("two passes over a data set")
@pytest.mark.parametrize("passes", cases([READS + 1, READS], [READS + 1], "accumulate's own tests interrupt one pass"))
def test_an_interrupted_run_goes_on_in_either_pass(tmp_path, passes):
    model, X, y = setting()
    batches = cut(X, y, 3, 3, 3)
    options = {"parameters": ["head.*", "norm.*"], "progress": False, "checkpoint_every": 0}
    right = hbp.ekfac(model, None, batches, **options)
    with pytest.raises(KeyboardInterrupt):
        hbp.ekfac(model, None, Stops(batches, passes, 2), checkpoint=tmp_path / "run", **options)
    known = {path.name for path in tmp_path.iterdir()}
    assert known == {"run.factors", *(["run.bases", "run.eigenvalues"] if passes > READS else [])}
    H = hbp.ekfac(model, None, batches, checkpoint=tmp_path / "run", **options)
    assert torch.equal(H.to_dense(), right.to_dense())
    other = {**options, "seed": 1}
    with pytest.raises(hbp.InputError, match=r"(?s)run.factors holds the totals of another run.*seed: 1 here, 0 there"):
        hbp.ekfac(model, None, batches, checkpoint=tmp_path / "run", **other)
    (tmp_path / "run.factors").unlink()
    with pytest.raises(hbp.InputError, match=r"run.bases holds eigenvectors of other factors"):
        hbp.ekfac(model, None, batches, checkpoint=tmp_path / "run", **other)


class TiedHead(nn.Module):
    """The words' weight is the last layer's too; positions are added; a weight is used twice alike."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(6, 4), nn.Parameter(torch.randn(3, 4))
        self.twice, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x):
        h = self.words(x) + self.places
        h = self.twice(torch.tanh(self.frozen(self.twice(h))))
        return (h @ self.words.weight.T).mean(1)


def test_what_has_no_factors_has_a_diagonal():
    torch.manual_seed(0)
    model, X, y = TiedHead().double(), torch.randint(6, (4, 3)), torch.randint(6, (4,))
    H = hbp.ekfac(model, None, [(X, y)], "exact", largest_factor=11, progress=False)
    kinds = {name: type(H[name]) for name in H.names}
    assert kinds == {"words.weight": Diagonal, "places": Diagonal, "twice.weight": EigenKronecker, "twice.bias": Dense}
    for name in H.names:
        close(H.diag()[name].flatten().sum(), ggn_block(model, nn.CrossEntropyLoss(), (X,), y, name).trace(), name)
    words = ggn_block(model, nn.CrossEntropyLoss(), (X,), y, "words.weight")
    close(H.diag()["words.weight"].flatten(), words.diagonal(), "both uses of the words")


def test_refusals():
    model, X, y = setting()
    with pytest.raises(hbp.InputError, match="can be read only once"):
        hbp.ekfac(model, None, iter([(X, y)]))
    with pytest.raises(hbp.HbpError, match=r"(?s)columns must be one of 'sampled', 'exact', 'empirical', not 'all'.*"
                                           r"positions must be .*largest_factor must be .*no option 'foo'"):
        hbp.ekfac(model, None, [(X, y)], "all", positions=3, largest_factor=0, foo=3)
    with pytest.raises(hbp.HbpError, match=r"(?s)parameters: 'x'.*diagonal: 'q\*'.*There are words.weight"):
        hbp.ekfac(model, None, [(X, y)], diagonal=["q*"], parameters=["x"])
    with pytest.raises(hbp.InputError, match="the loader gave no samples"):
        hbp.ekfac(model, None, [])
    with pytest.raises(hbp.InputError, match=r"batch 0 of the loader: .*, pass a list of it, \[\(X, y\)\]"):
        hbp.ekfac(model, None, (X, y))
    with pytest.raises(hbp.InputError, match="9 samples, and 4 when it was read again"):
        hbp.ekfac(model, None, Shrinking([(X, y), (X[:4], y[:4])]), parameters=["head.*"], progress=False)


class Shrinking(list):
    """Gives one of its batches each time that it is read; the first one until the last time."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        yield self[0] if self.reads <= READS + 1 else self[1]


def test_structure_says_what_each_parameter_gets():
    model, X, y = setting()
    met = met_by(hbp.compile(model, None, ["grad"]), check_batch(model, (X, y)))
    found = structure_of(met, list(dict(model.named_parameters())), ["*"], ["conv.*"], 4)
    assert found.factors == ("norm.weight", "norm.bias", "head.weight", "head.bias")
    assert found.diagonal == ("words.weight", "conv.weight", "conv.bias")


def test_entries_that_are_not_finite():
    words = "factor A of 'weight' has entries that are NaN or infinite; look at the inputs"
    batches = [(torch.tensor([[1.0, torch.nan], [0.5, 2.0]]), torch.tensor([0, 1]))]
    with pytest.raises(hbp.InputError, match=words):
        hbp.ekfac(nn.Linear(2, 3), nn.CrossEntropyLoss(), batches)
