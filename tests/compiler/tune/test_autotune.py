"""Near ties decided by a race: the clock is a fake, the numbers are those of the reference."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.command.cli import main
from hbpcompiler.compiler.plan.plan import plan, raced
from hbpcompiler.compiler.plan.precision import Precision
from hbpcompiler.compiler.tune import measured as tuning
from hbpcompiler.compiler.tune import race as autotune
from hbpcompiler.compiler.tune.race import Race, near_ties
from hbpcompiler.reference import reference
from tests.agreement import agree, close
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import slow
from tests.stages import closings, matched, options

QUANTITIES = ["variance", "batch_l2", "diag_ggn", "kflr"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HBP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def clock(monkeypatch):
    """The later a set of routes is in the race, the faster it is; `clock.races` counts what was timed."""

    class Clock:
        races = 0

        def __call__(self, run):
            run()
            self.races += 1
            return 1.0 / self.races

    made = Clock()
    monkeypatch.setattr(autotune, "stopwatch", lambda device: made)
    return made


def problem(samples=5):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(36, 4)).double()
    return model, torch.randn(samples, 1, 6, 6, dtype=torch.float64), torch.randint(4, (samples,))


def check(raced, plain, model, X, y):
    result, other = raced(X, y), plain(X, y)
    agree(result, model, nn.CrossEntropyLoss(), [X], y, ("variance", "batch_l2", "diag_ggn"))
    for name, factors in other.kflr.items():
        close(result.kflr[name].B, factors.B, f"B of {name}")


def test_the_winner_of_a_race_is_taken_and_remembered(clock):
    model, X, y = problem()
    plain = hbp.compile(model, quantities=QUANTITIES, example_inputs=(X, y))
    assert clock.races == 0
    raced = hbp.compile(model, quantities=QUANTITIES, example_inputs=(X, y), autotune=True)
    assert clock.races > 0
    assert "autotune" in raced.code
    assert raced.code.partition("class Program")[2] != plain.code.partition("class Program")[2]
    check(raced, plain, model, X, y)
    before = clock.races
    again = hbp.compile(model, quantities=QUANTITIES, example_inputs=(X, y), autotune=True)
    assert clock.races == before  # remembered
    assert again.code == raced.code
    assert hbp.compile(model, quantities=QUANTITIES, example_inputs=(X, y)).code == plain.code
    hbp.compile(model, quantities=QUANTITIES, example_inputs=(X[:4], y[:4]), autotune=True)
    assert clock.races > before  # another batch size is another race


def test_a_remembered_winner_that_no_longer_runs_is_raced_again(clock):
    model, X, y = problem()
    first = hbp.compile(model, quantities=QUANTITIES, example_inputs=(X, y), autotune=True).code
    before = clock.races
    tuning.remember_winners({key: [["NoSuchRoute", ["sum"]]] for key in tuning.winners()})
    assert hbp.compile(model, quantities=QUANTITIES, example_inputs=(X, y), autotune=True).code == first
    assert clock.races == 2 * before


@pytest.mark.usefixtures("clock")
@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())))
def test_races_on_random_networks(setting):
    """Whatever wins gives the numbers of the reference."""
    model, loss, X, y = setting
    raced = hbp.compile(model, loss, ["diag_ggn", "batch_l2"], autotune=True)
    torch.manual_seed(0)
    result = raced(X, y)
    for quantity in ("diag_ggn", "batch_l2"):
        for name, value in reference(model, loss, [X], y, quantity, seed=0).items():
            close(result[quantity][name], value, f"{quantity} of {name}")


class Twice(nn.Module):
    """A tied parameter, which two places close together."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.inner(torch.tanh(self.inner(x))))


def test_every_route_can_be_run_alone():
    torch.manual_seed(0)
    for model, X in ((problem()[0].float(), torch.randn(5, 1, 6, 6)), (Twice(), torch.randn(5, 4))):
        compiled = hbp.compile(model, quantities=["diag_h"] if len(X.shape) == 4 else ["diag_ggn", "batch_l2"],
                               example_inputs=(X, torch.tensor([0, 1, 2, 0, 1])))
        built = compiled._current()
        race = Race(built.matched, built.draft.plan, 5, X.device, timer=lambda run: float(run() is not None))
        steps = built.draft.plan.closings()
        assert {type(step).__name__ for step in steps} >= {"Tied" if isinstance(model, Twice) else "Close"}
        for step in steps:
            runners = near_ties(step, 5, within=1e9)
            assert runners
            assert race.seconds(step, runners, rounds=1) == [1.0] * len(runners)


def test_autotune_must_be_a_truth_value():
    with pytest.raises(TypeError, match="autotune"):
        hbp.compile(nn.Linear(2, 2), quantities=["grad"], autotune="yes")


def test_the_command_has_it_too(clock, tmp_path, monkeypatch):
    (tmp_path / "hbpraced.py").write_text("from torch import nn\n\ndef make():\n    return nn.Linear(6, 3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["compile", "hbpraced:make", "-q", "variance,batch_l2", "-i", "6", "-b", "5"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert clock.races == 0
    done = CliRunner().invoke(main, [*arguments, "--autotune"])
    assert done.exit_code == 0, done.output
    assert clock.races > 0
    assert "autotune" in done.output


@pytest.mark.usefixtures("clock")
def test_pooled_columns_do_not_race():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(32, 3)).double()
    X, y = torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.randint(3, (5,))
    raced = hbp.compile(model, quantities=["diag_ggn"], autotune=True)
    result = raced(X, y)
    assert "pooled" in raced.code
    for name, value in reference(model, nn.CrossEntropyLoss(), [X], y, "diag_ggn").items():
        close(result.diag_ggn[name], value, name)


def test_loops_whose_totals_have_names_of_their_own_are_raced(clock):
    """Sliding windows fill a core and its edges, which the loop must be able to run."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 8, 5, padding=2), nn.Flatten(), nn.Linear(8 * 14 * 14, 3)).double()
    X, y = torch.randn(2, 32, 14, 14, dtype=torch.float64), torch.tensor([0, 2])
    raced = hbp.compile(model, quantities=["kflr"], autotune=True)(X, y)
    assert clock.races
    for name, factors in hbp.compile(model, quantities=["kflr"])(X, y).kflr.items():
        if factors.A is not None:
            close(raced.kflr[name].A, factors.A, f"A of {name}")


@slow("a second or more; shorter ones of its kind stay")
def test_inner_products_and_what_calls_bring(clock):
    """Totals of groups, the gradient beside curvature; closings that meet a call's vectors stay as they were."""
    model, X, y = problem()
    names = ["gram", "cross", "batch_dot", "project", "clipped_grad"]
    directions = {name: torch.randn(2, *p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
    limits = hbp.Limits(near_tie=100.0)
    plain, raced = (hbp.compile(model, quantities=names, limits=limits, autotune=tuned)(
        X, y, directions=directions, max_norm=0.3) for tuned in (False, True))
    assert clock.races > 0
    for quantity in names:
        for name, value in plain[quantity].items():
            close(raced[quantity][name], value, f"{quantity} of {name}")


def images(*layers):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers, nn.Conv2d(8, 4, 3, padding=1), nn.Flatten(),
                          nn.Linear(4 * 64, 3))
    return model, torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1])


def laid_out(model, X, y, race):
    """The plan of a machine that is faster pixel by pixel, for `variance`."""
    found = matched(model, X, y, quantities=("variance",))
    return plan(found, closings("variance"), options("variance"), pixels=True, race=race)


def test_routes_are_raced_as_images_lie_in_the_program():
    seen = []
    found = laid_out(*images(nn.Tanh()), lambda planned: seen.append(planned) or planned)
    assert [planned.by_pixels for planned in seen] == [True]
    assert found is seen[0]
    seen.clear()
    assert not laid_out(*images(nn.GroupNorm(2, 8)), lambda planned: seen.append(planned) or planned).by_pixels
    assert [planned.by_pixels for planned in seen] == [False]


def test_a_winner_that_reads_no_pixels_is_raced_channel_by_channel():
    """Where images then lie otherwise, so do those of all other races."""
    seen = []

    def race(planned):
        seen.append(planned.by_pixels)
        return planned

    planned = laid_out(*images(nn.Tanh()), lambda planned: planned)
    assert raced(planned, race, lambda planned: False).by_pixels is False
    assert seen == [True, False]
    seen.clear()
    assert raced(replace(planned, by_pixels=False), race, lambda planned: True).by_pixels is False
    assert seen == [False]


def test_tensors_of_a_race_lie_as_those_of_the_program():
    model, X, y = images(nn.Tanh())
    found = matched(model, X, y, quantities=("variance",))
    planned = plan(found, closings("variance"), options("variance"), pixels=True)
    assert planned.by_pixels
    for by_pixels in (True, False):
        race = Race(found, replace(planned, by_pixels=by_pixels), 5, X.device, lambda run: float(run() is not None))
        for step in planned.closings():
            operation = step.operation
            for value in (operation.output, *operation.tensors.values()):
                made = race._random(operation, value)
                if made.dim() == 4:
                    lies = made.is_contiguous(memory_format=torch.channels_last)
                    assert lies == (by_pixels and value.role != "input"), value
            if len(operation.output.sample_shape) == 3:
                columns = race._columns(operation, step.piece, Precision(None))
                assert columns[:, 0].is_contiguous(memory_format=torch.channels_last) == by_pixels
            runners = near_ties(step, 5, within=1e9)
            assert race.seconds(step, runners, rounds=1) == [1.0] * len(runners)
