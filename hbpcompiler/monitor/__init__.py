"""`hbp.Monitor`: what happens in a training run, step by step (Cockpit: Schneider, Dangel, Hennig 2021)."""

from hbpcompiler.monitor.monitor import Monitor
from hbpcompiler.monitor.schedules import logarithmic
from hbpcompiler.monitor.seen import Seen
from hbpcompiler.monitor.table import ALL, QUANTITIES, SETS, Tracked

__all__ = ["ALL", "QUANTITIES", "SETS", "Monitor", "Seen", "Tracked", "logarithmic"]
