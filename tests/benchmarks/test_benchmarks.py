"""The benchmarks' arithmetic, and that a small run of each prints what it should."""

import json
import math

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from tests.selection import slow

pytest.importorskip("benchmarks")  # the tests also run where only the wheel is

from benchmarks import (
    backends,
    clipping,
    compare,
    data_sets,
    guards,
    laplace_backends,
    large,
    large_networks,
    memory,
    monitor,
    operators,
    optimizers,
    prediction,
    programs,
    real,
    scale,
    spectrum,
    timing,
)
from benchmarks.cells import Cell, select
from benchmarks.compare import Result, above_best_peer
from benchmarks.growth import BATCH, Point, Row, exponent, growths, single_rows, sweeps
from benchmarks.kept import difference, largest_difference, network_of, title
from benchmarks.large_networks import LARGE, DenseNet, Large
from benchmarks.memory import MEBI, Peak
from benchmarks.networks import FAMILIES, Problem, find, member, problem
from benchmarks.peers import Run
from benchmarks.prediction import Found, close, correlations, memory_ratios, ranks, spearman
from benchmarks.programs import Pair
from benchmarks.real_floor import floor
from benchmarks.real_networks import NotInstalledError
from benchmarks.timing import Measured, interleaved


def row(size, seconds, peak=None):
    """Twice as slow as its gradient, predicted to be four times as slow."""
    measured = {"gradient": Measured([seconds / 2]), "diag_h": Measured([seconds])}
    peaks = {} if peak is None else {"diag_h": Peak(peak)}
    return Row(Point("vit/8x1", size, size), measured, {"gradient": 1.0, "diag_h": 4.0}, {"diag_h": 10 * MEBI}, peaks)


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 2.0])
def test_the_exponent_of_a_power_law(power):
    sizes = [1, 2, 4, 8, 32]
    assert exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)


def test_the_exponent_is_that_of_least_squares_in_logarithms():
    assert exponent([1, 2, 4], [1, 4, 4]) == pytest.approx(1.0)  # logs 0, 2, 2 over 0, 1, 2


def test_one_size_has_no_exponent():
    assert math.isnan(exponent([4], [1.0]))
    assert math.isnan(exponent([], []))


def test_growth_is_fitted_to_what_was_measured():
    rows = [row(1, 1.0, 100), row(2, 2.0, 2 * MEBI), row(4, 4.0, 8 * MEBI), row(8, 32.0)]
    rows[-1].measured["diag_h"] = Measured(failure=">60 s")
    time, multiple, peak = growths(rows, "diag_h")
    assert time.points == 3
    assert time.measured == pytest.approx(1)
    assert time.predicted == pytest.approx(0)
    assert multiple.measured == pytest.approx(0)
    assert peak.points == 2  # 100 bytes are less than a process can show
    assert peak.measured == pytest.approx(2)
    assert not rows[-1].complete


def test_a_row_says_why_it_has_no_number():
    failed = row(2, 1.0)
    failed.measured["diag_h"] = Measured(failure=">60 s")
    assert scale.multiple_text(failed, "diag_h") == ">60 s"
    assert scale.multiple_text(row(2, 1.0), "diag_h") == "~2"
    assert failed.record()["failures"] == {"diag_h": ">60 s"}
    assert failed.predicted_multiple("diag_h") == 4


def test_a_sweep_ends_at_a_row_that_fails(monkeypatch):
    def measure(point, how):
        made = row(point.size, 1.0)
        made.measured["diag_ggn"] = Measured([1.0])
        if point.size == 4:
            made.measured["diag_h"] = Measured(failure=">60 s")
        return made

    monkeypatch.setattr(scale, "measure", measure)
    (sweep,) = sweeps(["vit"], [BATCH], 99)
    rows = scale.measure_sweep(sweep, None, scale.Console(quiet=True))
    assert [each.point.size for each in rows] == [1, 2, 4]


def test_sweeps_differ_in_one_size():
    for sweep in sweeps(list(FAMILIES), ["batch", "width", "depth"], 3):
        assert len(sweep.points) == 3
        assert len({(point.network, point.batch) for point in sweep.points}) == 3
        assert (len({point.batch for point in sweep.points}) == 3) == (sweep.axis == BATCH)
        assert [point.size for point in sweep.points] == sorted(point.size for point in sweep.points)


def test_single_rows_are_known_networks():
    for smooth in ("sigmoid", "gelu"):
        assert all(find(point.network).parameters for point in single_rows(smooth, 1).points)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_family_has_any_width_and_depth(family):
    small, large = (problem(member(family, *sizes), 3) for sizes in ((4, 1), (8, 3)))
    assert small.model(small.inputs).shape == large.model(large.inputs).shape == (3, 10)
    assert torch.equal(small.model(small.inputs), small.model(small.inputs))  # no dropout
    counts = [sum(parameter.numel() for parameter in given.model.parameters()) for given in (small, large)]
    assert counts[0] < counts[1]


def test_ranks_of_ties_are_shared():
    assert ranks([10, 30, 20, 20]) == [1, 4, 2.5, 2.5]
    assert spearman([1, 2, 3], [10, 200, 3000]) == pytest.approx(1)
    assert math.isnan(spearman([1, 1], [1, 2]))


def found(network, predicted, measured, predicted_mebibytes=1.0, peak=None):
    call = Measured([measured]) if measured else Measured(failure=">20 s")
    return Found(Cell(network, 2, ("diag_h",)), predicted, call, Measured([1.0]), predicted_mebibytes, peak=peak)


def test_rank_correlations_overall_and_of_each_network():
    results = [found("mlp", 1, 1), found("mlp", 2, 2), found("3c3d", 3, 40), found("3c3d", 4, 30), found("2c2d", 9, 50),
               found("2c2d", 10, None)]
    assert correlations(results) == [("overall", 5, pytest.approx(0.9)), ("mlp", 2, pytest.approx(1)),
                                     ("3c3d", 2, pytest.approx(-1))]


def test_memory_ratios_leave_out_what_was_not_measured():
    results = [found("mlp", 1, 1, 5.0, Peak(4 * MEBI)), found("mlp", 1, 1, 0.5, Peak(MEBI // 4)), found("mlp", 1, 1),
               found("mlp", 1, 1, 1.0, Peak(None, ">60 s")), found("mlp", 1, 1, 1.0, Peak(0))]
    assert memory_ratios(results, 0) == [1.25, 2.0]
    assert memory_ratios(results, MEBI) == [1.25]
    assert close([0.79, 0.81, 1.0, 1.19, 1.21]) == 3


def test_rows_in_which_our_memory_is_above_the_best_peers():
    def result(ours, **peers):
        cell = Cell("mlp", 2, ("diag_h",))
        return Result(cell, Measured([1.0]), mebibytes={"gradient": 1.0, **({"ours": ours} if ours else {}), **peers})

    lines = above_best_peer([
        result(10.0, BackPACK=8.0, curvlinops=9.0), result(10.0, BackPACK=12.0), result(30.0, BackPACK=10.0),
        result(10.0), result(None, BackPACK=1.0),
    ])  # fmt: skip
    assert [line.split(": ")[1] for line in lines] == [
        "30.0 MiB, BackPACK 10.0 MiB (+20.0 MiB, 3.00 times)", "10.0 MiB, BackPACK 8.0 MiB (+2.0 MiB, 1.25 times)"]


def test_networks_outside_the_table_can_be_asked_for():
    assert {cell.network for cell in select(["allcnnc-one-gelu"], [], [], False)} == {"allcnnc-one-gelu"}
    assert all(cell.network == "mlp" for cell in select(["mlp"], [], [], False))


def test_a_long_first_call_is_the_only_measurement():
    calls = []
    measured = interleaved({"slow": Run(lambda: calls.append(1), lambda _: {})}, 5, 60, 0, lone=0)
    assert len(calls) == len(measured["slow"].seconds) == 1


def test_rounds_that_alternate_begin_with_the_last():
    calls = []
    runs = {name: Run(lambda name=name: calls.append(name), lambda _: {}) for name in "ab"}
    interleaved(runs, 4, 60, 0, alternating=True, shortest=0.0)
    assert "".join(calls) == "aaabbb" + "ab" + "ba" + "ab" + "ba"  # the warm-ups first


@slow("a script that no user's program calls")
def test_memory_in_a_process_of_its_own_says_why_it_failed():
    assert memory.in_subprocess("ours", "no such network", 2, ["grad"], 1, 60).failure.startswith("exit code 1: ")
    assert memory.in_subprocess("ours", "logreg", 2, ["grad"], 1, 0.01).failure == ">0.01 s"


@pytest.mark.parametrize(("module", "arguments"), [
    (scale, ["--families", "sigmoid-mlp", "--axes", "batch", "--sizes", "2", "--no-memory"]),
    (prediction, ["--networks", "logreg", "--quantities", "batch_l2", "--batch", "2", "--within", "1"]),
    (compare, ["--networks", "logreg", "--quantities", "batch_l2", "--batch", "2", "--no-peers"]),
])  # fmt: skip
@slow("a script that no user's program calls")
def test_a_small_run(module, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "limit_memory", lambda: None)  # not for the process of all tests
    file = tmp_path / "found.json"
    threads = str(torch.get_num_threads())
    done = CliRunner().invoke(module.main, [*arguments, "--rounds", "1", "--patience", "0", "--threads", threads,
                                            "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert json.loads(file.read_text())


@slow("a script that no user's program calls")
def test_products_of_operators_are_the_same_in_every_way(tmp_path):
    file = tmp_path / "found.json"
    threads = str(torch.get_num_threads())
    done = CliRunner().invoke(operators.main, ["--networks", "logreg", "--batch", "2", "--rounds", "1", "--patience",
                                               "0", "--threads", threads, "--json", str(file)])
    assert done.exit_code == 0, done.output
    (rows,) = json.loads(file.read_text()).values()
    tasks = {row["task"] for row in rows}
    assert tasks >= {"gradient", "ggn: ours", "ggn: torch.func", "hessian: forward over reverse"}
    assert all(row["difference"] < operators.NEAR for row in rows)


@slow("a script that no user's program calls")
def test_a_small_run_of_optimizers(tmp_path):
    file = tmp_path / "found.json"
    threads = str(torch.get_num_threads())
    done = CliRunner().invoke(optimizers.main, ["--networks", "logreg", "--batch", "4", "--rounds", "1", "--patience",
                                                "0", "--threads", threads, "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert set(json.loads(file.read_text())["logreg:4"]) == {"Adam", "gradient alone", "update", "inverse"}


def test_a_small_run_of_the_guards():
    threads = str(torch.get_num_threads())
    done = CliRunner().invoke(guards.main, ["--batch", "2", "--rounds", "1", "--threads", threads, "--quantities",
                                            "grad;grad,variance"])
    assert done.exit_code == 0, done.output
    shares = done.output.splitlines()
    assert [line.partition(": ")[0] for line in shares] == ["logreg:2, grad", "logreg:2, grad,variance"]
    assert all("guards" in line and line.endswith("%") for line in shares)


@slow("a script that no user's program calls")
def test_a_small_run_of_the_monitor(tmp_path):
    file = tmp_path / "found.json"
    threads = str(torch.get_num_threads())
    done = CliRunner().invoke(monitor.main, ["--networks", "logreg", "--batch", "4", "--rounds", "1", "--patience", "0",
                                             "--track", "economy", "--threads", threads, "--json", str(file)])
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())["logreg:4"]["multiples"]["economy"]
    assert found["every 1"] > found["every 16"] > found["every 64"] > 1


@slow("a script that no user's program calls")
def test_a_small_run_of_clipping(tmp_path):
    """Beside torch.func, with which it must agree in float64."""
    file = tmp_path / "found.json"
    threads = str(torch.get_num_threads())
    done = CliRunner().invoke(clipping.main, [
        "--networks", "logreg", "--batch", "2", "--rounds", "1", "--patience", "0", "--threads", threads,
        "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert {"gradient", "ours", "ours, again", "torch.func"} <= json.loads(file.read_text())["logreg:2"].keys()


@slow("a script that no user's program calls")
def test_a_small_run_of_spectra(tmp_path):
    """All tasks, as without options."""
    file = tmp_path / "found.json"
    threads = str(torch.get_num_threads())
    done = CliRunner().invoke(spectrum.main, [
        "--networks", "logreg", "--batch", "2", "--rounds", "1", "--patience", "0", "--threads", threads,
        "--no-memory", "--json", str(file)])
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text())["logreg:2"]
    assert [row["task"] for row in rows] == list(spectrum.TASKS)
    assert all(row["seconds"] > 0 for row in rows)


@slow("no user's program calls it")
def test_a_small_run_of_real_networks(tmp_path, monkeypatch):
    """On a network of ours, and beside torch.func; what is not installed is said."""
    def small(cell):
        if cell == "none":
            raise NotInstalledError("none: nowhere is not installed")
        return problem(cell, 2)

    monkeypatch.setattr(real, "given", small)
    file = tmp_path / "found.json"
    done = CliRunner().invoke(real.main, [
        "--networks", "none,2c2d", "--quantities", "batch_l2,kfac", "--rounds", "1", "--profile",
        "--threads", str(torch.get_num_threads()), "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "nowhere is not installed" in done.output
    found = json.loads(file.read_text())["2c2d"]
    assert {"gradient", "ours batch_l2", "torch.func batch_l2", "ours kfac"} <= found.keys()
    assert {"gradient kfac", "facts kfac"} <= found.keys()
    assert {"first", "lines", "predicted"} == real.described(problem("logreg", 2), "kfac").keys()
    table = CliRunner().invoke(real.main, ["--json", str(file), "--table"]).output
    assert table.count("| 2c2d (") == 2


def test_backends_are_measured_beside_each_other(monkeypatch):
    monkeypatch.setattr(backends, "given", lambda cell: problem(cell, 3))
    done = CliRunner().invoke(backends.main, [
        "--networks", "logreg", "--quantities", "grad+variance", "--backends", "python,torchscript", "--rounds", "1",
        "--threads", str(torch.get_num_threads())])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "python: " in done.output
    assert "largest difference 0e+00" in done.output.partition("torchscript: ")[2]


def test_a_first_call_that_takes_too_long_is_said(monkeypatch):
    def never(limit):
        raise timing.TooSlowError

    monkeypatch.setattr(backends, "given", lambda cell: problem(cell, 3))
    monkeypatch.setattr(backends, "time_limit", never)
    row = backends.measured_row("logreg", "grad", ("python",), 1, 60, 0, "wall")
    assert [*row.lines()][1:] == ["  python: the first call takes more than 60 s"]


def test_the_plain_file_comes_first():
    assert "name it first" in CliRunner().invoke(backends.main, ["--backends", "inductor"]).output
    assert "unknown backends: jax" in CliRunner().invoke(backends.main, ["--backends", "python,jax"]).output


@slow("no user's program calls it")
def test_numbers_of_real_networks_are_compared_with_autograd(monkeypatch):
    """On a network of ours; a wrong one is no success."""
    monkeypatch.setattr(real, "given", lambda cell: problem(cell, 3))
    arguments = ["--networks", "2c2d", "--check", "--threads", str(torch.get_num_threads())]
    done = CliRunner().invoke(real.main, arguments)
    assert done.exit_code == 0, done.output
    assert all(f"{name} " in done.output for name in ("grad", "batch_l2", "variance", "kfac_emp A", "kfac_emp B"))
    with pytest.raises(click.ClickException, match="differ from autograd's"):
        real.checked("2c2d", problem("2c2d", 3), tolerance=0.0)


def test_the_floor_of_real_networks_is_that_of_their_products():
    """A linear layer of 3 inputs, 5 outputs, 4 positions, 2 samples: 120 multiply-adds each way."""
    given = Problem(nn.Sequential(nn.Linear(3, 5), nn.Flatten(), nn.Linear(20, 1, bias=False)), nn.MSELoss(),
                    torch.randn(2, 4, 3), torch.randn(2, 1))
    way = 2 * 4 * 3 * 5 + 2 * 20
    assert floor(given, "variance") == 1
    assert floor(given, "batch_l2") == (2 * way + way) / (3 * way)
    factors = 2 * 4 * (3**2 + 5**2) // 2 + 2 * (20**2 + 1**2) // 2
    assert floor(given, "kfac") == (2 * way + factors) / (3 * way)
    assert floor(given, "grad+batch_l2+variance+diag_ggn_mc") == 5 / 3


@slow("5 s of a script that no user's program calls")
def test_a_small_run_over_data_sets():
    done = CliRunner().invoke(data_sets.main, [
        "--networks", "logreg", "--batch", "4", "--count", "2", "--rounds", "1", "--batches", "20", "--ranks", "",
        "--threads", str(torch.get_num_threads())])
    assert done.exit_code == 0, done.output
    assert "accumulate: scales of the weights' blocks differ by 0e+00 at most" in done.output
    assert "after 19 batches" in done.output


@slow("a benchmark")
def test_backends_of_laplace():
    """The exact methods agree; a table of whatever was measured."""
    pytest.importorskip("laplace")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    model.output_size = 10
    assert laplace_backends.largest_gap(model) < 1e-10
    found = {name: Measured([2.0]) for name in laplace_backends.runs(model, 2)}
    found["gradient"] = Measured([0.5])
    head, ours, theirs = laplace_backends.table(found).splitlines()
    assert head.split()[:2] == ["exact", "diag"]
    assert ours.split() == ["Hbp", *["4.0"] * 7]
    assert theirs.split() == ["Curvlinops", *["4.0"] * 7]


def test_differences_are_relative_to_the_largest_entry():
    before = torch.tensor([0.0, -4.0])
    assert difference(before, before.clone()) == 0
    assert difference(before, torch.tensor([1.0, -4.0])) == 0.25
    for other in (torch.tensor([math.nan, -4.0]), before.double(), before.unsqueeze(0)):
        assert difference(before, other) == math.inf
    assert difference(torch.zeros(2), torch.tensor([0.0, 1e-9])) == math.inf
    assert largest_difference({"grad": {"w": before}}, {"grad": {"w": before + 1}}) == (0.25, "grad w")
    assert largest_difference({"grad": {"w": before}}, {"grad": {}}) == (math.inf, "only one has grad w")


def test_ratios_of_two_programs_are_taken_round_by_round():
    pair = Pair("mlp-2-diag_h", (1, 1), (80, 80), 0.0, "loss",
                {"before": Measured([1.0, 2.0, 4.0]), "after": Measured([2.0, 2.0, 2.0])},
                {"before": Peak(2 * MEBI), "after": Peak(3 * MEBI)})  # fmt: skip
    assert pair.ratio.seconds == [2, 1, 0.5]
    assert pair.memory_ratio == 1.5
    assert programs.time_texts(pair) == ["2e+03", "1.000 (0.750-1.500)"]
    pair.peaks["before"] = Peak(100)  # less than a process can show
    assert pair.memory_ratio is None
    assert not Pair("mlp-2-diag_h", (1, 1), (80, 80), 2 * programs.ROUNDING, "loss").agrees


def test_a_programs_name_tells_its_network():
    assert network_of(title("3c3d-one-sigmoid", 16, "diag_h+kflr")) == "3c3d-one-sigmoid"


@slow("no user's program calls it")
def test_programs_of_two_versions(tmp_path):
    """Saved twice they are the same; another number is found; nothing but the files is needed."""
    threads = ["--threads", str(torch.get_num_threads())]
    before, after, file = tmp_path / "before", tmp_path / "after", tmp_path / "found.json"

    def run(*arguments):
        return CliRunner().invoke(programs.main, [*map(str, arguments), *threads])

    for folder in (before, after):
        saved = run("save", folder, "--networks", "logreg", "--quantities", "batch_l2,kfac", "--batch", 2)
        assert saved.exit_code == 0, saved.output
    name = "logreg-2-kfac.py"
    assert (before / name).read_text() == (after / name).read_text()
    raced = run("race", before, after, "--rounds", 2, "--patience", 0, "--clock", "processor", "--json", file)
    assert raced.exit_code == 0, raced.output
    found = json.loads(file.read_text())["programs"]
    assert [each["name"] for each in found] == ["logreg-2-batch_l2", "logreg-2-kfac"]
    assert all(each["difference"] == 0 and each["ratio"] > 0 for each in found)

    (after / name).write_text((after / name).read_text().replace("loss=", "loss=2 * "))
    (after / "logreg-2-batch_l2.py").unlink()
    raced = run("race", before, after, "--rounds", 1)
    assert raced.exit_code == 1
    assert "logreg-2-kfac differs by 1: loss" in raced.output
    assert "in one folder only: logreg-2-batch_l2" in raced.output


@slow("a script that no user's program calls")
def test_peak_memory_of_a_saved_program(tmp_path):
    given = problem("logreg", 2)
    compiled = programs.hbp.compile(given.model, given.loss, ["grad"], example_inputs=(given.inputs, given.target))
    file = programs.keep(tmp_path, title("logreg", 2, "grad"), compiled, given)
    found = memory.printed("benchmarks.programs", ["peak", str(file), "--threads", "1"], 60)
    assert found.bytes is not None, found.failure


@pytest.mark.parametrize(("name", "last"), [("resnet50", "layer4.2.bn3.running_var"),
                                            ("densenet121", "features.denseblock4.denselayer16.conv2.weight")])
def test_large_networks_are_those_of_the_papers(name, last):
    given = large_networks.problem(name, 1, 32)  # checks the number of parameters
    assert last in given.model.state_dict()
    assert given.model(given.inputs).shape == (1, 1000)


@slow("a benchmark")
def test_a_small_large_network(tmp_path, monkeypatch):
    monkeypatch.setitem(LARGE, "densenet", Large("DenseNet", None, lambda: DenseNet([1], 4), ("grad",)))
    monkeypatch.setattr(large, "in_subprocess", large.measure)  # where it is known
    arguments = ["--networks", "densenet", "--pixels", "32", "--profile", "3", "--save", str(tmp_path), "--threads"]
    done = CliRunner().invoke(large.main, [*arguments, str(torch.get_num_threads())])
    assert done.exit_code == 0, done.output
    assert [file.name for file in tmp_path.glob("*.py")] == ["densenet-32px-2-grad.py"]
    assert "profiled" in done.output
