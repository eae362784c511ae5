"""What each process of a test runs under torchrun: `torchrun ... torchrun_script.py FOLDER`."""

import datetime
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.bridges.influence import scores, self_scores


def setting():
    """A model, training data and a batch of queries."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
    data = TensorDataset(torch.randn(7, 2, 6).double(), torch.randint(3, (7,)))
    return model, data, [(torch.randn(2, 2, 6).double(), torch.tensor([0, 2]))]


def found(model, queries, loader, **options):
    """Scores of pairs and of samples themselves, with a curvature of ones."""
    train = hbp.compile(model, quantities=["grad"])
    H = hbp.curvature({name: torch.ones_like(parameter).detach() for name, parameter in train.model.named_parameters()},
                      train.model)
    options |= {"damping": 0.5, "progress": False}
    pairs = scores(H, train, queries, train, loader, **options).values
    return pairs, self_scores(H, train, loader, **{**options, "checkpoint": None}).values


def main(folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model, data, queries = setting()
    everyone = torch.distributed.group.WORLD
    loader = DataLoader(hbp.shard(data, rank, world), batch_size=2)
    values = found(DistributedDataParallel(model), queries, loader, group=everyone, checkpoint=folder / "scores")
    try:
        found(model, queries, [] if rank == 0 else [(torch.ones(1), 0)], group=everyone)
        text = "nothing"
    except hbp.HbpError as error:
        text = f"{type(error).__name__}: {error}"
    torch.save((values, text), folder / f"rank{rank}.pt")
    torch.distributed.barrier()  # nobody leaves while another still reads what it sent
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
