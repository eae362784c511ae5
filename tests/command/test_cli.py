"""The command `hbp`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import hbpcompiler as hbp
from hbpcompiler.command.cli import main
from tests.selection import slow

NETWORK = '''
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 3))

class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))

class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 2), nn.Linear(5, 2)

    def forward(self, x, z):
        return self.left(x) + self.right(z)

ready = Mlp()
norm = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
words = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(16, 3))
number = 3

def broken():
    raise OSError("no weights here")

def nothing():
    return None
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with a module `hbpnets` in it."""
    (tmp_path / "hbpnets.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [item for item in sys.path if item])
    monkeypatch.delitem(sys.modules, "hbpnets", raising=False)
    return tmp_path


def hbp_command(*arguments):
    return CliRunner().invoke(main, arguments)


def test_compile_writes_the_file(folder):
    done = hbp_command("compile", "hbpnets:make", "--quantities", "diag_h,kflr", "--input", "1,4,4",
                       "--loss", "cross_entropy", "-o", "out.py")
    assert done.exit_code == 0, done.output
    assert "out.py" in done.output
    assert "diag_h, kflr" in done.output
    text = (folder / "out.py").read_text()
    sys.modules.pop("hbpnets")
    sys.path.insert(0, str(folder))
    from hbpnets import make

    torch.manual_seed(0)
    model, X, y = make(), torch.randn(5, 1, 4, 4), torch.randint(3, (5,))
    compiled = hbp.compile(model, quantities=["diag_h", "kflr"], example_inputs=(X, y))
    assert text == compiled.code


def test_compile_prints_without_output_file(folder):
    done = hbp_command("compile", "hbpnets:Mlp", "-q", "grad", "-i", "4")
    assert done.exit_code == 0, done.output
    compile(done.stdout, "printed", "exec")
    assert "class Program" in done.stdout


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "huber", "bce", "poisson"])
def test_every_loss(folder, loss):
    done = hbp_command("compile", "hbpnets:ready", "-q", "grad", "-i", "4", "-l", loss, "--reduction", "sum",
                       "--dtype", "float64", "-b", "3")
    assert done.exit_code == 0, done.output


def test_several_inputs(folder):
    done = hbp_command("compile", "hbpnets:Sum", "-q", "grad,variance", "-i", "4", "-i", "5")
    assert done.exit_code == 0, done.output
    assert "x2: Tensor" in done.stdout


def test_curvature(folder):
    done = hbp_command("compile", "hbpnets:Mlp", "-q", "diag_h,block", "-i", "4", "--curvature", "pch_abs")
    assert done.exit_code == 0, done.output
    assert "Curvature pch_abs: residuals with the absolute values of their eigenvalues." in done.output


def test_mode(folder):
    assert hbp_command("compile", "hbpnets:norm", "-q", "grad", "-i", "4", "--eval").exit_code == 0
    done = hbp_command("compile", "hbpnets:norm", "-q", "grad", "-i", "4", "--train")
    assert done.exit_code == 2
    assert "train mode" in done.output
    assert "pass --eval (in Python: model.eval()), or eval() on that module" in done.output


def test_explain(folder):
    done = hbp_command("explain", "hbpnets:make", "-q", "diag_h", "-i", "1,4,4", "--batch", "32")
    assert done.exit_code == 0, done.output
    assert "N=32" in done.output
    assert "3.weight" in done.output


@slow("rules of users are tested")
def test_rules_and_those_of_the_users(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from hbpcompiler.elementwise import elementwise, x\nR = elementwise('hbptests.unheard_of', x)\n")
    done = hbp_command("rules", "--rules", str(path))
    assert done.exit_code == 0, done.output
    assert "hbptests.unheard_of" in done.output
    assert "mine.py" in done.output
    line = next(line for line in done.output.splitlines() if "aten.linear " in line)
    for word in ("input", "weight, bias", "zero", "constant", "linear.py"):
        assert word in line
    assert "every quantity works with every rule" in done.output.lower()


def test_rules_list_the_quantities():
    done = hbp_command("rules", "--quantities")
    assert all(name in done.output for name in hbp.QUANTITIES)


def test_version_and_help():
    assert hbp.__version__ in hbp_command("--version").output
    for command in ([], ["compile"], ["explain"], ["rules"]):
        done = hbp_command(*command, "--help")
        assert done.exit_code == 0
        assert "Usage:" in done.output
    for option in ("--quantities", "--input", "--loss", "--output", "hbp rules --quantities", "3,32,32"):
        assert option in hbp_command("compile", "--help").output


@pytest.mark.parametrize(
    ("factory", "arguments", "words"),
    [
        ("hbpnets", [], ["'hbpnets'", "PKG.MODULE:FACTORY"]),
        ("no_such_package:make", [], ["no_such_package", "folder"]),
        ("hbpnets:missing", [], ["no 'missing'"]),
        ("hbpnets.py:make", [], ["a module is meant, not its file: hbpnets:make"]),
        ("my/nets.py:make", [], ["a module is meant, not its file: my.nets:make"]),
        ("hbpnets:broken", [], ["'hbpnets:broken'", "no weights here"]),
        ("hbpnets:nothing", [], ["must return a torch.nn.Module", "NoneType"]),
        ("hbpnets:number", [], ["neither", "int"]),
        ("hbpnets:make", ["-q", "hessian"], ["'hessian'", "diag_h"]),
        ("hbpnets:make", ["-i", "5"], ["[64, 5]", "fails"]),
        ("hbpnets:words", ["-i", "4"], ["Inputs are random numbers of torch.float32 here", "compiled.save(path)"]),
        ("hbpnets:ready", ["-i", "4", "-q", "clipped_grad,grad"], [
            "clipped_grad needs max_norm",
            "Write it in Python: compiled = hbp.compile(model, loss, ['grad', 'clipped_grad', 'norms'])",
            "compiled(X, y, max_norm=...); compiled.save(path)"]),
        ("hbpnets:ready", ["-i", "4", "-q", "eigenvalues"], ["eigenvalues needs bases"]),
        ("hbpnets:make", ["-i", "3,x"], ["'3,x'", "3,32,32"]),
        ("hbpnets:make", ["-i", "0,4"], ["'0,4'"]),
        ("hbpnets:make", ["-i", "100000000000000"], ["not enough memory", "smaller"]),
        ("hbpnets:make", ["--batch", "1000000000000000"], ["not enough memory", "smaller"]),
        ("hbpnets:make", ["--batch", "4000000000000000000"], ["not enough memory", "smaller"]),
        ("hbpnets:make", ["-i", "99999999999999999999"], ["is no shape"]),
        ("hbpnets:make", ["-l", "hinge"], ["hinge", "cross_entropy"]),
        ("hbpnets:make", ["--mc-samples", "0"], ["mc_samples", "0"]),
        ("hbpnets:make", ["--memory-budget", "lots"], ["'lots'"]),
        ("hbpnets:make", ["--rules", "nowhere.py"], ["nowhere.py"]),
        ("hbpnets:make", ["-o", "no/such/folder/out.py"], ["no/such/folder/out.py"]),
    ],
)
def test_errors_are_one_clean_message(folder, factory, arguments, words):
    defaults = {"-q": "grad", "-i": "1,4,4"}
    given = [item for name, value in defaults.items() if name not in arguments for item in (name, value)]
    done = hbp_command("compile", factory, *given, *arguments)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    for word in words:
        assert word in done.output


@slow("a process of its own; the command is tried within this one")
def test_the_installed_command(folder):
    command = Path(sys.executable).with_name("hbp")
    done = subprocess.run([command, "compile", "hbpnets:make", "-q", "grad", "-i", "1,4,4", "-o", "out.py"], cwd=folder,
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "out.py").exists()
