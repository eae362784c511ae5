"""The cells of the table: network, batch size, quantities; beside each what one should reach.

A reach is a multiple of the plain gradient's time: 2 cores, float32, interleaved medians.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .networks import NETWORKS

FIRST, SECOND, MANY, SIGMOID = (
    "First-order quantities (paper Fig. 3, 6)",
    "Second-order quantities (paper Fig. 6)",
    "A hundred classes (paper Fig. 8)",
    "Activations with curvature (paper Fig. 9)",
)
GROUPS = (FIRST, SECOND, MANY, SIGMOID)
FIRST_ORDER = {"grad", "batch_grad", "batch_l2", "second_moment", "variance"}


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    network: str
    batch: int
    quantities: tuple[str, ...]
    reach: float | None = None
    skip: tuple[str, ...] = ()
    """Contestants that need more memory than there is."""
    check_batch: int = 2

    @property
    def group(self) -> str:
        if set(self.quantities) <= FIRST_ORDER:
            return FIRST
        if "sigmoid" in self.network or ("diag_h" in self.quantities and self.network == "mlp"):
            return SIGMOID
        many = NETWORKS[self.network].classes > 10 and set(self.quantities) & {"diag_ggn", "kflr", "diag_h"}
        return MANY if many else SECOND

    @property
    def title(self) -> str:
        return f"{NETWORKS[self.network].title}:{self.batch}"

    @property
    def what(self) -> str:
        return " + ".join(self.quantities)


def _cells(network: str, batch: int, **reaches: float) -> list[Cell]:
    return [Cell(network, batch, tuple(names.split("__")), reach) for names, reach in reaches.items()]


DEFAULT: list[Cell] = [
    *_cells("logreg", 128, batch_grad=3, batch_l2=3, variance=2.5, diag_ggn=2.5, kfac=6, kflr=6, kfra=6),
    *_cells("mlp", 128, batch_grad=12, batch_l2=1.3, variance=1.8, diag_ggn_mc=2, diag_ggn=3, kfac=2.3, kflr=4, kfra=3,
            diag_h=14, diag_h__kflr=17),
    *_cells("2c2d", 64, batch_l2=1.3, variance=1.6, diag_ggn_mc=1.9, diag_ggn=5, kfac=3, kflr=6),
    *_cells("3c3d", 64, batch_grad=1.8, batch_l2=1.2, variance=1.5, diag_ggn_mc=1.7, diag_ggn=5, diag_h=5, kfac=2,
            kflr=4.5),
    *_cells("3c3d-one-sigmoid", 16, diag_ggn=4.5, diag_h=50),
    Cell("3c3d-all-sigmoid", 4, ("diag_h",), 3000, skip=("BackPACK",), check_batch=1),
    *_cells("allcnnc", 16, batch_grad=1.3, batch_l2=1.2, variance=1.25, diag_ggn_mc=1.8, kfac=2.5),
    *_cells("allcnnc", 4, diag_ggn=60, kflr=38),
]  # fmt: skip

QUICK: list[Cell] = [
    *_cells("logreg", 128, batch_l2=3, diag_ggn=2.5),
    *_cells("mlp", 128, variance=1.8, diag_ggn=3, kflr=4),
    *_cells("3c3d", 16, variance=1.5, diag_ggn=5),
]


def select(networks: list[str], quantities: list[str], batches: list[int], quick: bool) -> list[Cell]:
    """The table's cells of these networks, quantities ("diag_h+kflr" is one set) and batches; new ones where asked."""
    chosen = [cell for cell in (QUICK if quick else DEFAULT) if not networks or cell.network in networks]
    rows = {cell.network for cell in DEFAULT}
    chosen += [Cell(network, 4, ("diag_h",), check_batch=1) for network in networks if network not in rows]
    if quantities:
        found: list[Cell] = []
        for network in dict.fromkeys(cell.network for cell in chosen):
            own = [cell for cell in chosen if cell.network == network]
            for names in (tuple(each.split("+")) for each in quantities):
                same = [cell for cell in own if cell.quantities == names]
                found += same or [replace(own[0], quantities=names, reach=None)]
        chosen = found
    if batches:
        moved = [cell if cell.batch == batch else replace(cell, batch=batch, reach=None)
                 for cell in chosen for batch in batches]  # fmt: skip
        chosen = list(dict.fromkeys(moved))
    return chosen
