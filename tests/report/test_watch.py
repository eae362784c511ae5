"""`hbp watch` and `hbp report`: tables and lines of growing logs, half-written lines, what is no log."""

import io
import json

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from hbpcompiler.command.cli import main
from hbpcompiler.report.tracks import Series, Track
from hbpcompiler.report.watching import course, rows, view, watch
from hbpcompiler.runs import read
from tests.report import made_up


def shown(path, terminal, stop=lambda run: True, size=(140, None)):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=size[0], height=size[1], color_system=None)
    watch(path, console=console, every=0.01, stop=stop)
    return text.getvalue()


def test_a_table_in_a_terminal(tmp_path):
    text = shown(made_up.healthy(tmp_path / "log.jsonl", steps=60), terminal=True)
    for words in ("healthy", "Step against the valley", "the norm test needs more than", "the batch has 128", "▁",
                  "step 59", "<script>alert(1)</script>", "Layers"):
        assert words in text
    text = shown(made_up.broken(tmp_path / "broken.jsonl"), terminal=True)
    assert "30 of 90 values are not finite" in " ".join(text.split())
    assert "left out: hess_max_ev" in text
    assert "xx" in text


def test_a_small_terminal_has_a_line_for_each_instrument_and_all_words_at_the_end(tmp_path):
    run = read(made_up.healthy(tmp_path / "log.jsonl", steps=60))
    text = io.StringIO()
    console = Console(file=text, width=80, color_system=None)
    console.print(view(run, 80, 24))
    lines = text.getvalue().splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    assert sum("…" in line for line in lines) > 5
    assert any("norm test need" in line and "▁" in line for line in lines)
    whole = shown(tmp_path / "log.jsonl", terminal=True, size=(80, 24))
    assert "".join(whole.split()).count("thebatchhas128") >= 1
    assert len(view_lines(run, 80)) > 24


def view_lines(run, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    return console.render_lines(view(run, width), pad=False)


def test_plain_lines_without_a_terminal(tmp_path):
    text = shown(made_up.single(tmp_path / "log.jsonl"), terminal=False)
    lines = text.splitlines()
    assert lines[0].startswith("step 0  0.1 s  loss ")
    assert "\x1b" not in text
    lines = shown(made_up.broken(tmp_path / "broken.jsonl"), terminal=False).splitlines()
    assert sum(line.startswith("step ") for line in lines) == 90
    assert "step 70  7.0 s  loss nan" in "\n".join(lines)
    assert any(line.startswith("! ") and "not finite" in line for line in lines)


def test_numbers_of_ones_own_have_lines_too(tmp_path):
    log = tmp_path / "log.jsonl"
    made_up.single(log)
    with log.open("a") as file:
        for step, accuracy in ((0, 0.25), (1000, 0.75)):
            file.write(json.dumps({"kind": "scalars", "step": step, "time": 9.0, "values": {"valid": accuracy}}) + "\n")
    lines = shown(log, terminal=False).splitlines()
    assert "step 0  9.0 s  valid 0.25" in lines
    assert "step 1000  9.0 s  valid 0.75" in lines


@pytest.mark.parametrize("terminal", [False, True])
def test_a_growing_log_is_followed_and_a_half_line_waits(tmp_path, terminal):
    whole = made_up.healthy(tmp_path / "whole.jsonl", steps=8).read_bytes().splitlines(keepends=True)
    later = b'{"kind": "step", "step": 0, "time": 0.2, "values": {"afterwards": 5}}\n'
    parts = iter([whole[0][:20], whole[0][20:] + whole[1], later + b"".join(whole[2:5]) + whole[5][:50], whole[5][50:],
                  b""])
    log, seen = tmp_path / "log.jsonl", []

    def more(run):
        seen.append(run.last_step)
        part = next(parts, None)
        if part is None:
            return True
        with log.open("ab") as file:
            file.write(part)
        return False

    text = shown(log, terminal, more)
    last = max(json.loads(line).get("step", -1) for line in whole[:6])
    assert seen[:2] == [-1, -1], "no file; then half a header"
    assert seen[-1] == last
    assert text.count(f"step {last}") >= 1
    if not terminal:
        later_lines = [line.split() for line in text.splitlines() if line.startswith("step 0 ")][1:]
        assert later_lines[0] == ["step", "0", "0.0", "s", "afterwards", "5"], "later numbers have a line of their own"
        assert sum("afterwards" in line for line in later_lines) == 1


@pytest.mark.parametrize("terminal", [False, True])
def test_no_name_commands_the_terminal(tmp_path, terminal):
    evil = "\x1b[2J\x1b]0;owned\x07 loss"
    lines = [made_up.header(evil, {evil: [2]}, left_out={evil: evil}),
             {"kind": "step", "step": 0, "time": 0.0, "rows": 2, "values": {evil: 1.0, "grad_norm": {evil: 0.0}}}]
    text = shown(made_up.write(tmp_path / "log.jsonl", lines), terminal)
    assert "owned" in text
    assert "\x1b[2J" not in text
    assert "\x1b]0" not in text


def test_what_is_no_log_is_refused(tmp_path):
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("hello\n", encoding="utf-8")
    called = CliRunner().invoke(main, ["watch", str(foreign)])
    assert called.exit_code == 2
    assert "no log of hbp.Monitor" in called.output


def test_the_commands(tmp_path):
    log = str(made_up.single(tmp_path / "log.jsonl"))
    called = CliRunner().invoke(main, ["watch", log, "--once"])
    assert called.exit_code == 0, called.output
    assert "step 0" in called.output
    page = tmp_path / "page.html"
    called = CliRunner().invoke(main, ["report", log, log, "-o", str(page)])
    assert called.exit_code == 0, called.output
    assert "2 runs, 4." in called.output
    assert page.stat().st_size > 1e6
    made_up.single(tmp_path / "other.jsonl")
    called = CliRunner().invoke(main, ["report", str(tmp_path), "-o", str(page)])
    assert f"{page}: 2 runs, 4." in called.output, called.output
    (tmp_path / "empty").mkdir()
    called = CliRunner().invoke(main, ["report", str(tmp_path / "empty"), "-o", str(page)])
    assert (called.exit_code, "holds no log" in called.output) == (2, True)
    called = CliRunner().invoke(main, ["report", log, "-o", str(tmp_path / "report.md")])
    assert (called.exit_code, "call it" in called.output) == (2, True)
    assert not (tmp_path / "report.md").exists()
    called = CliRunner().invoke(main, ["report", str(tmp_path / "absent.jsonl"), "-o", str(page)])
    assert called.exit_code == 2
    assert "cannot be read" in called.output


def test_a_course_in_blocks():
    values = torch.tensor([0.0, 1.0, 2.0, float("nan"), 7.0], dtype=torch.float64)
    assert course(Series(torch.arange(5), values)) == "▁▂▃x█"
    assert course(Series(torch.arange(2), torch.tensor([3.0, 3.0]))) == "▄▄"
    assert course(Series(torch.arange(2), torch.tensor([float("nan")] * 2))) == "xx"
    assert len(course(Series(torch.arange(100), torch.rand(100)))) == 24


def test_rows_have_the_pages_order(tmp_path):
    titles = [row.title for row in rows(Track(read(made_up.healthy(tmp_path / "log.jsonl", steps=5))))]
    assert titles[:3] == ["Step against the valley (alpha)", "Distance and updates", "Norm of the gradient"]
    assert titles[-1] == "Layers"
    assert "valid_accuracy" in titles
