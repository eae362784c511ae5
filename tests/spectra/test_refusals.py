"""What a spectrum refuses, each with one clear error."""

import copy
import pickle

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.spectra.test_spectrum import mlp

OPTIONS = [
    ({"groups": "layers"}, ValueError, "groups 'layers' is unknown. groups is 'all', 'layer', 'parameter'"),
    ({"groups": 3}, TypeError, "groups cannot be 3"),
    ({"groups": []}, ValueError, "groups is empty"),
    ({"groups": ["0.weight"]}, TypeError, "'group0' in groups is '0.weight', no list"),
    ({"groups": [["0.weight"], []]}, ValueError, "group1 has no parameters"),
    ({"groups": [["0.weight", "1.weight"], ["0.*"], ["2.bias"]]}, ValueError,
     r"(?s)no parameter is called '1\.weight'.*'0\.weight' is in group0 and in group1.*'2\.bias' is not trained"
     r".*Trainable parameters are 0\.weight, 0\.bias, 2\.weight"),
    ({"groups": [["3.weight"]]}, ValueError, r"'3\.weight' is the same parameter as '0\.weight'"),
    ({"columns": "mc"}, ValueError, "columns 'mc' is unknown"),
    ({"mc_samples": 4}, ValueError, "mc_samples=4 is for columns='sampled'"),
    ({"tolerance": 1.5}, ValueError, "tolerance is a share"),
    ({"tolerance": "small"}, TypeError, "tolerance must be a number"),
    ({"memory_budget": "little"}, ValueError, "is not a size"),
]


@pytest.mark.parametrize(("options", "kind", "message"), OPTIONS, ids=[str(option) for option, _, _ in OPTIONS])
def test_options(options, kind, message):
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model.append(model[0])
    model[2].bias.requires_grad_(False)
    with pytest.raises(hbp.CompileError, match=message) as raised:
        hbp.spectrum(model, **options)
    assert isinstance(raised.value, kind)


def test_calls():
    model, X, y = mlp()
    compiled = hbp.spectrum(model, groups="parameter")
    whole = hbp.spectrum(model)(X, y)
    apart = compiled(X, y)
    wrong = {
        "an empty batch": lambda: compiled(X[:0], y[:0]),
        "generator must be": lambda: compiled(X, y, generator=3),
        "X has 3 samples, y has 2": lambda: compiled(X, y[:2]),
        "top=7 is more than the 6 eigenvectors that there are": lambda: whole.vectors(top=7),
        "top must be a number": lambda: whole.vectors(top=1.5),
        "top must not be negative": lambda: whole.newton_step(top=-1, damping=1.0),
        "choose eigenvectors by one of top, threshold": lambda: whole.vectors(top=1, threshold=0.1),
        "threshold must be a number": lambda: whole.vectors(threshold="high"),
        "indices lie from 0 to 5; 6, -1 do not": lambda: whole.vectors(indices=[6, -1]),
        "indices are repeated": lambda: whole.vectors(indices=[1, 1]),
        "indices must be a list": lambda: whole.vectors(indices=1),
        r"(?s)cannot be chosen so.*'0.bias': top=6 .* 5 eigen.*'2.bias': .* 2 eigen": lambda: apart.vectors(top=6),
        "top names unknown groups: '3'": lambda: apart.vectors(top={"3": 1}),
        "damping must be positive; 0 is not": lambda: whole.newton_step(damping=0.0),
        "damping must be positive; nan is not": lambda: whole.newton_step(damping=float("nan")),
        r"damping has shape \[2\], but there are 3 directions": lambda: whole.newton_step(top=3, damping=torch.ones(2)),
        "damping 'much' is unknown": lambda: whole.newton_step(damping="much"),
        "what the damping function returned must be positive; -1": lambda: whole.newton_step(damping=lambda *_: -1.0),
        "damping must be a number": lambda: whole.newton_step(damping=[1.0]),
        "damping says nothing about group '0.bias'": lambda: apart.newton_step(damping={"0.weight": 1.0}),
        r"slopes must be \[M, 6\]": lambda: whole.newton_step(damping=1.0, slopes=torch.ones(3, 2)),
        "X does not go through the model": lambda: whole.slopes_of(X[:, :2], y),
        "candidates must be positive": lambda: hbp.bootstrap([0.0, 1.0]),
        "resamples must be": lambda: hbp.bootstrap(resamples=0),
        "percentile must": lambda: hbp.bootstrap(percentile=101),
    }
    for message, call in wrong.items():
        with pytest.raises(hbp.InputError, match=message):
            call()


def test_losses_that_may_not_be_convex():
    model, X, y = mlp()

    def strange(output, target):
        return (output.cos() * output.square()).sum(1).mean()

    for groups in ("all", "parameter"):  # of inner products, and of columns
        for call in (lambda groups: hbp.spectrum(model, strange, groups)(X, y),
                     lambda groups: hbp.spectrum(model, strange, groups, example_inputs=(X, y))):
            with pytest.raises(hbp.UnsupportedOpError, match=r"^a spectrum: the curvature .* not known to be "):
                call(groups)


def test_curvature_that_is_not_finite():
    model, X, y = mlp()
    with pytest.raises(hbp.InputError, match="not finite"):
        hbp.spectrum(model, verify=False)(X * torch.inf, y)


def test_a_model_that_has_changed_has_no_vectors():
    """In place, behind the back of torch's count, by another tensor, or in its mode; and a batch likewise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)).double().eval()
    X, y = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 2, 1])
    compiled = hbp.spectrum(model)

    def step():
        with torch.no_grad():
            model[0].weight.add_(0.1)

    def behind():
        model[3].bias.data.add_(0.1)

    def replaced():
        model[0].weight = nn.Parameter(model[0].weight.detach() + 0.1)

    def batch():
        X.mul_(2)

    def frozen():
        model[0].weight.requires_grad_(False)

    for change, message in ((step, r"(?s)changed since.*parameter '0\.weight'"), (behind, r"parameter '3\.bias'"),
                            (replaced, r"parameter '0\.weight'"), (batch, "tensor 1 of the batch"),
                            (frozen, r"parameter '0\.weight'"), (model.train, "returns something else")):
        spectrum = compiled(X, y)
        spectrum.vectors(top=1)
        change()
        for call in (lambda: spectrum.vectors(top=1), lambda: spectrum.newton_step(damping=1.0),
                     lambda: spectrum.slopes_of(X, y, top=1)):
            with pytest.raises(hbp.InputError, match=message):
                call()


def test_a_compiled_spectrum_is_made_again_from_a_copy():
    model, X, y = mlp()
    compiled = hbp.spectrum(model, groups="layer", columns="sampled", mc_samples=3, tolerance=1e-9)
    expected = compiled(X, y, generator=torch.Generator().manual_seed(1)).eigenvalues
    for again in (pickle.loads(pickle.dumps(compiled)), copy.deepcopy(compiled)):
        assert again.model is not model
        found = again(X, y, generator=torch.Generator().manual_seed(1)).eigenvalues
        assert all(torch.equal(found[group], value) for group, value in expected.items())
    assert "groups=['0', '2'], columns='sampled'" in repr(compiled)


def test_a_spectrum_can_be_sent_elsewhere():
    model, X, y = mlp()
    for generator in (None, torch.Generator().manual_seed(1)):
        spectrum = hbp.spectrum(model, columns="sampled")(X, y, generator=generator)
        expected = spectrum.vectors(top=2)
        again = pickle.loads(pickle.dumps(spectrum))
        with torch.no_grad():
            model[0].weight.add_(1)  # not the copy's
        assert torch.equal(again.eigenvalues, spectrum.eigenvalues)
        for name, part in again.vectors(top=2).items():
            torch.testing.assert_close(part, expected[name])
        with pytest.raises(hbp.InputError, match="changed since"):
            copy.deepcopy(spectrum).vectors(top=1)
