"""`python -m benchmarks.training`: its arithmetic, that runs begin anew and go on, and a small run of the whole."""

import dataclasses
import json
import math
import types

import pytest
import torch
from click.testing import CliRunner

import hbpcompiler as hbp
from tests.selection import slow

pytest.importorskip("benchmarks")  # the tests also run where only the wheel is
pytest.importorskip("sklearn")

from benchmarks.training import __main__ as command
from benchmarks.training import coverage, data, page, results, runs
from benchmarks.training.methods import METHODS
from benchmarks.training.plan import Protocol
from benchmarks.training.results import Outcome, epochs_to, race, worth
from benchmarks.training.runs import Contestant, Record, Run, saved, train
from benchmarks.training.seconds import Cost
from benchmarks.training.tasks import ALL, UNDEFINED
from tests import fake_sets

TASK = "digits_logreg"


def record(losses, accuracy=0.5, diverged=False):
    return Record({part: list(losses) for part in runs.PARTS}, {part: [accuracy] * len(losses) for part in runs.PARTS},
                  diverged)


def run_of(method, seed=1, epochs=2, **point):
    return Run(TASK, method, tuple(point.items()), seed, epochs)


def outcome_of(found):
    return found.loss, found.accuracy, found.diverged


# -- arithmetic --------------------------------------------------------------------------------------------------------


def test_grids_are_as_large_for_all_and_coarse_ones_are_parts_of_them():
    for name, method in METHODS.items():
        whole, coarse = method.points(coarse=False), method.points(coarse=True)
        assert set(coarse) < set(whole)
        assert len(set(whole)) == len(whole)
        of_one_number = name in {"kfac_free", "kfac_unbounded", "newton_noise"}
        assert (len(whole), len(coarse)) == ((6, 3) if of_one_number else (30, 6))
    assert METHODS["kfac"].grid["lr"] == (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # the paper's appendix C.2
    assert METHODS["kfac"].grid["damping"] == (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def test_neighbours_and_the_inside_of_a_grid():
    kfac = METHODS["kfac"]
    corner, inside = (("lr", 1e-4), ("damping", 10.0)), (("lr", 1e-2), ("damping", 1e-1))
    assert set(kfac.neighbours(corner)) == {(("lr", 1e-3), ("damping", 10.0)), (("lr", 1e-4), ("damping", 1.0))}
    assert set(kfac.neighbours(inside)) == {
        (("lr", 1e-3), ("damping", 1e-1)), (("lr", 1e-1), ("damping", 1e-1)),
        (("lr", 1e-2), ("damping", 1e-2)), (("lr", 1e-2), ("damping", 1.0))}
    assert kfac.interior(inside)
    assert not kfac.interior(corner)


def test_what_a_run_is_worth():
    good, low, failed = record([2, 1], 0.9), record([2, 0.5], 0.8), record([2], 0.9, diverged=True)
    assert worth(good, 1, "accuracy") > worth(low, 1, "accuracy") > worth(failed, 1, "accuracy")
    assert worth(low, 1, "train_loss") > worth(good, 1, "train_loss")
    assert worth(record([2, 0.9], 0.9), 1, "accuracy") > worth(good, 1, "accuracy")  # equal accuracies: the loss


def test_a_race_is_run_seed_by_seed():
    adam = [record([2, 1, 0.5, 0.25]), record([2, 1.5, 1.2, 1])]
    own = [record([2, 0.25, 0.1, 0.1]), record([2, 3, 3, 3])]
    assert epochs_to(0.5, [2, 0.5, 0.1]) == 1
    assert math.isinf(epochs_to(0.5, [2, 0.4, 0.6]))
    assert math.isinf(epochs_to(0.05, [2, 0.5, 0.1]))
    found = race(own, adam, 3)
    assert found.epochs == [1, math.inf]
    assert found.wins == 1
    assert not found.ahead()
    first = race(own[:1], adam[:1], 3)
    assert first.ahead()
    assert first.ahead(cost=2.9)
    assert not first.ahead(cost=3.1)
    assert race(adam, adam, 3).wins == 0
    assert not race([], [], 3).ahead()


def test_medians_and_quartiles_of_runs_that_diverged():
    found = results.curve(results.losses([record([2, 1]), record([2, 3]), record([2], diverged=True)], "train", 1))
    assert found.median.tolist() == [2, 3]
    assert found.low.tolist() == [2, 2]
    assert found.high.tolist() == [2, math.inf]
    most = results.curve(results.losses([record([2, 1]), *[record([2], diverged=True)] * 3], "train", 1))
    assert most.median.tolist() == [2, math.inf]


def row_of(cost, adam=(2, 1, 0.5), kfac=(2, 0.5, 0.1)):
    """KFAC is where Adam ends after half as many epochs."""
    outcomes = {method: Outcome((("lr", 0.1), ("damping", 1.0)), method == "kfac", 7, 30, [record(losses)] * 4, 2)
                for method, losses in (("adam", adam), ("momentum", (2, 2, 2)), ("kfac", kfac))}
    return page.Row(TASK, outcomes, {"adam": Cost(1.0, 0.9, 1.1), "momentum": Cost(0.5, 0.4, 0.6),
                                     "kfac": Cost(cost, cost, cost)})


def test_the_page_says_who_is_ahead():
    cheap, dear, behind = row_of(1.5), row_of(3.0), row_of(1.0, kfac=(2, 2, 1))
    assert [row.ahead("adam", by_time=False) for row in (cheap, dear, behind)] == [["kfac"], ["kfac"], []]
    assert [row.ahead("adam", by_time=True) for row in (cheap, dear, behind)] == [["kfac"], [], []]
    text = " ".join(page.write([dear], {}, ["a remark"]).split())
    assert "- a remark" in text
    assert "| LogReg on digits | KFAC (0.50) | none |" in text
    assert "ahead of tuned Adam by epochs on 1 of the 1 tasks (LogReg on digits)" in text
    assert "None is ahead of it by time on 1 of the 1 tasks (LogReg on digits)" in text
    assert "KFAC is where Adam is after 2 epochs in 1 of them (in 4 of 4 seeds in fewer)" in text
    assert "its epoch takes 3.0 times Adam's, so that it needs 1.50 of Adam's time" in text
    assert "λ 1 ✓ (7/30; 4)" in text
    assert "of 18 steps, 4 seeds: medians" in text
    assert "| Momentum | 2 [2, 2] | 2 [2, 2] | 50.0 % [50.0, 50.0] | not reached | 0 of 4 | 0.50 | |" in text
    assert "none of those with curvature comes to Adam's final training loss" in page.write([behind], {}, [])
    assert "No better at the end than before training: Momentum (4 of 4) seeds." in text
    assert "ahead of tuned Adam by epochs on none of the 1 tasks" in page.write([behind], {}, [])


def test_the_page_says_what_is_not_defined_and_the_library_refuses_it():
    row = dataclasses.replace(row_of(1.5), task="mnist1d_transformer")
    found = coverage.sentences([row], {row.task: [*row.outcomes, "kfra"]})
    why = "its recursion is defined for chains, and there are branches"
    assert f"There is no *KFRA* on Transformer on MNIST-1D: {why}." in found
    assert not any(text.startswith("Not run") for text in found)
    for task, method in UNDEFINED:
        quantity = METHODS[method].title.lower()
        with pytest.raises(hbp.CompileError, match="defined for chains"):
            hbp.compile(ALL[task].model(0), quantities=[quantity],
                        example_inputs=(torch.randn(4, 1, 40), torch.arange(4)))


def test_the_page_says_what_its_figures_come_from():
    row = row_of(1.5)
    other = page.Row("digits_2c2d", row.outcomes, {"adam": Cost(1.0, 0.9, 1.1, 3)})
    found = coverage.sentences([row, other], {TASK: ["adam", "momentum", "kfac", "kflr"], "digits_2c2d": ["adam"]})
    assert found[0] == ("Whole grids everywhere: none. Of the others' grids 7 points were tried, and the best one has "
                        "4 seeds; the table of hyperparameters says how many each has.")
    assert found[1] == ("Steps were timed 3 times each. It was not written down how often on LogReg on digits "
                        "*Adam*, *Momentum*, *KFAC*. Not timed, so that what is said of times leaves them out: "
                        "on 2C2D on digits *Momentum*, *KFAC*.")
    assert found[2] == "Not run: on LogReg on digits *KFLR*."
    assert "LogReg on MNIST, 2C2D on Fashion-MNIST" in found[3]
    whole = dataclasses.replace(row.outcomes["adam"], tried=30, records=row.outcomes["adam"].records * 2)
    found = coverage.sentences([page.Row(TASK, {**row.outcomes, "adam": whole}, {})], {TASK: ["adam"]})
    assert found[0].startswith("Whole grids everywhere: *Adam*, with 8 seeds. Of the others' grids 7 points")
    assert not found[1].startswith("On LogReg")
    most = {**row.outcomes, "adam": whole, "momentum": dataclasses.replace(whole)}
    found = coverage.sentences([page.Row(TASK, most, {})], {TASK: ["adam"]})
    assert found[1] == "On LogReg on digits whole grids of all optimizers but *KFAC*, with 8 seeds."


# -- runs --------------------------------------------------------------------------------------------------------------


@slow("no user's program calls it")
@pytest.mark.parametrize("method", ["kfac_free", "adam"])
def test_a_run_begins_anew_and_goes_on_where_it_stopped(method, tmp_path, monkeypatch):
    """In the contestant that other runs have used, in a fresh one, and after an interruption: the same numbers."""
    point = {"damping": 1.0} if method == "kfac_free" else {"lr": 0.01, "beta1": 0.9}
    asked = run_of(method, epochs=3, **point)
    train(run_of(method, seed=2, **point), tmp_path / "others")
    used = train(asked, tmp_path / "used")

    fresh = Contestant(TASK, method)
    monkeypatch.setattr(runs, "contestant", lambda *_: fresh)
    whole_epoch = Contestant.epoch

    def interrupted(self, seed, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return whole_epoch(self, seed, epoch)

    monkeypatch.setattr(Contestant, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(asked, tmp_path / "fresh", every=-1.0)
    assert saved(asked, tmp_path / "fresh") is None
    fresh.begin(asked.point, seed=5)
    trained = []
    monkeypatch.setattr(Contestant, "epoch", lambda self, seed, epoch: trained.append(epoch)
                        or whole_epoch(self, seed, epoch))
    assert outcome_of(train(asked, tmp_path / "fresh")) == outcome_of(used)
    assert trained == [2]
    assert [path.name for path in (tmp_path / "fresh").rglob("*") if path.is_file()] == ["seed-1.json"]


def test_optimizers_meet_the_same_weights_and_batches():
    one, other = Contestant(TASK, "adam"), Contestant(TASK, "momentum")
    one.begin((("lr", 0.01), ("beta1", 0.9)), 3)
    other.begin((("lr", 0.1), ("momentum", 0.9)), 3)
    assert one.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name])
    batches = list(one.batches(3, 1))
    assert len(batches) == 1197 // 64
    assert all(torch.equal(X, X_other) for (X, _), (X_other, _) in zip(batches, other.batches(3, 1), strict=True))
    assert not torch.equal(batches[0][0], next(one.batches(3, 2))[0])
    assert not torch.equal(batches[0][0], next(one.batches(4, 1))[0])


def test_a_run_that_diverges_ends_with_a_record(tmp_path):
    found = train(run_of("momentum", epochs=3, lr=1e38, momentum=0.97), tmp_path)
    assert found.diverged
    assert found.epochs < 3
    text = next(tmp_path.rglob("*.json")).read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not in strict JSON"))


def test_files_of_other_epochs_do_not_count(tmp_path):
    point = {"lr": 0.1, "momentum": 0.9}
    train(run_of("momentum", epochs=1, **point), tmp_path)
    assert saved(run_of("momentum", epochs=1, **point), tmp_path) is not None
    assert saved(run_of("momentum", epochs=2, **point), tmp_path) is None


# -- data --------------------------------------------------------------------------------------------------------------


def test_parts_of_the_data_have_nothing_in_common():
    X = torch.arange(30.0).unsqueeze(1)
    parts = data.split(X, X.squeeze(1).long(), 5, 7)
    assert [len(part) for part in (parts.train, parts.valid, parts.test)] == [18, 5, 7]
    together = torch.cat([part.X for part in (parts.train, parts.valid, parts.test)]).squeeze(1)
    assert together.sort().values.tolist() == X.squeeze(1).tolist()
    assert torch.equal(parts.test.X.squeeze(1).long(), parts.test.y)


def test_what_is_not_here_is_left_out_with_words(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(data.importlib, "import_module", absent)
    shown = CliRunner().invoke(command.main, ["--tasks", "cifar10_3c3d", "--stages", "runs"])
    assert shown.exit_code == 0
    assert "cifar10_3c3d is left out" in shown.output
    assert "pip install torchvision" in shown.output


def test_the_papers_sets_are_read_from_the_folder(tmp_path, monkeypatch):
    """Files of torchvision's own formats with pixels of any kind: the data of all four, their networks, and a run."""
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / data.FOLDER
    for name in ("MNIST", "FashionMNIST"):
        fake_sets.write_idx(folder / name / "raw", 300, 100)
    for name in ("CIFAR10", "CIFAR100"):
        fake_sets.write_cifar(folder, getattr(torchvision.datasets, name), 60, 20, monkeypatch)
    try:
        for task, shape, classes in (("mnist_logreg", (1, 28, 28), 10), ("fmnist_2c2d", (1, 28, 28), 10),
                                     ("cifar10_3c3d", (3, 32, 32), 10), ("cifar100_allcnnc", (3, 32, 32), 100)):
            found = ALL[task].data()
            train, test = (300, 100) if "mnist" in task else (60 * (5 if classes == 10 else 1), 20)
            assert [len(part) for part in (found.train, found.valid, found.test)] == [train - test, test, test]
            assert found.train.X.shape[1:] == shape
            assert found.train.X.dtype == torch.float32
            assert 0.99 < found.train.X.max() <= 1
            for part in (found.train, found.valid, found.test):  # the first pixel is the label
                assert torch.equal(part.X[:, 0, 0, 0].mul(255).round().long(), part.y)
            assert ALL[task].model(0)(found.test.X[:2]).shape == (2, classes)
        shown = CliRunner().invoke(command.main, [
            "--tasks", "mnist_logreg", "--optimizers", "kfac_free", "--epochs", "1", "--seeds", "1", "--coarse",
            "--stages", "runs", "--results", str(tmp_path / "results")])
        assert shown.exit_code == 0, shown.output
        assert len(list((tmp_path / "results" / "mnist_logreg").rglob("*.json"))) >= 4
    finally:
        for task in ("mnist_logreg", "fmnist_2c2d", "cifar10_3c3d", "cifar100_allcnnc"):
            ALL[task].data.cache_clear()
        runs.contestant.cache_clear()


def test_without_its_files_a_set_is_left_out_with_words(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(data.MissingDataError, match=r"no FashionMNIST in the folder .*download=True\) fetches it"):
        data.torchvision_set("FashionMNIST")()


def test_a_set_has_as_much_for_validation_as_for_the_test(monkeypatch):
    class Images:
        def __init__(self, root, train):
            assert root == data.FOLDER
            self.data, self.targets = fake_sets.images(30 if train else 8, 4, 4)

        def __len__(self):
            return len(self.data)

    monkeypatch.setattr(data, "package", lambda name: types.SimpleNamespace(Images=Images))
    found = data.torchvision_set("Images")()
    assert [len(part) for part in (found.train, found.valid, found.test)] == [22, 8, 8]
    for part in (found.train, found.valid, found.test):
        assert part.X.shape[1:] == (1, 4, 4)
        assert torch.equal(part.X[:, 0, 0, 0].mul(255).round().long(), part.y)


def test_pixels_of_both_layouts():
    """[N, h, w] and [N, h, w, c] of bytes."""
    grey, colours = torch.arange(24).view(2, 3, 4).byte(), torch.arange(72).view(2, 3, 4, 3).byte()
    assert data._pixels(grey).shape == (2, 1, 3, 4)
    found = data._pixels(colours.numpy())
    assert found.shape == (2, 3, 3, 4)
    assert found[1, 2, 1, 3].item() == pytest.approx(colours[1, 1, 3, 2].item() / 255)


def test_unknown_names_are_refused():
    shown = CliRunner().invoke(command.main, ["--tasks", "digits_logrge"])
    assert shown.exit_code == 2
    assert "no task is called digits_logrge" in shown.output


# -- the whole ---------------------------------------------------------------------------------------------------------


@slow("10 s of a script that no user's program calls")
def test_a_small_run_of_the_whole(tmp_path, monkeypatch):
    where = ["--tasks", TASK, "--optimizers", "adam,diag_ggn_mc", "--seeds", "2", "--epochs", "1", "--coarse",
             "--rounds", "1", "--results", str(tmp_path), "--page", str(tmp_path / "docs" / "page.md"),
             "--pictures", str(tmp_path / "docs" / "assets")]
    none = CliRunner().invoke(command.main, [*where, "--budget", "0"])
    assert none.exit_code == 0, none.output
    assert "the same command goes on" in none.output
    assert list(tmp_path.rglob("seed-*.json")) == []

    first = CliRunner().invoke(command.main, where)
    assert first.exit_code == 0, first.output
    page = (tmp_path / "docs" / "page.md").read_text(encoding="utf-8")
    assert "| DiagGGN-MC | " in page
    assert "(assets/training-digits-logreg.png)" in page
    assert (tmp_path / "docs" / "assets" / "training-digits-logreg.png").stat().st_size > 1000
    protocol = Protocol({TASK: ("adam", "diag_ggn_mc")}, 2, True, 1)
    for method in protocol.tasks[TASK]:
        outcome = protocol.outcome(tmp_path, TASK, method)
        assert len(outcome.records) == 2
        assert set(METHODS[method].neighbours(outcome.point)) <= set(protocol.tried(tmp_path, TASK, method))
        assert outcome.records[0].loss["train"][1] < outcome.records[0].loss["train"][0]
    costs = json.loads((tmp_path / "seconds.json").read_text(encoding="utf-8"))[TASK]
    assert costs.keys() == {"adam", "diag_ggn_mc"}
    assert all(0 < median < 10 and rounds == 1 for median, _, _, rounds in costs.values())

    monkeypatch.setattr(Contestant, "epoch", lambda *_: pytest.fail("everything is there"))
    again = CliRunner().invoke(command.main, [*where, "--stages", "runs,report"])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "docs" / "page.md").read_text(encoding="utf-8") == page


@slow("two processes that import torch, for what one process shows too")
def test_two_processes_find_what_one_finds(tmp_path):
    where = ["--tasks", TASK, "--optimizers", "adam", "--seeds", "1", "--epochs", "1", "--coarse", "--stages", "runs"]
    for jobs in ("1", "2"):
        shown = CliRunner().invoke(command.main, [*where, "--jobs", jobs, "--results", str(tmp_path / jobs)])
        assert shown.exit_code == 0, shown.output
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.json"))
    assert files == sorted(path.relative_to(tmp_path / "2") for path in (tmp_path / "2").rglob("*.json"))
    for file in files:
        one, two = (json.loads((tmp_path / jobs / file).read_text(encoding="utf-8"))["record"] for jobs in ("1", "2"))
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_every_task_names_optimizers_that_exist():
    for task in ALL.values():
        assert set(task.methods) <= METHODS.keys()
        assert {"adam", "momentum"} < set(task.methods)
