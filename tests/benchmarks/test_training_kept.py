"""What the repository keeps of the runs of `python -m benchmarks.training`."""

import json
from pathlib import Path

import pytest

pytest.importorskip("benchmarks")  # the tests also run where only the wheel is
pytest.importorskip("sklearn")

from benchmarks.training import __main__ as command
from benchmarks.training import kept, page, runs
from benchmarks.training.methods import METHODS
from benchmarks.training.plan import Protocol, Setting, settings_in
from benchmarks.training.runs import saved
from benchmarks.training.tasks import BASELINES, TASKS
from benchmarks.training.tried import of_grids, of_tasks
from tests.benchmarks.test_training_benchmark import TASK, record, run_of


def test_kept_runs_are_restored_to_six_digits_and_newer_ones_take_their_places(tmp_path):
    first, second = (run_of("adam", seed=seed, lr=0.01, beta1=0.9) for seed in (1, 2))
    folder, file = tmp_path / "runs", tmp_path / "kept.jsonl.gz"
    for run, losses in ((first, [2.30258509, 1, 0.5]), (second, [2, 1, 0.25])):
        runs.save(run, record(losses), folder)
    (folder / "seconds.json").write_text(json.dumps({TASK: {"adam": [0.1, 0.1, 0.2, 5]}}))
    assert kept.keep(folder, file) == 2
    again = file.read_bytes()
    assert kept.keep(folder, file) == 2
    assert file.read_bytes() == again
    runs.save(second, record([2, 1, 0.125]), folder)
    assert kept.keep(folder, file) == 2
    elsewhere = tmp_path / "elsewhere"
    assert kept.restore(elsewhere, file) == 2
    assert kept.restore(elsewhere, file) == 0
    assert saved(first, elsewhere).loss["train"] == [2.30259, 1, 0.5]
    assert saved(second, elsewhere).loss["train"] == [2, 1, 0.125]
    assert (elsewhere / "seconds.json").read_text() == (folder / "seconds.json").read_text()


def test_what_the_repository_keeps_are_runs_of_known_settings(tmp_path):
    """Every setting is a point of its grid, and the page's table of kept runs is made of them."""
    settings = settings_in(kept.FILE.with_name("settings.json"))
    for (task, method), setting in settings.items():
        points = METHODS[method].points(coarse=False)
        assert setting.point in points, (task, method)
        assert 1 <= setting.tried <= len(points), (task, method)
    assert kept.restore(tmp_path) >= 100
    shown = Path(kept.FILE.parents[2], "docs", "training-results.md").read_text(encoding="utf-8")
    protocol = Protocol({task: TASKS[task].methods for task in TASKS}, settings=settings)
    methods = dict.fromkeys(method for _, method in settings)
    tables = [*of_tasks(TASKS), *of_grids([method for method in METHODS if method in methods and
                                           method not in BASELINES] + list(BASELINES))]
    for line in (*page.short_table(command.rows_of(protocol, tmp_path)).splitlines(), *tables):
        assert line in shown.splitlines(), line


def test_settings_are_the_best_of_the_kept_grids(tmp_path):
    """Of each grid as many points are kept as were tried, or more, of a search that goes on."""
    kept.restore(tmp_path)
    for (task, method), setting in settings_in(kept.FILE.with_name("settings.json")).items():
        protocol = Protocol({task: (method,)})
        tried = protocol.tried(tmp_path, task, method)
        assert len(tried) >= setting.tried, (task, method)
        if len(tried) == setting.tried:
            assert protocol.best(tmp_path, task, method) == setting.point, (task, method)


def test_grids_of_known_settings_are_not_tried_again(tmp_path):
    point = (("lr", 0.01), ("beta1", 0.8))
    known = {(TASK, "adam"): Setting(point, 7)}
    protocol = Protocol({TASK: ("adam", "momentum")}, seeds=2, coarse=True, settings=known)
    assert {run.method for run in protocol.grid()} == {"momentum"}
    assert protocol.beside(tmp_path) == []
    assert [(run.method, run.point, run.seed) for run in protocol.repetitions(tmp_path)] == [
        ("adam", point, 1), ("adam", point, 2)]
    runs.save(protocol.run(TASK, "adam", point, 1), record([2, 1]), tmp_path)
    assert protocol.outcome(tmp_path, TASK, "adam").tried == 7
