"""What holds for all tests, before torch is imported."""

import gc
import os

# Workers, and what they start, have one thread each: two on every core only wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# An export makes so many objects that looking for cycles among them takes a fifth of its time: look less often, and not
# behind each compile, which itself puts it off to half as many.
gc.set_threshold(1_000_000, 20, 20)
