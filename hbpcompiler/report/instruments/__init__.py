"""The instruments of a report, by column; each is an entry of a list in its column's file."""

from hbpcompiler.report.instruments.auxiliary import AUXILIARY
from hbpcompiler.report.instruments.context import CONTEXT, of_ones_own
from hbpcompiler.report.instruments.curvature import CURVATURE
from hbpcompiler.report.instruments.gradients import GRADIENTS
from hbpcompiler.report.instruments.instrument import Drawn, Instrument
from hbpcompiler.report.instruments.step_size import STEP_SIZE

COLUMNS: dict[str, tuple[Instrument, ...]] = {
    "Step size": STEP_SIZE, "Gradients": GRADIENTS, "Curvature": CURVATURE, "Context": CONTEXT, "Auxiliary": AUXILIARY,
}
"""Instruments by the heading that they stand under."""

__all__ = ["COLUMNS", "Drawn", "Instrument", "of_ones_own"]
