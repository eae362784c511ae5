"""What a report draws and says of a log: series, groups, layers, histograms, what is missing."""

import base64
import json
import math
import random
import statistics
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hbpcompiler as hbp
from hbpcompiler.errors import InputError, OptionError
from hbpcompiler.report import writing
from hbpcompiler.report.contents import contents
from hbpcompiler.report.curves import GROUPS, POINTS, curve, moving
from hbpcompiler.report.instruments import COLUMNS
from hbpcompiler.report.instruments.gradients import field
from hbpcompiler.report.instruments.step_size import density
from hbpcompiler.report.layers import packed
from hbpcompiler.report.tracks import Histogram, Layers, Series, Track, tracks_of
from hbpcompiler.runs import read
from tests.report import made_up
from tests.selection import slow


def series(values, first=0):
    return Series(torch.arange(first, first + len(values)), torch.tensor(values, dtype=torch.float64))


def found(folder, *logs):
    return contents(tracks_of([read(log(folder / f"{log.__name__}.jsonl")) for log in logs]))


@given(st.integers(POINTS + 1, 3000), st.integers(0, 10**6))
def test_groups_keep_every_extreme(many, seed):
    generator = random.Random(seed)
    values = [generator.gauss(0, 1) ** 3 for _ in range(many)]
    drawn = curve(series(values))
    assert len(drawn["steps"]) == GROUPS
    for group in range(GROUPS):
        inside = sorted(values[drawn["from"][group]:drawn["to"][group] + 1])
        assert drawn["low"][group] == pytest.approx(inside[0], rel=1e-5)
        assert drawn["high"][group] == pytest.approx(inside[-1], rel=1e-5)
        assert drawn["median"][group] == pytest.approx(statistics.median(inside), rel=1e-5)
    assert drawn["from"] == [0, *(last + 1 for last in drawn["to"][:-1])]
    assert drawn["to"][-1] == many - 1


def test_a_short_series_is_drawn_whole():
    drawn = curve(series([1.0, math.nan, 3.0, math.inf], first=5))
    assert (drawn["steps"], drawn["values"]) == ([5, 7], [1.0, 3.0])
    assert drawn["notFinite"] == {"count": 2, "first": 6, "steps": [6, 8]}
    assert drawn["range"] == [1.0, 3.0]
    assert drawn["positive"]
    nothing = curve(series([math.nan]))
    assert (nothing["steps"], nothing["range"], nothing["positive"]) == ([], None, False)
    assert moving(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    step = moving((torch.arange(200) >= 100).double())
    assert (step[0].item(), step[99].item(), step[100].item()) == pytest.approx((0, 0.4, 0.6), abs=0.01)
    trend = moving(torch.arange(100, dtype=torch.float64))
    assert trend[30:70].tolist() == pytest.approx(list(range(30, 70)), abs=0.01), "it does not lag"


@pytest.mark.parametrize("many", [100, 5000])
def test_an_axis_shows_trends_whole_and_is_not_stretched_by_outliers(many):
    values = [10 - 9 * index / many for index in range(many)]
    for outlier in (many // 3, many // 2):
        values[outlier] = 1e6
    low, high = curve(series(values))["range"]
    assert 0.9 < low < 1.2
    assert 9.5 < high < 10.1


def test_norms_add_up_as_squares_and_traces_as_they_are(tmp_path):
    lines = [made_up.header("run", {"b": [2], "a": [3]}),
             {"kind": "step", "step": 0, "time": 0.0, "rows": 8,
              "values": {"grad_norm": {"a": 3.0, "b": 4.0}, "hess_trace": {"a": 3.0, "b": -4.0}, "mine": 2}},
             {"kind": "step", "step": 1, "time": 0.1, "rows": 8, "values": {"grad_norm": {"a": "nan", "b": 1.0}}}]
    track = Track(read(made_up.write(tmp_path / "log.jsonl", lines)))
    assert track.series("grad_norm").values[0] == 5.0
    assert track.series("grad_norm").values[1].isnan()
    assert track.series("hess_trace").values.tolist() == [-1.0]
    layers = track.layers("grad_norm")
    assert layers.names == ("b", "a"), "in the model's order"
    assert layers.values[0].tolist() == [4.0, 3.0]
    assert track.layered == ["grad_norm", "hess_trace"]
    assert track.rows.at(torch.tensor([5])).tolist() == [8.0]


def test_groups_of_an_optimizer_have_step_sizes_of_their_own_and_no_common_edge(tmp_path):
    lines = [made_up.header("run", {"a": [2]}),
             *({"kind": "step", "step": step, "time": 0.0, "rows": 4,
                "values": {"lr": lr, "hess_max_ev": 30.0}}
               for step, lr in enumerate([0.1, {"group 0": 0.1, "group 1": 0.01}]))]
    page = contents(tracks_of([read(made_up.write(tmp_path / "log.jsonl", lines))]))
    cards = {card.instrument.key: card.drawn[0] for cards in page.columns.values() for card in cards}
    assert "step sizes from 0.01 to 0.1" in cards["lr"].verdicts[0].text
    assert [line["values"] for line in cards["lr"].data["lines"]] == [[0.1, 0.1], [0.1, 0.01]]
    assert cards["hess_max_ev"].verdicts[0].text == "sharpest direction 30"
    assert cards["hess_max_ev"].data["lines"][1]["values"] == [20.0]
    assert page.layers == []


def test_odd_values_of_a_log_are_left_out(tmp_path):
    lines = [made_up.header("run", {"a": [2], "b": 3}, optimizer=None, left_out=None, notes=None),
             {"kind": "step", "step": 0, "time": 0.0, "rows": "many",
              "values": {"loss": 1.0, "mine": "words", "list": [1], "none": None, "yes": True, "lr": "fast",
                         "empty": {}, "grad_norm": {"a": 1.0, "b": None},
                         "grad_hist_1d": {"counts": [1, 2], "edges": [0, 1]},
                         "grad_hist_2d": {"": {"counts": [[1, 2], [3]], "edges": [[0, 1, 2], [0, 1, 2]]}}}}]
    page = contents(tracks_of([read(made_up.write(tmp_path / "log.jsonl", lines))]))
    shown = [card.instrument.key for cards in page.columns.values() for card in cards]
    assert shown == ["grad_norm", "loss"]
    json.dumps(page.data(), allow_nan=False)


def unpacked(text, code):
    data = base64.b64decode(text)
    return list(struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data))


@pytest.mark.parametrize(("scale", "code"), [(1.0, "f"), (1e-60, "d")])
def test_layers_are_packed_with_their_extremes(scale, code):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(37, 3, generator=generator, dtype=torch.float64) * scale
    values[11, 1] = math.nan
    made = packed(Layers(("a", "b", "c"), torch.arange(37), values), 5)
    assert made["code"] == code
    parts = values.tensor_split(5)
    for key, reduced in (("median", lambda part: part.nanmedian(0).values), ("low", lambda part: part.amin(0)),
                         ("high", lambda part: part.amax(0))):
        expected = torch.stack([reduced(part) for part in parts], dim=1).flatten()
        got = torch.tensor(unpacked(made[key], code), dtype=torch.float64)
        if key != "median":
            assert torch.allclose(got, expected, rtol=1e-6, atol=0, equal_nan=True)
    medians = torch.tensor(unpacked(made["median"], code), dtype=torch.float64).reshape(3, 5)
    assert medians.isnan().sum() == 1
    assert medians[1, 1].isnan(), "the group with a value that is not finite is seen"
    few = packed(Layers(("a", "b", "c"), torch.arange(37), values), 100)
    assert "low" not in few
    assert len(few["steps"]) == 37


def test_a_field_with_too_many_bins_keeps_every_count():
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 50, (45, 33), generator=generator).double()
    edges = (torch.arange(46).double(), torch.arange(34).double())
    made = field(Histogram(3, counts, edges), bins=10)
    assert sum(map(sum, made["counts"])) == counts.sum()
    assert (len(made["counts"]), len(made["counts"][0])) == (9, 9)
    assert [len(axis) for axis in made["edges"]] == [10, 10]
    assert made["counts"][0][0] == counts[:5, :4].sum()
    assert made["edges"][0][-1] == 45


def test_the_density_of_alpha_has_the_area_of_what_it_covers():
    generator = torch.Generator().manual_seed(0)
    grid = torch.linspace(-2, 2, 401, dtype=torch.float64)
    values = torch.cat([0.3 * torch.randn(900, generator=generator, dtype=torch.float64), torch.full((100,), 7.0)])
    assert torch.trapezoid(density(values, grid), grid).item() == pytest.approx(0.9, abs=0.01)


@slow("each instrument has its test")
def test_every_instrument_is_drawn_or_named_as_missing(tmp_path):
    keys = {heading: {instrument.key for instrument in instruments} for heading, instruments in COLUMNS.items()}
    assert keys == {  # Cockpit's 14; its gauge of the tests is two
        "Step size": {"alpha", "distance", "grad_norm"},
        "Gradients": {"noise", "areas", "grad_hist_1d", "grad_hist_2d"},
        "Curvature": {"hess_max_ev", "hess_trace", "tic"}, "Context": {"loss", "lr"},
        "Auxiliary": {"mean_gsnr", "cabs", "early_stopping"}}
    for logs in ((made_up.healthy,), (made_up.broken,), (made_up.single,), (made_up.healthy, made_up.single)):
        page = found(tmp_path, *logs)
        titles = {instrument.title for instruments in COLUMNS.values() for instrument in instruments}
        shown = {card.instrument.title for cards in page.columns.values() for card in cards}
        assert titles - shown == {title for title, _ in page.missing}
        assert len({title for title, _ in page.missing}) == len(page.missing)
        json.dumps(page.data(), allow_nan=False)
        for cards in page.columns.values():
            for card in cards:
                assert any(card.drawn)
                assert all(drawn.verdicts for drawn in card.drawn if drawn)
    assert not found(tmp_path, made_up.healthy).missing


def test_what_is_left_out_is_named_with_the_headers_reason(tmp_path):
    missing = dict(found(tmp_path, made_up.broken).missing)
    assert missing["Sharpest direction"] == "hess_max_ev: <i>no rule</i> for it"
    assert missing["Trace of the Hessian"] == "needs hess_trace, which was not tracked"


def test_what_stands_out_is_said_once_for_all_instruments(tmp_path):
    page = found(tmp_path, made_up.broken)
    said = [finding.text for finding in page.findings]
    assert len(said) == len(set(said))
    broken = next(finding for finding in page.findings if "not finite" in finding.text)
    assert broken.text == "30 of 90 values are not finite, the first at step 60"
    assert {"loss", "grad_norm"} <= {key for key, _ in broken.links}
    assert any("end higher than they began" in text for text in said)
    assert any("explodes" in text for text in said)


def test_runs_of_one_name_are_told_apart(tmp_path):
    run = read(made_up.single(tmp_path / "a.jsonl", name="run"))
    assert [track.name for track in tracks_of([run, run, run])] == ["run", "run (2)", "run (3)"]
    assert Track(read(made_up.single(tmp_path / "b.jsonl", name=""))).name == "b"


def test_no_text_of_a_run_becomes_a_part_of_the_page(tmp_path):
    page = hbp.report([made_up.healthy(tmp_path / "a.jsonl", steps=30), made_up.broken(tmp_path / "b.jsonl")],
                      tmp_path / "page.html")
    head, _, tail = page.read_text(encoding="utf-8").partition(writing._library())
    for hostile in ("<script>alert", "<img", "<b>bold", "<a href='", "<i>no rule", "in eval mode <b>"):
        assert hostile not in head + tail
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in head
    data = head.rpartition('id="data">')[2].partition("</script>")[0]
    names = json.loads(data)["layers"][0]["runs"][0]["layers"]
    assert set(made_up.HOSTILE) <= set(names)
    assert json.loads(data)["runs"][1]["name"] == made_up.HOSTILE[2]
    assert not {"<", ">", "&"} & set(data)


def test_what_cannot_be_read_or_written_is_named(tmp_path, monkeypatch):
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("hello\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"(?s)foreign.jsonl.*absent.jsonl"):
        hbp.report([foreign, tmp_path / "absent.jsonl"], tmp_path / "page.html")
    with pytest.raises(InputError, match="no log"):
        hbp.report([], tmp_path / "page.html")
    log = made_up.single(tmp_path / "log.jsonl")
    with pytest.raises(InputError, match="cannot be written"):
        hbp.report(log, tmp_path / "no folder" / "page.html")
    assert not (tmp_path / "page.html").exists()
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(OptionError, match="pip install"):
        hbp.report(log, tmp_path / "page.html")


def test_a_log_that_is_cut_off_is_reported_up_to_there(tmp_path):
    log = made_up.healthy(tmp_path / "log.jsonl", steps=30)
    text = log.read_bytes()
    log.write_bytes(text[:-100])
    page = contents(tracks_of([read(log)]))
    assert "cut off" in page.problems[0][1]
    page = hbp.report(log, tmp_path / "page.html")
    assert "the last line is cut off" in page.read_text(encoding="utf-8")
