"""What a step takes beside the optimizer's state: one program's memory, and no more. By a count of all tensors, and by
the process's own memory."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.meter import Meter
from tests.selection import few, slow

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


@slow("a process of its own; by counts it is tested beside this")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux' counters of memory")
def test_steps_take_the_memory_of_one_program():
    """Averages and momenta are updated in place, and an inverse takes the place of the last one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                   "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=False, capture_output=True, text=True, env=environment,
                          timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    steps, program, inverse = map(int, done.stdout.split())
    told = f"MiB of steps, of a program by prediction, of an inverse: {steps >> 20}, {program >> 20}, {inverse >> 20}"
    assert 0.3 * program < steps < 1.15 * program, told
    assert inverse < 1.15 * program, told


EACH = {"update_every": 2, "invert_every": 4}
GIVEN = {"lr": 1e-5, "momentum": 0.9}
MAKES = {
    "KFAC": lambda model: hbp.optim.KFAC(model, **GIVEN, l2=1e-3, weight_decay=1e-3, norm_constraint=1e-2, **EACH),
    "KFAC by its model": lambda model: hbp.optim.KFAC(model, l2=1e-3, reject=True, adapt_every=2, **EACH),
    "KFLR by its model": lambda model: hbp.optim.KFLR(model, adapt_every=2, **EACH),
    "KFRA by its model": lambda model: hbp.optim.KFRA(model, adapt_every=2, **EACH),
    "KFAC, momentum by its model": lambda model: hbp.optim.KFAC(model, lr=1e-5, adapt_every=2, **EACH),
    "KFAC, damping by its model": lambda model: hbp.optim.KFAC(
        model, **GIVEN, adapt_damping=True, adapt_every=2, **EACH),
    "EKFAC": lambda model: hbp.optim.EKFAC(model, **GIVEN, **EACH),
    "damped": lambda model: hbp.optim.Diagonal(model, weight_decay=1e-3, update_every=2),
    "sophia": lambda model: hbp.optim.Diagonal(model, rule="sophia", update_every=2),
    "adahessian": lambda model: hbp.optim.Diagonal(model, rule="adahessian", curvature="diag_h_abs", update_every=2),
    "BlockNewton": lambda model: hbp.optim.BlockNewton(model, l2=1e-3, most_iterations=5),
    "Newton": lambda model: hbp.optim.Newton(model),
    "Preconditioner, exact": lambda model: hbp.optim.Preconditioner(model, split="exact", kl_clip=1e-3, **EACH),
    "Preconditioner, sums": lambda model: hbp.optim.Preconditioner(
        model, nn.CrossEntropyLoss(reduction="sum"), "second_moment", **EACH),
}


def largest_program(optimizer, samples):
    """Bytes, by prediction."""
    running = getattr(optimizer, "_running", None)
    programs = []
    for holder in filter(None, (optimizer, running, getattr(running, "programs", None))):
        for value in vars(holder).values():
            programs += value.values() if isinstance(value, dict) else [value]
    return max(program.predicted_memory(samples) for program in programs
               if hasattr(program, "predicted_memory") and program._last is not None)


def narrow():
    hidden = [layer for _ in range(3) for layer in (nn.Linear(100, 100), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Linear(100, 10)), torch.randn(64, 100)


def wide():
    """Few parameters and many samples: what a forward pass makes outweighs vectors of parameters."""
    return nn.Sequential(nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 10)), \
        torch.randn(256, 60)


def shallow():
    return nn.Sequential(nn.Linear(30, 60), nn.ReLU(), nn.Linear(60, 10)), torch.randn(512, 30)


def normed():
    """Of a norm torch's forward mode makes more tensors than of other layers: without the last hidden layer it would
    take 1.07 programs, without the last two more."""
    return nn.Sequential(nn.Linear(60, 60), nn.LayerNorm(60), nn.GELU(), nn.Linear(60, 60), nn.GELU(),
                         nn.Linear(60, 60), nn.GELU(), nn.Linear(60, 10)), torch.randn(256, 60)


def wide_inputs():
    """A factor that is most of a program."""
    return nn.Sequential(nn.Linear(700, 30), nn.Tanh(), nn.Linear(30, 10)), torch.randn(4, 700)


def convolution():
    """Its factor for each group is small, or its sides are longer than `largest_factor`: a diagonal."""
    return nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(),
                         nn.Flatten(), nn.Linear(64 * 4, 10)), torch.randn(2, 64, 4, 4)


BY_MODEL = ["KFAC by its model", "KFAC, momentum by its model", "KFAC, damping by its model", "KFRA by its model"]
@pytest.mark.parametrize("curvature", ["blocks", "blocks_mc"])
def test_updates_of_whole_blocks_take_no_more_than_one_program(curvature):
    """V enters the average of V V^T, which is not made beside it; steps that find inverses, in float64, are left out.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 10))
    X, y = torch.randn(64, 20), torch.randint(10, (64,))
    optimizer = hbp.optim.Preconditioner(model, None, curvature, update_every=2, invert_every=8)
    for _ in range(7):
        optimizer.step(X, y)
    gc.collect()
    with Meter() as meter:
        optimizer.step(X, y)
        optimizer.step(X, y)  # the inverse
        for _ in range(2):
            gc.collect()
            start = meter.peak = meter.held
            optimizer.step(X, y)
            growth = meter.peak - start
            assert meter.held <= start, "the state grows"
            assert growth <= largest_program(optimizer, len(X))
    matrix = optimizer.curvature()["0.weight"].matrix
    assert torch.equal(matrix, matrix.mT)


CASES = [(name, narrow) for name in MAKES] + [(name, wide) for name in BY_MODEL] + [
    (BY_MODEL[0], shallow), (BY_MODEL[0], normed)]


@few(1, "other optimizers and networks")
@pytest.mark.parametrize(("name", "network"), CASES)
def test_no_step_takes_more_than_one_program(name, network):
    """The most that tensors hold in a step beyond what they held before it: on steps that find the inverse or bring the
    curvature up to date, and on those between, whose largest part may be the quadratic model's forward passes."""
    torch.manual_seed(0)
    model, X = network()
    y = torch.randint(10, (len(X),))
    optimizer = MAKES[name](model)
    for _ in range(4):
        optimizer.step(X, y)
    growth = []
    gc.collect()
    gc.freeze()  # what other tests have left alive is not looked through at each step
    with Meter() as meter:
        for step in range(8):  # the first four leave what the meter has seen in the state
            gc.collect()
            start = meter.peak = meter.held
            optimizer.step(X, y)
            if step >= 4:
                growth.append(meter.peak - start)
                assert meter.held <= start, "the state grows"
    program = largest_program(optimizer, len(X))
    assert max(growth) <= program, f"{[round(each / program, 2) for each in growth]} of a program"
    assert max(growth) > 0.5 * program


def growth_of_an_inverse(optimizer, X):
    """Bytes, and what a program takes, and the numbers of the largest matrix."""
    y = torch.randint(10, (len(X),))
    for _ in range(4):
        optimizer.step(X, y)
    gc.collect()
    with Meter() as meter:
        for _ in range(4):  # what the meter has not seen being made it does not count as given up
            optimizer.step(X, y)
        gc.collect()
        start = meter.peak = meter.held
        optimizer.step(X, y)
        growth = meter.peak - start
    largest = max(tensor.numel() for block in optimizer.curvature().blocks for name, tensor in block.tensors.items()
                  if name in ("A", "B"))
    return growth, largest_program(optimizer, len(X)), largest


@pytest.mark.parametrize("split", ["pi", "exact"])
@pytest.mark.parametrize("network", [wide_inputs, convolution, narrow])
def test_an_inverse_takes_no_more_than_one_program(network, split):
    """Where the damping is shared by the factors, and of diagonals; eigenvectors take four float64 matrices more, of
    which LAPACK's own two are not counted here."""
    torch.manual_seed(0)
    model, X = network()
    optimizer = hbp.optim.KFAC(model, **GIVEN, update_every=4, invert_every=4, split=split, largest_factor=1000)
    growth, program, largest = growth_of_an_inverse(optimizer, X)
    assert growth <= program + (0 if split == "pi" else 2 * 8 * largest)


def test_bases_are_given_up_before_new_ones_are_found():
    torch.manual_seed(0)
    model, X = wide_inputs()
    optimizer = hbp.optim.EKFAC(model, **GIVEN, update_every=4, invert_every=4)
    growth, program, largest = growth_of_an_inverse(optimizer, X)
    assert growth <= program + 2 * 8 * largest


def test_bases_are_looked_at_in_pieces():
    """Whether they are orthonormal, at each update: a copy in float64 would be twice a program."""
    torch.manual_seed(0)
    model, X = wide_inputs()
    y = torch.randint(10, (len(X),))
    optimizer = hbp.optim.EKFAC(model, **GIVEN, update_every=1, invert_every=100)
    for _ in range(3):
        optimizer.step(X, y)
    gc.collect()
    with Meter() as meter:
        for _ in range(2):  # the first leaves what the meter has seen in the state
            gc.collect()
            start = meter.peak = meter.held
            optimizer.step(X, y)
    assert 0.5 * largest_program(optimizer, len(X)) < meter.peak - start <= largest_program(optimizer, len(X))
