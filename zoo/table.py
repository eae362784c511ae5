"""The page of docs/ that holds what became of every family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .questions import QUESTIONS

MOST = 160
"""Characters of a reason that the table shows."""
HEAD = """# The zoo

Families of models that nobody here wrote: for each, a small member of torchvision, timm or transformers with random
weights in float64 and eval mode, its default options, a batch of two. `make zoo` asks three questions of each and
writes this page:

- **gradient, norms**: the gradient and the norm of each sample's share of it, of every parameter, against autograd;
- **diag_h**: random entries of the exact Hessian's diagonal, against double backward, and against central differences
  of the gradient where double backward disagrees; of images with as few pixels as a family takes. It is slow where the
  call is predicted to take more than 25 s (two threads, single precision), or all takes more than the limit;
- **kflr, kfac**: both Kronecker factors of some linear layers whose weights are tied to no other, against the Jacobian
  of the model's output there; of kfac, whose second factor is drawn, its average trace.

Rows are kept from run to run (zoo/records.jsonl): one may be older than its neighbours, and - was not asked. `make zoo`
asks all anew, `python -m zoo NAMES` some. The rows "asked" and "torch" say when, and with which version; "earlier" is
before 29 November 2026, with 2.14.1 or, 133 of 581 times, 2.11.0, which is older than what the library asks for.

"""


def page(records: Sequence[dict[str, Any]], titles: Sequence[str]) -> str:
    """Markdown, the families in the order of `titles`."""
    found = {(record["family"], record["question"]): record for record in records}
    asked = [title for title in titles if any((title, question) in found for question in QUESTIONS)]
    lines = [HEAD, "| | " + " | ".join(QUESTIONS) + " |", "|---" * (len(QUESTIONS) + 1) + "|"]
    for status in ("holds", "slow", "refused", "crashes", "wrong"):
        counts = [Counter(record["status"] for record in records if record["question"] == question)[status]
                  for question in QUESTIONS]
        lines.append(f"| {status} | " + " | ".join(map(str, counts)) + " |")
    for what in ("asked", "torch"):
        lines.append(f"| {what} | " + " | ".join(_counted(records, question, what) for question in QUESTIONS) + " |")
    lines += ["", "| family | " + " | ".join(QUESTIONS) + " | why not |", "|---" * (len(QUESTIONS) + 2) + "|"]
    for title in asked:
        rows = [found.get((title, question)) for question in QUESTIONS]
        words = " | ".join("-" if row is None else row["status"] for row in rows)
        reasons = dict.fromkeys(_short(row["text"]) for row in rows if row is not None and row["text"])
        lines.append(f"| {title} | {words} | {'; '.join(reasons)} |")
    return "\n".join(lines) + "\n"


def _counted(records: Sequence[dict[str, Any]], question: str, what: str) -> str:
    """On which days, or with which torch, and how many families each: "2.11.0: 40; earlier: 113"."""
    counts = Counter(record.get(what, "earlier") for record in records if record["question"] == question)
    return "; ".join(f"{value}: {number}" for value, number in sorted(counts.items()))


def _short(text: str) -> str:
    """The first finding of an error, without the file that it was found in."""
    lines = [line.strip().removeprefix("- ") for line in text.splitlines() if line.strip()]
    chosen = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0]
    parts = [part for part in chosen.split(", ") if not part.startswith("/")]
    return ", ".join(parts)[:MOST].replace("|", "\\|")
