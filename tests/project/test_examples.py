"""The examples run, and a rule of the user's own works for every quantity."""

import random
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.quantities import WITHOUT_VECTORS
from hbpcompiler.reference import ggn_block, kflr, kfra, reference, relative_error
from hbpcompiler.rule.registry import with_rules
from hbpcompiler.testing import check_rule
from tests.custom_op import SWIRL_RULE, Swirl
from tests.selection import few, slow

ROOT = Path(__file__).parents[2]
BRUTE_FORCE = ["grad", "batch_grad", "batch_l2", "second_moment", "variance", "diag_ggn", "diag_h"]


EXAMPLES = ROOT / "examples"


def process_of_its_own(name, folder):
    """What an example prints that is run as its user runs it."""
    done = subprocess.run([sys.executable, "-W", "ignore", EXAMPLES / name], cwd=folder, capture_output=True,
                          text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def run_example(tmp_path, monkeypatch, capsys):
    """The same in this process, which has imported torch: seconds less. `test_digits` shows that examples run alone."""
    threads, states = torch.get_num_threads(), (torch.get_rng_state(), random.getstate())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(name):
        monkeypatch.setattr(sys, "argv", [name])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = 0
            try:
                runpy.run_path(str(EXAMPLES / name), run_name="__main__")
            except SystemExit as ended:
                code = ended.code
        assert not code
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@slow("`make demo` runs it")
def test_digits(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    text = process_of_its_own("digits.py", tmp_path)
    for quantity in ("grad", "variance", "diag_ggn", "diag_h", "kflr"):
        error = re.search(rf"^  {quantity} +(\S+)$", text, re.MULTILINE)
        assert float(error[1]) < 1e-8
    losses = {line.split(",")[0].strip(): float(re.search(r"loss (\S+),", line)[1]) for line in text.splitlines()
              if "loss " in line and "step" in line}
    assert losses["kflr"] < losses["gradient descent"]
    for name in ("digits_program.py", "digits_diagonals.png", "digits_training.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
        assert name in text


@slow("16 s; spectra have tests of their own")
def test_eigenspace(tmp_path, run_example):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    text = run_example("eigenspace.py")
    rows = [[float(part) for part in line.split()] for line in text.splitlines() if re.match(r" +\d+ +\d", line)]
    assert (rows[0][0], rows[-1][0]) == (0, 300)
    assert rows[-1][1] < 0.3 < 2 < rows[0][1]  # the loss
    for row in rows:
        assert all(10 / 666 < share < 1 + 1e-6 for share in row[2:])
    assert rows[-1][2] > 0.9, "of the gradient of all data"
    assert rows[-1][4] > max(rows[-1][5:]), "exact columns of the batch find more than sampled ones or fewer samples"
    assert (tmp_path / "out" / "eigenspace.png").stat().st_size > 1000


@slow("20 s; what it uses has tests of its own")
def test_pruning_and_quantisation(tmp_path, run_example):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    text = run_example("pruning.py")
    rows = {line.split()[0]: [float(part) for part in line.split()[1:]] for line in text.splitlines() if "%  " in line}
    assert rows["0%"] == [rows["0%"][0]] * 4
    hessian, _, _, random = rows["60%"]
    assert hessian > rows["0%"][0] - 0.05 > random + 0.3
    assert (tmp_path / "out" / "pruning.png").stat().st_size > 1000
    text = run_example("quantisation.py")
    layers = [[float(part) for part in re.findall(r"-?\d\.\de-\d+", line)] for line in text.splitlines()
              if ".weight" in line]
    assert len(layers) == 4
    predicted, measured = (sum(row[column] for row in layers) for column in (2, 3))  # three bits
    assert 1 / 3 < predicted / measured < 3
    same, chosen = map(float, re.search(r"^ +4 +(\S+) +(\S+) ", text, re.MULTILINE).groups())
    assert chosen < same


@slow("16 s; clipped gradients have tests of their own")
def test_dp_sgd(tmp_path, run_example):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    text = run_example("dp_sgd.py")
    accuracies = [float(found) for found in re.findall(r"test accuracy (\S+)%", text)]
    assert len(accuracies) == 3
    assert min(accuracies) > 50
    assert (tmp_path / "out" / "dp_sgd.png").stat().st_size > 1000


@slow("10 s; influence has tests of its own")
def test_mislabelled(tmp_path, run_example):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    text = run_example("mislabelled.py")
    rows = {line[:34].strip(): [float(part) for part in re.findall(r"(\S+)%", line)] for line in text.splitlines()
            if line.startswith(("by ", "at random"))}
    own, by_loss, random = rows.values()
    assert own[1] > 75 > 50 > random[1], "a tenth of the data, which has a tenth of wrong labels"
    assert own[3] > 95
    assert by_loss[3] > 95
    helped, harmed = re.findall(r"most by training images with the labels (.*)", text)
    assert helped.count("(wrong)") < harmed.count("(wrong)")
    assert (tmp_path / "out" / "mislabelled.png").stat().st_size > 1000


@slow("trains six networks, twenty seconds; sample_weights has tests of its own")
def test_importance_sampling(tmp_path, run_example):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    text = run_example("importance_sampling.py")
    assert float(re.search(r"off by (\S+) times", text)[1]) < 2
    ratios = re.search(r"one's: (\S+) before training, (\S+) after; .* old (\S+)", text)
    before, after, old = map(float, ratios.groups())
    assert after < old < 0.6 < before
    uniform, by_length, larger = (float(loss) for loss in re.findall(r"loss (\S+) after", text))
    assert by_length < uniform, "of the same number of steps"
    assert larger < uniform
    assert (tmp_path / "out" / "importance_sampling.png").stat().st_size > 1000


@slow("a process of its own; what it uses has tests")
def test_own_rule(tmp_path):
    """Alone: it defines an operation, which a process does once."""
    text = process_of_its_own("own_rule.py", tmp_path)
    assert "mylib.squash" in text
    assert "no rule" in text


@pytest.fixture
def rule(tmp_path):
    path = tmp_path / "swirl_rule.py"
    path.write_text(SWIRL_RULE)
    return path


def swirling(reduction):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Swirl(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 4), Swirl(),
                          nn.Linear(4, 3))
    X, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    return model.double(), nn.CrossEntropyLoss(reduction=reduction), X, y


@slow("rules of users are tested")
@few(1, "further cases of one kind")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_every_quantity_works_with_a_rule_file(rule, reduction):
    model, loss, X, y = swirling(reduction)
    result = hbp.compile(model, loss, WITHOUT_VECTORS, rules=[rule])(X, y, max_norm=1.0)
    for quantity in BRUTE_FORCE:
        for name, value in reference(model, loss, (X,), y, quantity).items():
            assert relative_error(result[quantity][name], value) < 1e-10, (quantity, name)
    for quantity, brute_force in (("kflr", kflr), ("kfra", kfra)):
        for name, (a, b) in brute_force(model, loss, (X,), y).items():
            assert relative_error(result[quantity][name].B, b) < 1e-10, (quantity, name)
            assert a is None or relative_error(result[quantity][name].A, a) < 1e-10, (quantity, name)
    for name, parts in result.diag_h_split.items():
        assert relative_error(parts.ggn + parts.positive - parts.negative, result.diag_h[name]) < 1e-10
        assert relative_error(parts.ggn, result.diag_ggn[name]) < 1e-10
        assert min(part.min() for part in parts) >= 0
    assert any(parts.negative.max() > 0 for parts in result.diag_h_split.values())


def test_sampled_quantities_approach_the_exact_ones_with_a_rule_file(rule):
    model, loss, X, y = swirling("mean")
    compiled = hbp.compile(model, loss, ["diag_ggn_mc", "kfac"], mc_samples=4000, rules=[rule])
    result = compiled(X, y, generator=torch.Generator().manual_seed(0))
    for name, value in reference(model, loss, (X,), y, "diag_ggn").items():
        assert relative_error(result.diag_ggn_mc[name], value) < 0.1
    for name, (_, b) in kflr(model, loss, (X,), y).items():
        assert relative_error(result.kfac[name].B, b) < 0.1


def test_the_example_rule_keeps_the_contract():
    runpy.run_path(str(ROOT / "examples" / "own_rule.py"))  # defines the operation
    check_rule(with_rules([ROOT / "examples" / "squash_rule.py"]).rules["mylib.squash"])


def test_the_generated_file_needs_no_rule_file(rule, tmp_path):
    model, loss, X, y = swirling("mean")
    compiled = hbp.compile(model, loss, ["grad"], rules=[rule], example_inputs=(X, y))
    assert "hbptests" not in compiled.code


def test_kronecker_factors_of_the_last_layer_are_its_block():
    """A bias has its full block, and one sample's weight block is the Kronecker product itself."""
    torch.manual_seed(0)
    model, X, y = nn.Linear(3, 2).double(), torch.randn(1, 3, dtype=torch.float64), torch.tensor([1])
    factors = hbp.compile(model, quantities=["kflr"])(X, y).kflr
    loss = nn.CrossEntropyLoss()
    torch.testing.assert_close(factors["bias"].B, ggn_block(model, loss, [X], y, "bias"))
    torch.testing.assert_close(torch.kron(factors["weight"].B, factors["weight"].A),
                               ggn_block(model, loss, [X], y, "weight"))


@slow("10 s; optimizers have tests of their own")
def test_kfac(tmp_path, run_example):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    text = run_example("kfac.py")
    losses = {line.split()[0]: [float(part) for part in line.split()[1:5]] for line in text.splitlines()
              if line.startswith(("  Adam", "  KFAC"))}
    assert all(ours < adams for ours, adams in zip(losses["KFAC"][:3], losses["Adam"][:3], strict=True))
    assert losses["KFAC"][3] < 2e-3  # where Adam, tuned, comes to as well on some machines
    assert (tmp_path / "out" / "kfac.png").stat().st_size > 1000


@slow("10 s; optimizers have tests of their own")
def test_block_newton(tmp_path, run_example):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    text = run_example("block_newton.py")
    ends = {line.split("  ")[1]: float(re.search(r"-> (\S+) in", line)[1]) for line in text.splitlines()
            if line.startswith("  ")}
    assert ends["block Newton"] < 1e-10 < ends["gradient descent"]
    assert (tmp_path / "out" / "block_newton.png").stat().st_size > 1000


@slow("25 s; each quantity and the report have tests of their own")
def test_monitor_stories(tmp_path, run_example):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    text = run_example("monitor_stories.py")
    wider = float(re.search(r"unscaled inputs: .*: (\d+) times", text)[1])
    assert wider > 100
    sigmoid, relu = (float(found) for found in re.findall(r"last layer over first: (\S+)", text))
    assert sigmoid > 1e5
    assert relu < 1e3
    sizes = [[float(part) for part in found] for found in
             re.findall(r"step size (\S+): median alpha (\S+), loss (\S+)", text)]
    best = min(sizes, key=lambda row: row[2])
    assert -0.2 < best[1] < 0.3
    assert all(row[1] < -0.3 for row in sizes if row[0] < best[0])
    for late, edge in re.findall(r"(\S+) at the end, 2 / step size (\S+)", text):
        assert float(late) == pytest.approx(float(edge), rel=0.15)
    told = re.findall(r"(\S+), batches of 32: .* needs (\d+) samples at first, (\d+) at the end; CABS suggests (\d+), "
                      r"then (\d+)", text.replace("\n", " ").replace("noise: ", "\n"))
    assert [name for name, *_ in told] == ["digits"] + ["MNIST-1D"] * ("mnist1d is not installed" not in text)
    for _, *numbers in told:
        first, last, suggested, later = map(float, numbers)
        assert last > 1.5 * first > 1.5 * 32
        assert later > 3 * suggested
    for name in ("inputs", "layers", "alpha", "sharpness", "noise"):
        assert (tmp_path / "out" / f"story_{name}.png").stat().st_size > 5000
        assert (tmp_path / "out" / f"story_{name}.html").stat().st_size > 1e6
