"""What each process of test_ranks runs: `python ranks_script.py RANK WORLD FOLDER`."""

import datetime
import os
import sys
from pathlib import Path

import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.curvature import symmetric

SAMPLES = 7
SIZES = {1: [(7,), (7,)], 2: [(5, 2), (0, 7)], 3: [(4, 2, 1), (5, 0, 2)]}
"""Samples of each rank at two steps."""
EVERY = {"update_every": 1, "invert_every": 1}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x):
        return self.main(x)


def tokens():
    """A mean over labels of which some are ignored, positions, dropout."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 5)).double()

    def loss(output, target):
        return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())

    y = torch.randint(5, (SAMPLES, 2))
    y[0, 0] = y[5] = -100
    return model, loss, torch.randn(SAMPLES, 2, 3).double(), y


def plain(reduction="mean"):
    loss = nn.CrossEntropyLoss(reduction=reduction)
    return Net().double(), loss, torch.randn(SAMPLES, 3).double(), torch.randint(2, (SAMPLES,))


def ignored():
    """The last ranks' labels are all ignored."""
    model, loss, X, y = plain()
    y[5:] = -100
    return model, loss, X, y


def dropped():
    """A sum over labels of which the last ranks' are all ignored."""
    _, loss, X, y = plain("sum")
    y[5:] = -100
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 2)).double(), loss, X, y


def preconditioned(curvature, **options):
    """A preconditioner with SGD, as an optimizer."""
    def made(model, loss):
        class Both(hbp.optim.Preconditioner):
            def step(self, *batch):
                found = super().step(*batch)
                torch.optim.SGD(model.parameters(), lr=0.1).step()
                return found

        return Both(model, loss, curvature, damping=0.3, **options)

    return made


CASES = {
    "kfac that adapts": (plain, lambda *given: hbp.optim.KFAC(*given, damping=0.3, adapt_every=1, reject=True, l2=0.1,
                                                              **EVERY)),
    "ekfac with dropout and ignored labels": (tokens, lambda *given: hbp.optim.EKFAC(*given, lr=0.1, damping=0.3,
                                                                                    momentum=0.5, **EVERY)),
    "empirical factors of a sum": (lambda: plain("sum"), preconditioned("kfac_emp", **EVERY)),
    "second moment of a sum": (lambda: plain("sum"), lambda *given: hbp.optim.Diagonal(
        *given, lr=0.1, damping=0.3, curvature="second_moment", update_every=1)),
    "whole blocks": (plain, preconditioned("blocks", **EVERY)),
    "block newton": (plain, lambda *given: hbp.optim.BlockNewton(*given, curvature="hessian", progress=0.0)),
    "factors where all labels are ignored": (ignored, lambda *given: hbp.optim.KFLR(
        *given, lr=0.1, damping=0.3, **EVERY)),
    "a diagonal where all labels are ignored": (ignored, lambda *given: hbp.optim.Diagonal(
        *given, lr=0.1, damping=0.3, curvature="diag_ggn", update_every=1)),
    "block newton where all labels are ignored": (ignored, lambda *given: hbp.optim.BlockNewton(
        *given, curvature="hessian", progress=0.0)),
    "kfra, which does not add up": (plain, lambda *given: hbp.optim.KFRA(*given, damping=0.3, adapt_every=1, **EVERY)),
    "kfra of a sum with dropout and ignored labels": (dropped, preconditioned("kfra", **EVERY)),
    "newton": (plain, lambda *given: hbp.optim.Newton(*given, damping=0.3, lr=0.5, top=5)),
}


def parts(sizes, rank):
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def run(optimizer, start, group, rank, sizes, X, y):
    """Two steps from the same beginning; losses and parameters."""
    optimizer._together.__init__(group)
    optimizer.load_state_dict(start[0])
    optimizer.model.load_state_dict(start[1])
    losses = []
    for each in sizes:
        own = parts(each, rank)
        losses.append(optimizer.step(X[own], y[own]))
    return torch.cat([torch.stack(losses), *(parameter.detach().flatten() for parameter in
                                             optimizer.model.parameters())])


def found_here(counted):
    """Counts the matrices whose eigenvectors or inverses are found here."""
    own, inverse = symmetric._eigh, symmetric.invert

    def eigh(matrix, label):
        counted.append(label)
        return own(matrix, label)

    def invert(matrix, shift, into):
        counted.append("inverse")
        return inverse(matrix, shift, into)

    symmetric._eigh, symmetric.invert = eigh, invert


def main(rank, world, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world,
                                         timeout=datetime.timedelta(seconds=120))
    groups = {size: torch.distributed.new_group(list(range(size))) for size in SIZES}
    found, counts = {}, []
    found_here(counts)
    for name, (setting, make) in CASES.items():
        torch.manual_seed(0)
        model, loss, X, y = setting()
        optimizer = make(model, loss)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        start = optimizer.state_dict(), state
        found[name, 0] = run(optimizer, start, None, 0, SIZES[1], X, y)
        for size, sizes in SIZES.items():
            if rank < size:
                counts.clear()
                found[name, size] = run(optimizer, start, groups[size], rank, sizes, X, y)
                found[name, size, "decompositions"] = len(counts)
        found[name, "bad batch"] = refusal(optimizer, start, groups[3], rank, X, y)
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.barrier()
    if rank == 1:
        os._exit(0)
    try:
        optimizer.step(X, y)
    except hbp.RankError as error:
        (folder / f"error{rank}").write_text(str(error))
    os._exit(0)


def refusal(optimizer, start, group, rank, X, y):
    """What is said where rank 1's batch does not fit; and whether the parameters are as they were."""
    optimizer._together.__init__(group)
    optimizer.load_state_dict(start[0])
    optimizer.model.load_state_dict(start[1])
    try:
        optimizer.step(X, y[:3] if rank == 1 else y)
    except hbp.HbpError as error:
        same = all(torch.equal(value, start[1][name]) for name, value in optimizer.model.state_dict().items())
        return f"{type(error).__name__}: {error}", same
    return "nothing", False


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
