"""The table of `benchmarks.real` in Markdown, from the file that its runs have left."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from .real_peers import PEERS

HEADER = ("| network | quantities | ours | " + " | ".join(PEERS) + " | floor | MiB: ours, least of the peers "
          "| first call, lines |\n|" + "---|" * (len(PEERS) + 6))


def markdown(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each network and set of quantities; times in gradients, medians."""
    lines = [HEADER]
    for cell, found in kept.items():
        asked = [name.removeprefix("facts ") for name in found if name.startswith("facts ")]
        for quantities in asked:
            lines.append(_row(cell, quantities, found))
    return "\n".join(lines)


def _row(cell: str, quantities: str, found: Mapping[str, Any]) -> str:
    facts = found[f"facts {quantities}"]
    base = statistics.median(found[f"gradient {quantities}"])

    def times(name: str) -> str:
        seconds = found.get(f"{name} {quantities}")
        return f"{statistics.median(seconds) / base:.2f}" if seconds else "-"

    memory = {name: bytes / 2**20 for name, bytes in facts.get("memory", {}).items()}
    own = memory.pop("ours", None)
    held = "" if own is None else f"{own:.0f}" + (f", {min(memory.values()):.0f}" if memory else "")
    first = f"{facts['first']:.1f} s, {facts['lines']}" if "first" in facts else ""
    return (f"| {cell} ({1000 * base:.0f} ms) | {quantities} | **{times('ours')}** | "
            + " | ".join(times(name) for name in PEERS) + f" | {facts['floor']:.2f} | {held} | {first} |")
