"""What became of each question, in the repository: a line of JSON each, by family and question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .apart import RECORDS, file_of

KEPT = Path(__file__).with_name("records.jsonl")


def restore(kept: Path = KEPT) -> None:
    """A file in build/zoo for each record that has none: those that are there are newer."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []:
        record = json.loads(line)
        path = file_of(record["family"], record["question"])
        if not path.exists():
            path.write_text(line, encoding="utf-8")


def keep(kept: Path = KEPT) -> list[dict[str, Any]]:
    """All records, as they are kept from now on."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in RECORDS.glob("*.json")]
    records.sort(key=lambda record: (record["family"], record["question"]))
    kept.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return records
