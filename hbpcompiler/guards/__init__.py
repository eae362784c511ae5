"""What Python state a program was traced under, and whether it is still the same.

torch.export bakes into a program whatever Python decides while it runs: numbers, flags, functions, hooks, the classes
of modules, autocast. A program is valid for that state only. `Guards` walks over all that the model and the loss can
reach (`walk`), which gives a key by value, so that going back to a state finds its programs, and a list of identities,
so that a call can see in a few microseconds that nothing has moved (`watched`).
"""

from hbpcompiler.guards.guards import Guards, State
from hbpcompiler.system.threads import TRACING

__all__ = ["TRACING", "Guards", "State"]
