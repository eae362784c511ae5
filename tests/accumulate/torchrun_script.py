"""What each process of test_ranks runs under torchrun: `torchrun ... torchrun_script.py whole|dies|resumed FOLDER`."""

import datetime
import os
import random
import sys
import time
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.curvature import symmetric
from tests.accumulate import test_reach

EXAMPLES = 1 + int(os.environ.get("HBP_EXAMPLES", "1"))
NAMES = ["grad", "variance", "second_moment", "diag_ggn", "kflr", "kfac", "diag_h_mc", "grad_histogram",
         "grad_histogram_2d"]
SOME_TOGETHER = hbp.Limits(message_bytes=1000)
"""Some tensors go together, and some alone."""


def setting(samples=11):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Dropout(0.3), nn.Flatten(),
                          nn.Linear(12, 3)).double()
    data = TensorDataset(torch.randn(samples, 2, 6, dtype=torch.float64), torch.randint(0, 3, (samples,)))
    return model, data


def flat(total):
    """Every number of a total."""
    found = {"loss": total.loss}
    for quantity in total:
        for name, value in total[quantity].items():
            for number, part in enumerate(value if isinstance(value, tuple) else [value]):
                if part is not None:
                    found[f"{quantity} {name} {number}"] = part
    if "kflr" in total:
        found["what curvature knows of the parameters"] = hbp.curvature(total.kflr).to_dense()
    return found


@cache
def compiled(model):
    return hbp.compile(model, None, NAMES, limits=SOME_TOGETHER)


def over(group, rank, world, model, data, **options):
    """The total of this group's shards; `data` may have fewer samples than there are ranks."""
    loader = DataLoader(hbp.shard(data, rank, world), batch_size=2)
    return hbp.accumulate(compiled(model), loader, group=group, progress=False, **options)


def any_cutting(group, rank, world, model, data, seed):
    """The total of all ranks, each with some of the samples, or none, in batches of any sizes and in any order."""
    dice, own_dice = random.Random(seed), random.Random(f"{seed}, rank {rank}")
    order = dice.sample(range(len(data)), len(data))
    ends = [0, *sorted(dice.randint(0, len(data)) for _ in range(world - 1)), len(data)]
    left, batches = order[ends[rank] : ends[rank + 1]], []
    while left:
        size = own_dice.randint(1, 4)
        batches.append((*data[left[:size]], torch.tensor(left[:size])))
        left = left[size:]
    return hbp.accumulate(compiled(model), batches, group=group, progress=False, prepare=lambda batch: batch[:2],
                          indices=lambda batch: batch[2])


def decomposed(total, group):
    """How many eigendecompositions this rank did, and all eigenvectors."""
    own, done = symmetric._eigh, []

    def counted(matrix, label):
        done.append(label)
        return own(matrix, label)

    symmetric._eigh = counted
    H = hbp.curvature(total.kflr, group=group)
    eigen = [part for block in H.blocks for matrix in block.symmetric_matrices for part in matrix.eigen]
    assert len(H.blocks) == 4
    root = H.power(-0.5, damping=0.1).to_dense()
    symmetric._eigh = own
    return len(done), eigen, root


def differing(total, group, rank):
    """What is said of matrices that are not the same on each rank."""
    own = {name: factors._replace(B=factors.B + rank) for name, factors in total.kflr.items()}
    try:
        hbp.curvature(own, dict(setting()[0].named_parameters()), group=group)
    except hbp.InputError as error:
        return str(error)
    return "nothing"


def unlike(group, rank, world, data):
    """What is said where one rank's model has other numbers, and another draws by another seed."""
    model = setting()[0]
    if rank == 2:
        torch.nn.init.zeros_(model[0].bias)
    try:
        over(group, rank, world, model, data, seed=7 if rank == 1 else 0)
    except hbp.InputError as error:
        return str(error)
    return "nothing"


def turning(group, rank):
    """Of batches of which the first rank's do not reach a layer."""
    model, batches = test_reach.setting()
    own = [[0], [2, 1], [3, 4]][rank]
    found = hbp.accumulate(hbp.compile(model, None, test_reach.NAMES), [batches[number] for number in own], group=group,
                           progress=False)
    try:
        hbp.accumulate(hbp.compile(model, None, ["grad_histogram"], verify=False), [batches[own[0]]], group=group,
                       progress=False)
    except hbp.InputError as error:
        return flat(found), str(error)
    return flat(found), "nothing"


def main(how, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model, data = setting()
    if how == "resumed":
        group, path = torch.distributed.group.WORLD, folder / "total.pt"
        over(group, rank, world, model, data, checkpoint=path, max_batches=1)
        found = [flat(over(group, rank, world, model, data, **options)) for options in ({"checkpoint": path}, {})]
        cuts = [flat(any_cutting(group, rank, world, model, data, seed)) for seed in range(EXAMPLES)]
        torch.save((*found, cuts), folder / f"rank{rank}.pt")
        torch.distributed.destroy_process_group()
        return
    everyone, two, one = torch.distributed.group.WORLD, *map(torch.distributed.new_group, ([0, 1], [2]))
    if how == "dies":
        torch.distributed.barrier()  # all are connected: what fails later is the accumulation
        if rank == 2:
            time.sleep(1)  # until the others have left the barrier, too
            os._exit(0)  # without a word: of another end torchrun itself would tell the others, by killing them
        try:
            over(everyone, rank, world, model, data)
        except hbp.HbpError as error:
            (folder / f"error{rank}").write_text(f"{type(error).__name__}: {error}")
        os._exit(0)  # the group is broken
    wrapped = DistributedDataParallel(model)
    totals = {3: over(everyone, rank, world, wrapped, data, checkpoint=folder / "total.pt")}
    totals["cut"] = any_cutting(everyone, rank, world, model, data, 2)
    if rank < 2:
        totals[2] = over(two, rank, 2, model, data)
        few = TensorDataset(*data[:1])
        totals["few"] = over(two, rank, 2, model, few, compensated=True)
    else:
        totals[1] = over(one, 0, 1, model, data)
    try:
        over(everyone, rank, world, model, [(torch.ones(1), 0)] * 3 if rank == 1 else data)
        text = "nothing"
    except hbp.HbpError as error:
        text = f"{type(error).__name__}: {error}"
    eigen = decomposed(totals[3], everyone)
    torch.save(({key: flat(total) for key, total in totals.items()}, text, eigen,
                differing(totals[3], everyone, rank), unlike(everyone, rank, world, data), turning(everyone, rank)),
               folder / f"rank{rank}.pt")
    torch.distributed.barrier()  # a rank that still waits for another's last word is aborted where that one is gone
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
