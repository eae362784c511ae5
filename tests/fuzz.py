"""Thousands of the random models of `test_fuzzing`, each beside autograd: `make fuzz`, or

    python -m tests.fuzz [--models 2000] [--seed 0] [--record build/fuzz.jsonl]

Models come in parts, each in a process of its own and drawn from the seed and the part's number. The record has a line
for each part that is done: started again, a run goes on where it was. It ends with 1 if a model disagreed.
"""

import argparse
import collections
import json
import subprocess
import sys
import traceback
import warnings
from datetime import datetime
from pathlib import Path

PART = 50
"""Models of one process."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, default=Path("build/fuzz.jsonl"))
    parser.add_argument("--part", type=int, help="only this part, here, its record to standard output")
    given = parser.parse_args()
    if given.part is not None:
        print(json.dumps(run_part(given.seed, given.part, min(PART, given.models))))
        return
    given.record.parent.mkdir(parents=True, exist_ok=True)
    for part in range(-(-given.models // PART)):
        if part not in done_parts(given.record, given.seed):
            size = min(PART, given.models - part * PART)
            line = in_own_process(given.seed, part, size)
            with given.record.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        print(summary(given.record, given.seed), flush=True)
    sys.exit(any(record["disagreements"] for record in records(given.record, given.seed)))


def in_own_process(seed, part, models):
    """One line of the record. A process that dies counts as one disagreement, with its last words."""
    command = [sys.executable, "-m", "tests.fuzz", "--seed", str(seed), "--part", str(part), "--models", str(models)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1]
    died = {"title": "a process that died", "text": done.stderr[-2000:]}
    return json.dumps({"seed": seed, "part": part, "models": 0, "calls": {}, "disagreements": [died]})


def run_part(seed, part, models):
    """Draws and compares `models` of them, here."""
    import hypothesis

    from tests.kept_overrides import keep_overrides
    from tests.models import test_fuzzing

    keep_overrides()
    warnings.simplefilter("ignore")
    calls, disagreements, count = collections.Counter(), [], 0
    test_fuzzing.event = lambda text: calls.update([text])

    @hypothesis.seed(seed * 1_000_000 + part)
    @hypothesis.settings(deadline=None, max_examples=models, database=None, phases=[hypothesis.Phase.generate],
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(test_fuzzing.settings())
    def run(setting):
        nonlocal count
        count += 1
        try:
            test_fuzzing.compare(setting)
        except Exception:
            disagreements.append({"title": setting.title, "text": traceback.format_exc()[-2000:]})

    run()
    return {"seed": seed, "part": part, "models": count, "calls": calls, "disagreements": disagreements,
            "ended": datetime.now().isoformat(timespec="seconds")}


def records(path, seed):
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [record for record in map(json.loads, lines) if record["seed"] == seed]


def done_parts(path, seed):
    return {record["part"] for record in records(path, seed)}


def summary(path, seed):
    """`350 models, 1050 calls: 1048 agree, 2 refused; 0 disagreements`."""
    models, calls, disagreements = 0, collections.Counter(), 0
    for record in records(path, seed):
        models += record["models"]
        for text, number in record["calls"].items():
            calls[text.split()[0]] += number
        disagreements += len(record["disagreements"])
    return (f"{models} models, {calls['agrees'] + calls['refused']} calls: {calls['agrees']} agree, "
            f"{calls['refused']} refused; {disagreements} disagreements")


if __name__ == "__main__":
    main()
