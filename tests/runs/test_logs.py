"""Logs: what is written is read, of runs that go on, were killed, are resumed; what is no log is named."""

import json
import math
import pickle
import resource
import tracemalloc
from pathlib import Path

import pytest

import hbpcompiler as hbp
from hbpcompiler.runs import FORMAT, Log, read

HEADER = {"kind": "header", "format": FORMAT, "version": 1, "name": "run", "parameters": {"0.weight": [2, 3]},
          "left_out": {}}


def _step(step: int, **values: object) -> dict[str, object]:
    return {"kind": "step", "step": step, "time": 0.5 * step, "rows": 8, "values": values}


def _log(path: Path, *lines: dict[str, object]) -> Log:
    log = Log(path)
    for line in lines:
        assert log.write(line)
    return log


def test_lines_of_one_step_are_merged_and_numbers_come_back(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    _log(path, HEADER, _step(0, loss=math.nan, grad_norm={"0.weight": 1 / 3}), _step(16, loss=-math.inf),
         {"kind": "step", "step": 0, "time": 9.0, "values": {"alpha": 0.25}},
         {"kind": "scalars", "step": 16, "time": 8.5, "values": {"valid_accuracy": math.inf}},
         {"kind": "left_out", "step": 16, "time": 8.5, "values": {"hess_trace": "why"}})
    for text in path.read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)
    run = read(path)
    assert [step.step for step in run.steps] == [0, 16]
    assert (run.name, run.problems) == ("run", [])
    first = run.steps[0]
    assert math.isnan(first.values["loss"])
    assert first.values["alpha"] == 0.25
    assert (first.time, first.rows) == (0.0, 8)
    assert first.values["grad_norm"]["0.weight"] == pytest.approx(1 / 3, rel=1e-8)
    assert run.series("loss")[0] == [0, 16]
    assert run.series("loss")[1][1] == -math.inf
    assert run.series("valid_accuracy") == ([16], [math.inf])
    assert run.header["left_out"] == {"hess_trace": "why"}
    assert (run.last_step, run.last_time) == (16, 8.5)


def test_a_killed_run_is_read_to_its_last_line_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    _log(path, HEADER, *(_step(step, loss=float(step)) for step in range(4)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    kept = whole[:whole[:-7].rindex(b"\n")]
    run = read(path)
    assert [step.step for step in run.steps] == [0, 1, 2]
    assert "cut off" in run.problems[0]

    log = Log(path)
    assert log.before is not None
    assert log.before.last_step == 2
    log.write({"kind": "resumed", "step": 2, "time": 7.0, "started": "later"})
    log.write(_step(2, loss=20.0))
    assert run.refresh()
    assert not run.problems
    assert len(run.resumed) == 1
    assert run.series("loss") == ([0, 1, 2], [0.0, 1.0, 20.0])
    assert path.read_bytes().startswith(kept)
    assert not run.refresh()

    path.write_bytes(whole)  # begun anew by somebody
    path.write_bytes(whole[:len(whole) // 2])
    run.refresh()
    assert len(run.steps) < 3


def test_a_damaged_line_is_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    _log(path, HEADER, _step(0, loss=1.0))
    with path.open("ab") as file:
        file.write(b'\x00\x00\x00\n{"kind":"step","step":NaN}\n{"kind":"step","step":"x"}\n{"kind":"odd"}\n[1]\n')
    Log(path).write(_step(1, loss=2.0))
    run = read(path)
    assert run.series("loss")[0] == [0, 1]
    assert len(run.problems) == 5


@pytest.mark.parametrize(("content", "said"), [
    (b"step,loss\n0,1\n", "not JSON"), (b"\xff\xfe\x00\n", "UTF-8"), (b"", "empty"),
    (b'{"kind": "header"', "not complete"),
    (b'{"kind": "header", "format": "other"}\n', FORMAT), (b'{"loss": 1}\n', "kind"),
    (b'{"kind": "header", "format": "hbp-monitor", "version": 99}\n', "newer")])
def test_a_foreign_file_is_named_and_left_as_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with pytest.raises(hbp.InputError, match=said):
        read(path)
    if content:
        with pytest.raises(hbp.InputError, match=said):
            Log(path)
    assert path.read_bytes() == content


def test_what_is_wrong_with_a_path_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, said in [(tmp_path / "missing" / "run.jsonl", "cannot be written"), (tmp_path, "is a folder"),
                       (tmp_path / "file" / "run.jsonl", "cannot be written"),
                       (Path("/proc/run.jsonl"), "cannot be written"),
                       (tmp_path / f"{'long' * 99}.jsonl", "cannot be written: File name too long")]:
        with pytest.raises(hbp.InputError, match=said):
            Log(path)
    with pytest.raises(hbp.InputError, match="cannot be read"):
        read(tmp_path / "missing.jsonl")


def test_a_full_disk_is_a_warning_and_lines_wait(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    log = _log(path, HEADER, _step(0, loss=1.0))
    before = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + 20, limits[1]))
    try:
        with pytest.warns(hbp.LogWarning, match="Training goes on") as seen:
            written = [log.write(_step(step, loss=step + 1.0)) for step in (1, 2)]
        assert written == [False, False]
        assert len(seen) == 1
        assert seen[0].filename == __file__
        assert path.stat().st_size == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.write(_step(3, loss=4.0))
    assert read(path).series("loss") == ([0, 1, 2, 3], [1.0, 2.0, 3.0, 4.0])
    path.unlink()
    with pytest.warns(hbp.LogWarning, match="cannot be written"):
        log.write(_step(4))


def test_numbers_by_name_share_their_names_and_read_as_dicts(tmp_path: Path) -> None:
    """Of a long run of a deep network the names, again and again, would be most of what is kept."""
    names = {f"{layer}.weight": 0.5 * layer for layer in range(200)}
    path = tmp_path / "run.jsonl"
    _log(path, HEADER, *(_step(step, grad_norm={**names, "0.weight": math.nan}, few={"a": 1.0}) for step in range(500)))
    tracemalloc.start()
    run = read(path)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2 * 500 * 200 * 8  # dicts would take ten times as much
    assert most < kept + 300_000  # a line at a time
    found = run.by_step[3].values
    assert found["few"] == {"a": 1.0}
    assert math.isnan(found["grad_norm"]["0.weight"])
    assert {**found["grad_norm"], "0.weight": 0.0} == names
    assert list(found["grad_norm"]) == list(names)
    with pytest.raises(KeyError):
        found["grad_norm"]["nowhere"]
    assert pickle.loads(pickle.dumps(run)).by_step[3].values["few"] == {"a": 1.0}
