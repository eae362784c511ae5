"""The rows of an expert, and its places among several, as people spell them."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.agreement import agree
from tests.models.test_rows_by_themselves import agrees_at_all_masks
from tests.selection import few

QUANTITIES = ["grad", "batch_grad", "diag_ggn", "diag_h"]


def the_only(rows):
    (found,) = rows
    return found


ROWS = [
    [lambda m: m.nonzero().T[0], lambda m: m.nonzero().t()[0], lambda m: m.nonzero().transpose(0, 1)[0],
     lambda m: m.nonzero().mT[0], lambda m: m.nonzero().unbind(1)[0], lambda m: the_only(m.nonzero().unbind(-1)),
     lambda m: m.nonzero().split(1, 1)[0].squeeze(1)],
    [lambda m: torch.arange(len(m))[m], lambda m: torch.arange(m.shape[0]).masked_select(m),
     lambda m: torch.arange(0, m.size(0))[m.nonzero().squeeze(-1)], lambda m: m.nonzero()[:, :1].flatten(),
     lambda m: m.nonzero().narrow(1, 0, 1).squeeze(1), lambda m: torch.nonzero(m).squeeze(1).detach().clone(),
     lambda m: m.nonzero().T.flatten(), lambda m: the_only(m.nonzero().T)],
]


def by_rows(spellings):
    def meet(h, mask, expert):
        out = torch.zeros_like(h)
        for spelling in spellings:
            rows = spelling(mask)
            out = out.index_add(0, rows, expert(h[rows]))
        return out

    return meet


def behind_one(h, mask, expert):
    rows = torch.where(mask)[0]
    out = torch.zeros_like(h).index_add_(0, rows, expert(h[None, rows].reshape(-1, h.shape[-1])))
    return out.index_add(0, rows, expert(h[None, rows].squeeze(0)) + expert(h.unsqueeze(0)[:, rows].view(-1, 4))
                         + expert(h[None, rows][0]))


def element_by_element(h, mask, expert):
    picked = h.masked_select(mask[..., None]).view(-1, h.shape[-1])
    out = torch.zeros_like(h).masked_scatter(mask[..., None], expert(picked))
    wide = mask.unsqueeze(-1).expand_as(h)
    out = out + h.masked_scatter(wide, expert(h[wide].tanh().view(-1, 4)))
    again = h.clone()
    again[wide] = expert(torch.masked_select(h, wide).reshape(-1, 4)).view(-1)
    third = torch.zeros_like(h)
    third[mask] = expert(h.masked_select(mask.unsqueeze(-1)).view(-1, 4)) * h[mask]
    return out + again + third + h.masked_scatter(mask[..., None], expert(h[mask]))


class Sparse(nn.Module):
    def __init__(self, meet):
        super().__init__()
        self.first, self.gate, self.head = nn.Linear(3, 4), nn.Linear(3, 1).requires_grad_(False), nn.Linear(4, 2)
        self.expert, self.meet = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), meet

    def forward(self, x):
        return self.head(self.meet(torch.tanh(self.first(x)), self.gate(x)[..., 0] > 0, self.expert))


@few(4, "further cases of one kind")
@pytest.mark.parametrize(("meet", "shape"), [(by_rows(ROWS[0]), ()), (by_rows(ROWS[1]), ()), (behind_one, ()),
                                             (element_by_element, ()), (element_by_element, (3,))])
def test_rows(meet, shape):
    torch.manual_seed(0)
    model = Sparse(meet).double()
    agrees_at_all_masks(model, QUANTITIES, shape)


class Mixture(nn.Module):
    """Mixtral's block of transformers 4, with other spellings of a row and its slot."""

    def __init__(self, places):
        super().__init__()
        self.gate, self.places = nn.Linear(3, 4, bias=False), places
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(3, 2), nn.SiLU(), nn.Linear(2, 3)) for _ in range(4))

    def forward(self, x):
        weights, choice = self.gate(x).softmax(-1).topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for mask, expert in zip(nn.functional.one_hot(choice, 4).permute(2, 1, 0), self.experts, strict=True):
            slots, rows = self.places(mask)
            state = expert(x[None, rows].reshape(-1, 3)) * weights[rows, slots, None]
            out.index_add_(0, rows, state.to(x.dtype))
        return torch.tanh(out)


@few(2, "further cases of one kind")
@pytest.mark.parametrize("places", [torch.where, lambda mask: mask.nonzero().T, lambda mask: mask.nonzero().unbind(1),
                                    lambda mask: [part[:, 0] for part in mask.nonzero().split(1, dim=1)]])
def test_places(places):
    torch.manual_seed(0)
    model = Mixture(places).double()
    compiled = hbp.compile(model, nn.MSELoss(), QUANTITIES, verify="full")
    for size in (5, 1, 3):
        x, y = torch.randn(2, size, 3, dtype=torch.float64)
        agree(compiled(x, y), model, nn.MSELoss(), [x], y)
        with torch.no_grad():  # another choice, and an expert whom nobody chooses
            model.gate.weight.neg_()[2] -= 5 * model.gate.weight[0]


@pytest.mark.parametrize("meet", [
    lambda h, m, e: h.masked_scatter(m[..., None], h.masked_select(m[..., None]).view(-1, 2).cumsum(1)),
    lambda h, m, e: h.masked_scatter(h > 0, h[h > 0].view(-1, 4)),
    lambda h, m, e: h.index_add(0, (torch.arange(len(m)) - 1)[m], h[m]),
    lambda h, m, e: h.index_add(0, (torch.where(m)[0] - 1).clamp(min=0), h[m]),
    lambda h, m, e: h.index_add(0, torch.where(m)[0] // 2, h[m]),
    lambda h, m, e: h.index_add(0, torch.where(m)[0].flip(0), h[m]),
    lambda h, m, e: h.index_add(0, torch.where(m)[0].roll(1), h[m]),
    lambda h, m, e: h + h[torch.zeros_like(torch.where(m)[0])].sum(0),
    lambda h, m, e: h + h[~torch.where(m)[0]].sum(0),
    lambda h, m, e: h + h[m.nonzero()[0]].sum(0),
    lambda h, m, e: h + h[m.nonzero().argmax(1)].sum(0),
    lambda h, m, e: h.index_add(0, torch.arange(1, len(m) + 1)[m] - 1, h[m]),
    lambda h, m, e: h.masked_scatter((h[:, :1] > 0), e(h[m])),
    lambda h, m, e: h.masked_scatter(m[..., None], h[m] * h[:len(h[m])]),
    lambda h, m, e: h.masked_scatter(m[..., None], h[m] * h.narrow(0, 0, len(h[m]))),
    lambda h, m, e: h.masked_scatter(m[..., None], h[m] * h[-len(h[m]):]),
    lambda h, m, e: h.masked_scatter(m[..., None], h[m] * h[:1].expand(len(h[m]), -1)),
    lambda h, m, e: h.masked_scatter(m[..., None], h[m] + torch.eye(len(h[m]), 4)),
    lambda h, m, e: h + (h[None, torch.where(m)[0]] * 2).sum(1)])
def test_other_places_than_the_rows_own_are_refused(meet):
    torch.manual_seed(0)
    with pytest.raises(hbp.HbpError):
        hbp.compile(Sparse(meet).double(), nn.MSELoss(), ["grad"], verify=False)(
            torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64))
