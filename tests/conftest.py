"""Hypothesis settings: a compile takes about a second, so failing examples are shrunk only if HBP_SHRINK is set."""

import os
import tempfile
import warnings

from hypothesis import HealthCheck, Phase, settings

# The tests' own cache folder: what `hbp tune` measured on this machine must not decide what they see.
CACHE = tempfile.TemporaryDirectory(prefix="hbp-tests-")
os.environ["HBP_CACHE_DIR"] = CACHE.name

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
PHASES = list(Phase) if os.environ.get("HBP_SHRINK") else [Phase.explicit, Phase.reuse, Phase.generate]
settings.register_profile("hbp", deadline=None, max_examples=int(os.environ.get("HBP_EXAMPLES", "15")),
                          suppress_health_check=SLOW, phases=PHASES, print_blob=True)
settings.load_profile("hbp")

warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")


def pytest_addoption(parser):
    parser.addoption("--refresh-golden", action="store_true", help="rewrite tests/golden after a review of the change")
