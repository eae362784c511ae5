"""The zoo's page is that of the records that are kept, and those of a few families change their rows alone."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("zoo")  # the tests also run where only the wheel is

from zoo import apart, kept
from zoo.table import page

ROOT = Path(__file__).parents[2]


def test_the_page_is_that_of_the_records():
    text = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    titles = re.findall(r"^\| (\w+:[^|]+) \|", text, re.MULTILINE)
    assert len(titles) > 190
    records = [json.loads(line) for line in kept.KEPT.read_text(encoding="utf-8").splitlines()]
    assert page(records, titles) == text


def test_records_are_kept_beside_new_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "records.jsonl"
    old = [{"family": f"timm:{name}", "question": "diag_h", "status": "holds", "text": ""} for name in "ab"]
    file.write_text("".join(f"{json.dumps(record)}\n" for record in old))
    kept.restore(file)
    new = {**old[1], "status": "slow", "text": "not done"}
    apart.file_of("timm:b", "diag_h").write_text(json.dumps(new))
    kept.restore(file)
    assert kept.keep(file) == [old[0], new]
    assert [json.loads(line) for line in file.read_text().splitlines()] == [old[0], new]
