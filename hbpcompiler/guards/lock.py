"""The one lock of the compiler."""

import threading

TRACING = threading.RLock()
"""Held while a model is traced or its state is read anew: torch.export is not made for several threads, and meanwhile
puts stand-ins in the place of the model's parameters. Calls whose guards pass do not take it."""
