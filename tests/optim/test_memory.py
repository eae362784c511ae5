"""What a step takes beside the optimizer's state, in a fresh process: one program's memory, and no more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import ctypes, gc
import torch
from torch import nn
import hbpcompiler as hbp

torch.set_num_threads(1)


def kilobytes(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1])


def growth(steps):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")
    start = kilobytes("VmRSS")
    for _ in range(steps):
        optimizer.step(X, y)
    return 1024 * (kilobytes("VmHWM") - start)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10))
X, y = torch.randn(64, 1000), torch.randint(10, (64,))
optimizer = hbp.optim.KFAC(model, None, lr=1e-5, momentum=0.9, damping=1.0, update_every=2, invert_every=8)
for _ in range(3):
    optimizer.step(X, y)
program = next(iter(optimizer._running.programs._with_curvature.values()))
print(growth(5), program.predicted_memory(64), growth(1))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux' counters of memory")
def test_steps_take_the_memory_of_one_program():
    """Averages and momenta are updated in place. An inverse takes, for a while, one block's matrices in float64."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                   "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=False, capture_output=True, text=True, env=environment,
                          timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    steps, program, inverse = map(int, done.stdout.split())
    told = f"MiB of steps, of a program by prediction, of an inverse: {steps >> 20}, {program >> 20}, {inverse >> 20}"
    assert 0.3 * program < steps < 1.15 * program, told
    assert inverse < program + 4 * 8 * 1001**2, told
