"""Optimizers over the ranks of a group: three processes, groups of one, two and three, parts of unequal sizes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hbpcompiler as hbp
from tests.optim.models import chain
from tests.optim.ranks_script import CASES, SIZES
from tests.selection import slow

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("ranks_script.py")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of what three processes have found."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([sys.executable, str(SCRIPT), str(rank), "3", str(folder)], env=environment,
                                stderr=subprocess.PIPE, text=True) for rank in range(3)]
    try:
        for process in started:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in started:
            process.kill()
    return folder


@slow("three processes; accumulate/test_ranks.py has them for what ranks share")
def test_all_ranks_make_the_steps_of_one(written):
    """To rounding, whatever the parts are; and bit for bit the same on all ranks of a group."""
    found = [torch.load(written / f"rank{rank}.pt") for rank in range(3)]
    for name in CASES:
        alone = found[0][name, 0]
        assert alone.isfinite().all()
        for size in SIZES:
            for rank in range(size):
                torch.testing.assert_close(found[rank][name, size], alone, rtol=1e-9, atol=1e-12,
                                           msg=lambda text, at=(name, size, rank): f"{at}: {text}")
                assert torch.equal(found[rank][name, size], found[0][name, size]), (name, size, rank)


@slow("three processes; accumulate/test_ranks.py has them for what ranks share")
def test_inverses_are_shared_out(written):
    """Two layers with joint blocks, two factors each, at two steps: a block's are found by one rank."""
    found = [torch.load(written / f"rank{rank}.pt") for rank in range(3)]
    for size in SIZES:
        each = [found[rank]["empirical factors of a sum", size, "decompositions"] for rank in range(size)]
        assert sum(each) == 8
        assert sorted(filter(None, each)) == ([8] if size == 1 else [4, 4])


@slow("three processes; accumulate/test_ranks.py has them for what ranks share")
def test_a_bad_batch_on_one_rank_stops_all_and_changes_nothing(written):
    for rank in range(3):
        found = torch.load(written / f"rank{rank}.pt")
        for name in CASES:
            text, same = found[name, "bad batch"]
            assert same, name
            assert text.startswith("InputError: X has" if rank == 1 else "RankError: the step failed on other ranks")


@slow("three processes; accumulate/test_ranks.py has them for what ranks share")
def test_where_a_rank_is_gone_the_others_say_so(written):
    for rank in (0, 2):
        assert "waited for the others in vain" in (written / f"error{rank}").read_text()


def test_a_process_outside_of_the_group(monkeypatch):
    model, _, _ = chain()
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: -1)
    for make in (hbp.optim.KFAC, hbp.optim.Preconditioner, hbp.optim.Diagonal, hbp.optim.BlockNewton, hbp.optim.Newton):
        with pytest.raises(hbp.InputError, match="not in the group"):
            make(model, None, group=object())
