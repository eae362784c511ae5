"""What each process of test_ranks runs under torchrun: `torchrun ... torchrun_script.py whole|dies FOLDER`."""

import datetime
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp

NAMES = ["grad", "variance", "second_moment", "diag_ggn", "kflr"]


def setting(samples=11):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
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


def over(group, rank, world, model, data, **options):
    """The total of this group's shards; `data` may have fewer samples than there are ranks."""
    loader = DataLoader(hbp.shard(data, rank, world), batch_size=2)
    return hbp.accumulate(hbp.compile(model, None, NAMES), loader, group=group, progress=False, **options)


def main(how, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model, data = setting()
    everyone, two = torch.distributed.group.WORLD, torch.distributed.new_group([0, 1])
    if how == "dies":
        if rank == 2:
            os._exit(0)  # without a word: of another end torchrun itself would tell the others, by killing them
        try:
            over(everyone, rank, world, model, data)
        except hbp.HbpError as error:
            (folder / f"error{rank}").write_text(f"{type(error).__name__}: {error}")
        os._exit(0)  # the group is broken
    wrapped = DistributedDataParallel(model)
    totals = {3: over(everyone, rank, world, wrapped, data, checkpoint=folder / "total.pt")}
    if rank < 2:
        totals[2] = over(two, rank, 2, model, data)
        few = TensorDataset(*data[:1])
        totals["few"] = over(two, rank, 2, model, few)
    try:
        over(everyone, rank, world, model, [(torch.ones(1), 0)] * 3 if rank == 1 else data)
        text = "nothing"
    except hbp.HbpError as error:
        text = f"{type(error).__name__}: {error}"
    torch.save(({key: flat(total) for key, total in totals.items()}, text), folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
