"""What a machine says of its free memory, from files as Linux writes them."""

import subprocess
import sys

import pytest
import torch

from hbpcompiler.compiler.cost import free_memory
from hbpcompiler.compiler.cost.free_memory import free_bytes
from tests.selection import slow

GIB = 2**30


def test_something_is_free_here_and_nothing_is_known_of_other_devices():
    free = free_bytes(torch.device("cpu"))
    assert free is None or 0 < free < 2**60
    assert free_bytes(torch.device("meta")) is None


def test_the_least_of_system_and_groups_counts(monkeypatch):
    monkeypatch.setattr(free_memory, "_free_in_system", lambda path: 8 * GIB)
    monkeypatch.setattr(free_memory, "_free_of_addresses", lambda: None)
    monkeypatch.setattr(free_memory, "_limited_groups", lambda: (1, 2))
    monkeypatch.setattr(free_memory, "_free_in_group", {1: 3 * GIB, 2: None}.get)
    monkeypatch.setattr(free_memory, "_arenas", lambda: None)  # no glibc
    assert free_bytes(torch.device("cpu")) == 3 * GIB


def test_available_memory_of_the_system(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  100 kB\nMemAvailable:     70 kB\n")
    assert free_memory._free_in_system(file) == 70 * 1024
    assert free_memory._free_in_system(tmp_path / "none") != 70 * 1024  # pages that are free, or nothing


def group(folder, limit, used, droppable, names=free_memory.GROUPS[0]):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip((*names[:2], "memory.stat"), (limit, used, f"anon 5\n{names[2]} {droppable}"), strict=True):
        (folder / name).write_text(f"{text}\n")


def test_limits_of_control_groups_of_both_versions(tmp_path):
    group(tmp_path, "max", 0, 0)
    group(tmp_path / "user", 1000, 700, 50)
    group(tmp_path / "user" / "job", "max", 0, 0)
    group(tmp_path / "memory", 2**63 - 4096, 0, 0, free_memory.GROUPS[1])
    group(tmp_path / "memory" / "box", 500, 600, 20, free_memory.GROUPS[1])
    folders = list(free_memory._group_folders(["4:cpu,memory:/box", "3:cpuset:/other", "0::/user/job"], tmp_path))
    assert folders == [tmp_path / "memory" / "box", tmp_path / "memory", tmp_path / "user" / "job", tmp_path / "user",
                       tmp_path]
    assert [free_memory._free_in_group(folder) for folder in folders] == [0, None, None, 350, None]


def test_what_was_freed_and_is_held_ready_counts_as_free():
    """Many blocks too small to be given back one by one."""
    blocks = [torch.ones(10_000) for _ in range(500)]
    before = free_memory.held_ready()
    del blocks[::2]
    freed = free_memory.held_ready() - before
    assert free_memory._arenas() is None or freed > 0.8 * 250 * 40_000


LIMITED = """
import resource
import torch
from torch import nn
import hbpcompiler as hbp
from hbpcompiler.compiler.cost.free_memory import free_bytes
cpu, model = torch.device("cpu"), nn.Linear(20_000, 2)
X, y = torch.randn(4, 20_000), torch.tensor([0, 1, 1, 0])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
most = used + 600 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(free_bytes(cpu) < 2**30)
try:
    hbp.compile(model, nn.CrossEntropyLoss(), quantities=["kflr"])(X, y)
except hbp.InputError as error:
    print("of memory that are free" in str(error))
"""


@slow("processes of their own")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_limit_of_a_process_counts_and_is_named_before_the_call():
    """`ulimit -v`, which torch's allocator would meet with a RuntimeError: a factor of 1.6 GB."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True"], done.stderr
