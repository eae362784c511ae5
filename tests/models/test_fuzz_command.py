"""`make fuzz`: a model that disagrees is counted and named, and a run goes on where it was."""

import json
import sys

import pytest

from tests import fuzz
from tests.models import test_fuzzing


def test_a_model_that_disagrees_is_counted_and_named_and_the_others_go_on(monkeypatch, tmp_path):
    seen = []

    def compare(setting):
        seen.append(setting.title)
        if len(seen) == 2:
            raise AssertionError("grad of head.weight: not close")
        test_fuzzing.event("agrees at first")

    monkeypatch.setattr(test_fuzzing, "event", None)
    monkeypatch.setattr(test_fuzzing, "compare", compare)
    record = fuzz.run_part(seed=3, part=1, models=4)
    assert len(set(seen)) == 4
    (disagreement,) = record["disagreements"]
    assert disagreement["title"] == seen[1]
    assert "grad of head.weight" in disagreement["text"]
    again = []
    monkeypatch.setattr(test_fuzzing, "compare", lambda setting: again.append(setting.title))
    fuzz.run_part(seed=3, part=1, models=4)
    assert again == seen
    path = tmp_path / "fuzz.jsonl"
    path.write_text(json.dumps(record) + "\n")
    assert fuzz.summary(path, 3) == "4 models, 3 calls: 3 agree, 0 refused; 1 disagreements"
    assert fuzz.summary(path, 4).startswith("0 models")


def test_parts_that_are_done_are_not_run_again_and_a_process_that_dies_is_a_disagreement(monkeypatch, tmp_path):
    path = tmp_path / "fuzz.jsonl"
    path.write_text(json.dumps({"seed": 0, "part": 0, "models": 50, "calls": {}, "disagreements": []}) + "\n")
    monkeypatch.setattr(sys, "argv", ["fuzz", "--models", "60", "--record", str(path)])
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(SystemExit) as end:
        fuzz.main()
    assert end.value.code == 1
    _, second = path.read_text().splitlines()
    assert json.loads(second)["part"] == 1
    assert json.loads(second)["disagreements"][0]["title"] == "a process that died"
