"""Parameters that a preconditioner leaves alone."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.optim.models import chain, close, gradient, mean_loss, tokens
from tests.selection import few

CURVATURES = ["kflr", "kfra", "ekfac_exact", "diag_ggn", "blocks"]


@few(2, "further cases of one kind")
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("skip", [["0.*"], "2.bias", ["*.bias"]])
def test_skipped_parameters_keep_their_gradients_and_others_are_divided(curvature, skip):
    """By the same as if the skipped ones were frozen."""
    model, X, y = chain()
    own = gradient(model, mean_loss, X, y)
    pre = hbp.optim.Preconditioner(model, None, curvature, damping=0.3, skip=skip)
    pre.step(X, y)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    skipped = {"0.weight", "0.bias"} if skip == ["0.*"] else {"2.bias"} if skip == "2.bias" else {"0.bias", "2.bias"}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in skipped)
    frozen = hbp.optim.Preconditioner(model, None, curvature, damping=0.3)
    frozen.step(X, y)
    for name, parameter in model.named_parameters():
        close(found[name], own[name] if name in skipped else parameter.grad, name)
    assert not {name for block in pre.curvature().blocks for name in block.names} & skipped


def test_embeddings_and_norms_that_are_skipped_beside_factors():
    model, X, y = tokens()
    own = gradient(model, mean_loss, X, y)
    pre = hbp.optim.Preconditioner(model, None, "kflr", 0.3, skip=["embedding.*", "norm.*"], kl_clip=1e-6,
                                   update_every=2, invert_every=2)
    for _ in range(3):
        pre.step(X, y)
        for name in ("embedding.weight", "norm.weight", "norm.bias"):
            close(model.get_parameter(name).grad, own[name], name)
        assert model.first.weight.grad.norm() < 0.5 * own["first.weight"].norm()


def test_a_state_of_other_skipped_parameters_begins_anew():
    model, X, y = chain()
    known = hbp.optim.Preconditioner(model, None, "kflr", {"2.*": 0.3}, skip="0.*", update_every=4, invert_every=8)
    known.step(X, y)
    whole = hbp.optim.Preconditioner(model, None, "kflr", 0.3, update_every=4, invert_every=8)
    whole.load_state_dict(known.state_dict())
    whole.step(X, y)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    hbp.optim.Preconditioner(model, None, "kflr", 0.3).step(X, y)
    for name, parameter in model.named_parameters():
        close(found[name], parameter.grad, name)


def test_what_cannot_be_skipped():
    model = nn.Linear(3, 2)
    with pytest.raises(hbp.CompileError, match=r"skip: 'head\.\*' matches no parameter; there are weight, bias"):
        hbp.optim.Preconditioner(model, skip=["weight", "head.*"])
    with pytest.raises(hbp.CompileError, match="skip: no parameter is left"):
        hbp.optim.Preconditioner(model, skip="*")
    pre = hbp.optim.Preconditioner(model, skip="weight")
    model.bias.requires_grad_(False)
    with pytest.raises(hbp.CompileError, match="all parameters that are trainable now are among the skipped ones"):
        pre.step(torch.randn(4, 3), torch.zeros(4).long())
    assert model.weight.grad is None
