"""Where B and A index each kind of parameter: against the exact block of one sample, in the parameter's own order.

With one sample and one position `kflr` is exact, so that no convention of ours enters on the other side.
"""

import pickle

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.plan.stored import stored
from hbpcompiler.curvature import Dense, Diagonal, EigenKronecker, Kronecker
from hbpcompiler.reference import ggn_block
from hbpcompiler.values import INPUTS_FIRST, OUTPUTS_FIRST
from tests.agreement import close
from tests.selection import cases, few


class AsInConv1D(nn.Module):
    """A weight [in, out], as GPT-2's layers have it, with as many inputs as outputs."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class Tied(nn.Module):
    """One layer used twice: factors of both uses together, so the block is not a Kronecker product."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


def mixed(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.Tanh(), nn.LazyLinear(3))


LAYERS = {
    "linear": (lambda: mixed(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5)), (4,)),
    "square linear": (lambda: mixed(nn.Linear(4, 4), nn.PReLU(4, 0.3)), (4,)),
    "convolution": (lambda: mixed(nn.Conv2d(2, 3, 2)), (2, 2, 2)),
    "square convolution": (lambda: mixed(nn.Conv1d(2, 6, 3)), (2, 3)),
    "grouped convolution": (lambda: mixed(nn.Conv2d(4, 6, (2, 1), groups=2)), (4, 2, 1)),
    "depthwise convolution": (lambda: mixed(nn.Conv1d(3, 6, 2, groups=3)), (3, 2)),
    "transposed convolution": (lambda: mixed(nn.ConvTranspose2d(3, 2, 2)), (3, 1, 1)),
    "square transposed convolution": (lambda: mixed(nn.ConvTranspose1d(4, 2, 2)), (4, 1)),
    "grouped transposed convolution": (lambda: mixed(nn.ConvTranspose1d(4, 6, 2, groups=2)), (4, 1)),
    "conv1d of transformers": (lambda: mixed(AsInConv1D()), (4,)),
    "embedding": (lambda: mixed(nn.Embedding(3, 3)), ()),
    "oblong embedding": (lambda: mixed(nn.Embedding(5, 2)), ()),
}
"""A model whose layers meet one position each, and its input's shape without the batch."""
QUICK = ("square linear", "grouped convolution", "square transposed convolution", "conv1d of transformers", "embedding")


def batch(shape, samples=1):
    x = torch.randn(samples, *shape, dtype=torch.float64) if shape else torch.randint(3, (samples,))
    return x, torch.randint(3, (samples,))


def setting(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    model, (X, y) = make(), batch(shape)
    model(X.float() if X.is_floating_point() else X)  # lazy layers
    return model.double(), X, y


def by_group(matrix, groups):
    """Without what is between groups, of which the factors know nothing: a group is one part of the first axis."""
    size = len(matrix) // groups
    return torch.block_diag(*[matrix[first : first + size, first : first + size]
                              for first in range(0, len(matrix), size)])


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", cases(LAYERS, QUICK, "the same layouts"))
def test_every_layer_has_its_exact_block_for_one_sample(name):
    model, X, y = setting(name)
    result = hbp.compile(model, quantities=["kflr", "ekfac", "kfac", "grad"])(X, y)
    H = hbp.curvature(result.kflr)
    blocks = {key: ggn_block(model, nn.CrossEntropyLoss(), (X,), y, key) for key, _ in model.named_parameters()}
    blocks["0.weight"] = by_group(blocks["0.weight"], getattr(model[0], "groups", 1))
    assert H.names == tuple(blocks)
    for key, right in blocks.items():
        close(H[key].to_dense(), right, key)
        assert isinstance(H[key], Kronecker if result.kflr[key].A is not None else Dense)
    close(H.to_dense(), torch.block_diag(*blocks.values()), "all blocks")
    vector = result.grad
    damped = [torch.linalg.solve(right + 0.1 * torch.eye(len(right)).double(), vector[key].flatten())
              for key, right in blocks.items()]
    close(torch.cat([part.flatten() for part in H.solve(vector, 0.1).values()]), torch.cat(damped), "solve")
    # ekfac's eigenvalues of one sample are those of kfac's factors
    eigen, sampled = hbp.curvature(result.ekfac), hbp.curvature(result.kfac)
    assert all(isinstance(block, EigenKronecker) for block in eigen.blocks)
    close(eigen.to_dense(), sampled.to_dense(), "ekfac")
    close(eigen.diag()[key], sampled.diag()[key], "its diagonal")


@pytest.mark.parametrize("name", cases(LAYERS, ("square linear",), "the layouts are tested above"))
def test_layouts_follow_from_shapes_or_are_asked_for(name):
    """For a dict that does not come from a result; with it nothing has to be said."""
    model, X, y = setting(name)
    compiled = hbp.compile(model, quantities=["kflr"])
    result = compiled(X, y)
    right, plain = hbp.curvature(result.kflr).to_dense(), dict(result.kflr)
    layouts = {key: own.layout for key, own in stored(compiled._current().draft.plan,
                                                      compiled._current().matched.trainable).items() if own.layout}
    for key, value in plain.items():
        if value.A is not None:
            inputs_first = any(word in name for word in ("transposed", "conv1d", "embedding"))
            assert layouts[key] == (INPUTS_FIRST if inputs_first and key == "0.weight" else OUTPUTS_FIRST)
    close(hbp.curvature(plain, model, layouts=layouts).to_dense(), right, "layouts given")
    if any(value.A is not None and value.A.shape == value.B.shape for value in plain.values()):
        with pytest.raises(hbp.InputError, match="either way: say layouts="):
            hbp.curvature(plain, model)
    else:
        close(hbp.curvature(plain, model).to_dense(), right, "layouts by shape")


def test_weight_and_bias_as_one_block():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 2), nn.Flatten(), nn.Tanh(), AsInConv1D(), nn.Tanh(),
                          nn.LayerNorm(4), nn.Linear(4, 3)).double()
    X, y = batch((2, 2))
    result = hbp.compile(model, quantities=["kflr", "ekfac", "grad"], joint_bias=True)(X, y)
    assert dict(result.joint_biases) == {"0.weight": "0.bias", "3.weight": "3.bias", "6.weight": "6.bias"}
    H = hbp.curvature(result.kflr)
    assert H.names == tuple(dict(model.named_parameters()))
    assert H["0.bias"] is H["0.weight"]
    assert len(H.blocks) == 5
    dense = H.to_dense()
    sizes = {key: p.numel() for key, p in model.named_parameters()}
    offsets = dict(zip(sizes, torch.tensor([0, *sizes.values()]).cumsum(0).tolist(), strict=False))
    run = nn.utils.parameters_to_vector(model.parameters()).detach()
    exact = torch.autograd.functional.jacobian(
        lambda flat: torch.func.functional_call(model, unflattened(flat, model), (X,)).flatten(), run)
    logits = model(X).detach().softmax(1).flatten()
    whole = exact.T @ (logits.diag() - logits.outer(logits)) @ exact
    for weight, bias in result.joint_biases.items():
        own = torch.cat([torch.arange(sizes[key]) + offsets[key] for key in (weight, bias)])
        close(dense[own][:, own], whole[own][:, own], f"{weight} with {bias}")
    solved = torch.cat([part.flatten() for part in H.solve(result.grad, 0.1, split="exact").values()])
    gradient = torch.cat([part.flatten() for part in result.grad.values()])
    close(solved, torch.linalg.solve(dense + 0.1 * torch.eye(len(dense)).double(), gradient), "solve")
    eigen = hbp.curvature(result.ekfac)
    assert eigen.names == H.names
    layouts = {"0.weight": "out, in", "3.weight": "in, out"}
    given = hbp.curvature(dict(result.kflr), model, joint_biases=result.joint_biases, layouts=layouts)
    close(given.to_dense(), dense, "a dict of one's own")
    with pytest.raises(hbp.InputError, match="do not fit a parameter"):
        hbp.curvature(dict(result.kflr), model, layouts=layouts)


def unflattened(flat, model):
    parts, found = flat.split([p.numel() for p in model.parameters()]), {}
    for part, (key, parameter) in zip(parts, model.named_parameters(), strict=True):
        found[key] = part.view_as(parameter)
    return found


def test_totals_of_data_sets_say_how_their_parameters_are_laid_out(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(AsInConv1D(), nn.Tanh(), nn.Linear(4, 3)).double()
    compiled, (X, y) = hbp.compile(model, quantities=["kflr", "diag_ggn"], joint_bias=True), batch((4,), 6)
    total = hbp.accumulate(compiled, [(X[:4], y[:4]), (X[4:], y[4:])], progress=False)
    whole = compiled(X, y)
    merged = hbp.Total.merge(*(hbp.accumulate(compiled, [part], progress=False)
                               for part in ((X[:1], y[:1]), (X[1:], y[1:]))))
    read = hbp.Total.load(total.save(tmp_path / "total.pt"), model)
    right = hbp.curvature(whole.kflr)
    for name, found in {"accumulated": total, "merged": merged, "read": read, "elsewhere": total.to("cpu")}.items():
        H = hbp.curvature(found.kflr)
        assert (H.names, H.shapes) == (right.names, right.shapes)
        assert [block.place for block in H.blocks] == [block.place for block in right.blocks]
        close(H.to_dense(), right.to_dense(), name)
        close(hbp.curvature(found.diag_ggn).to_dense(), hbp.curvature(whole.diag_ggn).to_dense(), name)


def test_factors_of_rounded_columns_are_as_definite_as_these_let_them_be():
    """Five logits of a softmax have four directions; rounded to bfloat16, the fifth is slightly negative."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))
    X, y = torch.randn(5, 4), torch.randint(5, (5,))
    compiled = hbp.compile(model, nn.CrossEntropyLoss(reduction="sum"), ["kflr", "grad"],
                           curvature_dtype=torch.bfloat16)
    result = compiled(X, y)
    lowest = torch.linalg.eigvalsh(result.kflr["2.bias"].B)[0].item()
    assert lowest < -1e-5
    with pytest.raises(hbp.InputError, match=r"'2\.bias' .* is indefinite"):
        hbp.curvature(dict(result.kflr), model).solve(result.grad, -lowest / 2)
    H = hbp.curvature(result.kflr)
    assert all((block.eigenvalues >= 0).all() for block in H.blocks)
    assert all(part.isfinite().all() for part in H.solve(result.grad, -lowest / 2).values())


def test_results_say_what_they_are_of_also_when_pickled():
    torch.manual_seed(0)
    model, (X, y) = Tied().double(), batch((4,), 3)
    y = y.clamp(max=2)
    result = hbp.compile(model, quantities=["kflr", "diag_ggn", "batch_grad"])(X, y)
    H = hbp.curvature(result.kflr)
    factors = result.kflr["layer.weight"]
    close(H["layer.weight"].to_dense(), torch.kron(factors.B, factors.A), "tied")
    again = pickle.loads(pickle.dumps(result))
    close(hbp.curvature(again.kflr).to_dense(), H.to_dense(), "pickled")
    diagonal = hbp.curvature(result.diag_ggn)
    assert isinstance(diagonal["layer.bias"], Diagonal)
    close(diagonal.diag()["layer.weight"], result.diag_ggn["layer.weight"], "diagonal")
    doubled = {key: value._replace(B=2 * value.B) for key, value in result.kflr.items()}
    close(hbp.curvature(result.kflr.like(doubled)).to_dense(), 2 * H.to_dense(), "totals")
    with pytest.raises(hbp.InputError, match="batch_grad is no block of a curvature matrix; take one of second"):
        hbp.curvature(result.batch_grad)
