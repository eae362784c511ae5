"""Processes started by torchrun, each with its shard: all get the totals of one process that has all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hbpcompiler as hbp
from tests.accumulate import test_reach
from tests.accumulate.torchrun_script import NAMES, flat, setting
from tests.selection import cases, slow

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("torchrun_script.py")


def torchrun(how, folder, ranks=3):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone", str(SCRIPT),
               how, str(folder)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, env=environment())


def environment():
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@slow("three processes of their own, half a minute")
@pytest.mark.filterwarnings("ignore::hbpcompiler.errors.UnusedParametersWarning",
                            "ignore::hbpcompiler.errors.LengthsWarning")
def test_ranks_with_unequal_shards_give_what_one_process_gives(tmp_path):
    done = torchrun("whole", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    check_whole(tmp_path)


@pytest.mark.parametrize("ranks", cases([1, 2], [], "three ranks have groups of two and of one"))
def test_one_rank_and_two_by_themselves(tmp_path, ranks):
    """A run of torchrun each; they stop in the middle, and go on from their own checkpoints; any cutting is the same.
    """
    done = torchrun("resumed", tmp_path, ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    model, data = setting()
    right = flat(hbp.accumulate(hbp.compile(model, None, NAMES), [data[:]], progress=False))
    for rank in range(ranks):
        found, uninterrupted, cuts = torch.load(tmp_path / f"rank{rank}.pt")
        assert list(found) == list(right)
        for cut in cuts:
            for name, value in right.items():
                torch.testing.assert_close(cut[name], value, msg=lambda text, at=name: f"{at}: {text}")
        for name, value in right.items():
            torch.testing.assert_close(found[name], value, msg=lambda text, at=name: f"{at}: {text}")
            assert torch.equal(found[name], uninterrupted[name]), name


def check_whole(folder):
    """What three ranks have written who had a shard each."""
    model, data = setting()
    compiled = hbp.compile(model, None, NAMES)
    total = hbp.accumulate(compiled, [data[:]], progress=False)
    whole = flat(total)  # sampled quantities and dropout, too
    one = flat(hbp.accumulate(compiled, [data[:1]], progress=False))
    root = hbp.curvature(total.kflr).power(-0.5, damping=0.1).to_dense()
    model, batches = test_reach.setting()
    turning = flat(hbp.accumulate(hbp.compile(model, None, test_reach.NAMES), batches, progress=False))
    done = []
    for rank in range(3):
        totals, text, (count, eigen, own_root), *more = torch.load(folder / f"rank{rank}.pt")
        differences, unlike, (turned, counts) = more
        done.append((count, eigen))
        torch.testing.assert_close(own_root, root)
        assert "the matrices of rank 1, rank 2 are not those of rank 0" in differences
        assert "rank 1: seed: 0 here, 7 there" in unlike
        assert "rank 2: the parameters' or buffers' numbers are others" in unlike
        assert "some batches reach long.bias, long.weight, and some do not" in counts
        for name, value in turning.items():
            torch.testing.assert_close(turned[name], value, msg=lambda text, at=name: f"{at}: {text}")
        assert set(totals) == ({3, "cut", 2, "few"} if rank < 2 else {3, "cut", 1})
        for key, total in totals.items():
            right = one if key == "few" else whole
            assert list(total) == list(right)
            for name, value in right.items():
                torch.testing.assert_close(total[name], value, msg=lambda text, at=(key, name): f"{at}: {text}")
        if rank == 1:
            assert text.startswith("InputTypeError: batch 0 of the loader")
        else:
            assert text.startswith("RankError: accumulation failed on other ranks:")
            assert "rank 1: InputTypeError: batch 0" in text
    assert sum(count for count, _ in done) == 6  # two factors of each weight, a block of each bias
    assert all(count for count, _ in done)
    for _, eigen in done:
        assert all(torch.equal(own, first) for own, first in zip(eigen, done[0][1], strict=True))
    assert sorted(path.name for path in folder.glob("total.pt*")) == [f"total.pt.rank{rank}" for rank in range(3)]


@slow("three processes for one error")
def test_where_a_rank_dies_the_others_say_so_and_stop(tmp_path):
    done = torchrun("dies", tmp_path)
    for rank in (0, 1):
        assert (tmp_path / f"error{rank}").exists(), done.stderr[-3000:]
        assert f"RankError: rank {rank} waited for the others in vain" in (tmp_path / f"error{rank}").read_text()


def test_a_process_outside_of_the_group(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: -1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: -1)
    with pytest.raises(hbp.InputError, match="not in the group"):
        hbp.accumulate(hbp.compile(torch.nn.Linear(2, 2), None, ["grad"]), [], group=object())
