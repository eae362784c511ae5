"""EKFAC over ranks, each with its shard, is that of one process that has all."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hbpcompiler as hbp
from tests.accumulate.test_ranks import environment
from tests.accumulate.torchrun_script import setting
from tests.ekfac.torchrun_script import OPTIONS
from tests.selection import slow

SCRIPT = Path(__file__).with_name("torchrun_script.py")


@slow("three processes, each with its programs; one rank in a group runs always")
def test_ranks_give_what_one_process_gives(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3", "--standalone", str(SCRIPT),
               str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    model, data = setting()
    whole = hbp.ekfac(model.eval(), None, [data[:]], **OPTIONS).to_dense()
    vectors = []
    for rank in range(3):
        (first, B), (again, _) = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(first, whole)
        assert torch.equal(again, first)
        vectors.append(B)
    assert all(torch.equal(B, vectors[0]) for B in vectors)
    assert {path.name for path in tmp_path.glob("run.*")} == {
        f"run.{part}.rank{rank}" for part in ("factors", "bases", "eigenvalues") for rank in range(3)}


def test_one_rank_in_a_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model, data = setting(5)
        options = {**OPTIONS, "parameters": ["4.*"]}
        whole = hbp.ekfac(model.eval(), None, [data[:]], **options).to_dense()
        group = torch.distributed.group.WORLD
        H = hbp.ekfac(model, None, [data[:2], data[2:]], group=group, checkpoint=tmp_path / "run", **options)
        torch.testing.assert_close(H.to_dense(), whole)
        (tmp_path / "run.bases.rank0").write_bytes(b"damaged")
        words = r"run.bases.rank0 is no file of hbpcompiler's, or it is damaged"
        with pytest.raises(hbp.InputError, match=words):
            hbp.ekfac(model, None, [data[:2], data[2:]], group=group, checkpoint=tmp_path / "run", **options)
    finally:
        torch.distributed.destroy_process_group()
