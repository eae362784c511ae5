"""What each process of test_ranks runs under torchrun: `torchrun ... torchrun_script.py FOLDER`."""

import datetime
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import hbpcompiler as hbp
from tests.accumulate.torchrun_script import setting

OPTIONS = {"columns": "sampled", "progress": False, "mc_samples": 2}


def main(folder):
    """Two passes over this rank's shard, then once more from the files."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model, data = setting()
    found = []
    for _ in range(2):
        loader = DataLoader(hbp.shard(data, rank, world), batch_size=2)
        H = hbp.ekfac(model.eval(), None, loader, group=torch.distributed.group.WORLD, checkpoint=folder / "run",
                      **OPTIONS)
        found.append((H.to_dense(), H["0.weight"].B))
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
