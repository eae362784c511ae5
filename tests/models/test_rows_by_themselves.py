"""What experts do with each of the rows that a mask picks: torch's own code often asks how many there are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from tests.agreement import agree
from tests.selection import few

QUANTITIES = ["grad", "batch_grad", "diag_ggn", "diag_h"]
ORDER = torch.tensor([2, 0, 3, 1])
WEIGHT = torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4)


def zeros_beside(r):
    buffer = torch.zeros(len(r), 4, dtype=r.dtype)
    buffer[:, :2] = r[:, 2:] * r[:, :2]
    buffer[:, 3] = r[:, 0]
    return buffer


def paired(r):
    even, odd = r[..., 0::2], r[..., 1::2]
    return torch.stack((even * 0.3 - odd * 0.5, even * 0.5 + odd * 0.3), -1).flatten(-2)


def gated(r):
    left, middle, right = torch.split(r, [1, 2, 1], 1)
    return torch.cat([right.sigmoid() * left, middle, left], -1)


def attended(r):
    heads = r.view(-1, 2, 2)
    return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).reshape(-1, 4)


TOGETHER = {
    "along features": [
        lambda r: r * torch.cat([-r[:, 2:], r[:, :2]], -1), lambda r: torch.cat([r[:, :3], r[:, :1] ** 2], 1), gated,
        lambda r: torch.stack([r[:, 0], r[:, 2] * r[:, 1], r[:, 3], r[:, 1]], 1), paired,
        lambda r: torch.column_stack([r[:, 0], r[:, 1:]]) * r,
        lambda r: torch.cat([r[:, None], r[:, None] ** 2], 1).mean(1), lambda r: r.roll(1, 1) * r],
    "of picked features": [
        lambda r: r[:, [2, 0, 1, 3]] * r, lambda r: r[:, ORDER] ** 2, lambda r: r.index_select(1, ORDER) * r,
        lambda r: r[..., torch.arange(3, -1, -1)] * r, lambda r: r.gather(1, ORDER.expand(len(r), -1)) ** 2,
        lambda r: r.flip(1) * r],
    "padded and reduced": [
        lambda r: F.pad(r[:, :3], (1, 0)) ** 2, lambda r: F.pad(r, (-1, 1), value=1.5) * r,
        lambda r: r - r.logsumexp(1, keepdim=True), lambda r: r * torch.logsumexp(r, 1)[:, None],
        lambda r: F.pad(r[:, None], (1, 1), mode="circular")[:, 0, 1:-1] * r],
    "seen otherwise": [
        lambda r: r.view(-1, 2, 2).transpose(1, 2).reshape(-1, 4) * r, attended,
        lambda r: r.unflatten(1, (2, 2)).permute(0, 2, 1).reshape(len(r), 4) ** 2,
        lambda r: r.view(r.shape[0], 2, 2).mT.flatten(1) ** 2],
    "times matrices": [
        lambda r: torch.einsum("bi,oi->bo", r, WEIGHT), lambda r: torch.einsum("...i,oi,...o->...i", r, WEIGHT, r),
        lambda r: torch.einsum("bi,bj->bij", r, r).sum(2), lambda r: r @ WEIGHT * torch.inner(r, WEIGHT),
        lambda r: torch.tensordot(r, WEIGHT, dims=([1], [0])), lambda r: torch.bmm(r[:, None], r[:, :, None])[:, 0] * r,
        lambda r: (r[:, :, None] * r[:, None]).tril().sum(2), lambda r: F.max_pool1d(r[:, None], 2).tile(1, 1, 2)[:, 0],
        lambda r: r * F.one_hot((r[:, 0] > 0).long() * 2, 4), lambda r: F.glu(torch.cat([r, r], 1), 1)],
    "with as many constants": [
        lambda r: torch.cat([r[:, :3], torch.ones(len(r), 1, dtype=r.dtype)], 1) * r, zeros_beside,
        lambda r: torch.cat([r[:, :2] ** 2, r.new_zeros(r.shape[0], 1), r.new_full((r.size(0), 1), 2.0)], -1),
        lambda r: r * torch.tensor([1.0, 2.0], dtype=r.dtype).expand(len(r), -1).repeat(1, 2)],
}


class Expert(nn.Module):
    """Some samples, or positions of them, meet a network, the sum of these functions."""

    def __init__(self, functions):
        super().__init__()
        self.first, self.gate, self.head = nn.Linear(3, 4), nn.Linear(3, 1).requires_grad_(False), nn.Linear(4, 2)
        self.functions = functions

    def forward(self, x):
        h, mask = torch.tanh(self.first(x)), self.gate(x)[..., 0] > 0
        out, picked = torch.zeros_like(h), h[mask]
        out[mask] = sum(function(picked) for function in self.functions)
        return self.head(out)


def agrees_at_all_masks(model, quantities, shape):
    """Where the model's `gate` lets some rows through, all, or none."""
    compiled = hbp.compile(model, nn.MSELoss(), quantities, verify="full")
    for size, bias in ((6, 0.0), (1, 0.1), (4, 9.0), (1, 9.0), (3, -9.0), (1, -9.0)):
        model.gate.bias.data.fill_(bias)
        x = torch.randn(size, *shape, 3, dtype=torch.float64)
        y = torch.randn(size, *shape, 2, dtype=torch.float64)
        agree(compiled(x, y), model, nn.MSELoss(), [x], y)


@few(3, "further cases of one kind")
@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("kind", TOGETHER)
def test_rows_meet_an_expert(kind, shape):
    torch.manual_seed(0)
    model = Expert(TOGETHER[kind]).double()
    agrees_at_all_masks(model, QUANTITIES, shape)


def of_positions(o, y):
    kept = y[:, 0] >= 0
    return F.cross_entropy(o[kept].mT, y[kept])


def of_positions_with_weights(o, y):
    kept = y[:, 0] >= 0
    return F.cross_entropy(o[kept].mT, y[kept], torch.tensor([1.0, 2.0, 0.5], dtype=o.dtype), label_smoothing=0.1)


def of_each_position(o, y):
    kept = y[:, 0] >= 0
    return F.cross_entropy(o[kept].mT, y[kept], reduction="none").square().sum(1).mean()


def of_probabilities(o, y):
    kept = y >= 0
    return F.cross_entropy(o[kept], F.one_hot(y[kept], 3).to(o.dtype))


def of_sums_of_exponentials(o, y):
    kept = y[:, 0] >= 0
    return o[kept].logsumexp((1, 2)).mean() + torch.logsumexp(o[kept], 1).square().mean()


def of_columns(o, y):
    kept = y >= 0
    return torch.cat([o[kept], o[kept] ** 2], 1).mean()


@few(2, "further cases of one kind")
@pytest.mark.parametrize("loss", [of_positions, of_positions_with_weights, of_each_position, of_probabilities,
                                  of_sums_of_exponentials, of_columns])
def test_losses_of_rows(loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    compiled = hbp.compile(model, loss, QUANTITIES, verify="full")
    x = torch.randn(5, 3, 2, dtype=torch.float64)
    y = torch.tensor([[0, 1, -100], [-100, 2, 1], [1, 1, 0], [0, -100, 2], [2, 2, 0]])
    for X, labels in ((x, y), (x[2:3], y[2:3]), (x[:3], y[:3].clamp(min=0))):
        agree(compiled(X, labels), model, loss, [X], labels)
    none = compiled(x, torch.full_like(y, -100))
    assert none.loss.isnan()
    assert not any(slope.any() for slope in none.grad.values())


@pytest.mark.parametrize("function", [
    lambda r: r * int(len(r) > 2), lambda r: r if len(r) > 2 else 2 * r, lambda r: r * (len(r) > 2),
    lambda r: r * any([len(r) > 2]), lambda r: r * {True: 1, False: 2}[r.numel() == 4],
    lambda r: F.dropout(r, 0.0, training=len(r) > 2), lambda r: r * [1, 2][r.shape[0] == 1],
    lambda r: r.roll(1) * r, lambda r: r.roll((1, 1), (0, 1)), lambda r: torch.cat([r[1:], r[:1]]),
    lambda r: torch.cat([r, r])[: len(r)], lambda r: torch.stack([r, r]).mean(0), lambda r: r - r.logsumexp(0),
    lambda r: F.batch_norm(r, None, None, training=True), lambda r: r + torch.arange(len(r))[:, None],
    lambda r: r.view(-1, 8).flip(1).view(-1, 4), lambda r: (r[:, None] * r).sum(1), lambda r: r @ r.T @ r,
    lambda r: r.flatten().cumsum(0).view(-1, 4), lambda r: F.pad(r, (0, 0, 1, -1)), lambda r: r.T.softmax(0).T])
def test_what_becomes_of_how_many_rows_there_are_is_refused(function):
    torch.manual_seed(0)
    with pytest.raises(hbp.HbpError):
        hbp.compile(Expert([function]).double(), nn.MSELoss(), ["grad"], verify=False)(
            torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64))


@pytest.mark.parametrize("both", [lambda a, b: torch.cat([a, b], 1), lambda a, b: a * b,
                                  lambda a, b: torch.stack([a, b], 1)])
def test_rows_of_two_masks_beside_each_other_are_refused(both):
    def loss(o, y):
        return both(o[y > 0], o[y < 0]).square().mean()

    with pytest.raises(hbp.HbpError):
        hbp.compile(nn.Linear(2, 3).double(), loss, ["grad"], verify=False)(
            torch.randn(4, 2, dtype=torch.float64), torch.tensor([1, 1, -1, -1]))


def by_places(r):
    return r[(r[:, 0] > 0).nonzero(as_tuple=True)[0]].sort(0).values.sum(0) * r


def padded_rows(r):
    return F.pad(r, (1, 0, 1, 0))[1:, :4]


def normed(r):
    return F.batch_norm(r, None, None, training=True)


AMONG_ROWS = [
    lambda r: F.pad(r.detach(), (0, 0, 1, -1)) * r, lambda r: r * torch.ones(len(r), 4, dtype=r.dtype).tril(),
    lambda r: F.scaled_dot_product_attention(r.detach(), r.detach(), r.detach()) * r,
    lambda r: F.embedding((r[:, 0] > 2).long(), r.detach()) * r, lambda r: F.pad(r[None], (0, 0, 1, -1))[0] * r,
    lambda r: r.detach().take((r[:, 0] > 0).long())[:, None] * r, lambda r: r * torch.isin(r, r[:, 1]),
    lambda r: r * torch.bucketize(r[:, 0].detach(), r[:, 1].detach())[:, None], lambda r: r * r.detach().median(),
    lambda r: torch.einsum("bi,ci->bi", r, r.detach()), lambda r: torch.einsum("bi,bj->ij", r, r)[:1] * r,
    lambda r: torch.zeros(8, 4, dtype=r.dtype).gather(1, (r > 0).long()) * r, lambda r: r * r.inner(r).sum(1)[:, None],
    lambda r: r * torch.cdist(r.detach(), r.detach()).mean(1, keepdim=True)]


@pytest.mark.parametrize("function", AMONG_ROWS)
def test_what_works_among_rows_is_refused(function):
    torch.manual_seed(0)
    with pytest.raises(hbp.HbpError):
        hbp.compile(Expert([function]), nn.MSELoss(), ["grad"], verify=False)(torch.randn(6, 3), torch.randn(6, 2))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_batch_norm_with_statistics_from_before(shape):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4).double()
    model = Expert([norm, lambda r: r.abs()]).double()
    model.norm = norm
    norm(torch.randn(8, 4, dtype=torch.float64))
    agrees_at_all_masks(model.eval(), QUANTITIES, shape)


NAMES = [(by_places, "- nonzero in", "numpy"), (padded_rows, "- pad in", "in place"),
         (normed, "- batch_norm in", "native")]


@pytest.mark.parametrize(("function", "names", "not_named"), NAMES)
def test_refusals_name_what_the_user_wrote(function, names, not_named):
    torch.manual_seed(0)
    model = Expert([function])
    model.gate.bias.data.fill_(9)  # a batch norm in train mode needs two rows in the run before tracing
    with pytest.raises(hbp.HbpError, match="depends on values") as error:
        hbp.compile(model, nn.MSELoss(), ["grad"])(torch.randn(6, 3), torch.randn(6, 2))
    assert names in str(error.value)
    assert not_named not in str(error.value)
    assert "test_rows_by_themselves.py" in str(error.value)
