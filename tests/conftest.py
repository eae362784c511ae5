"""Settings of hypothesis (a compile takes about a second, so failing examples are shrunk only if HBP_SHRINK is set),
and of pytest: what makes the tests shorter.

`make test` leaves out what is marked slow (see `selection`) and draws one example of each random test; `make test-all`
runs everything, with HBP_EXAMPLES=2.
"""

import collections
import gc
import os
import tempfile
import warnings

from hypothesis import HealthCheck, Phase, settings
from hypothesis.internal.conjecture import providers

from hbpcompiler.compiler.trace import trace as exporting
from tests import selection
from tests.kept_overrides import keep_overrides
from tests.other_device import heal, made_by_tests
from tests.shared_exports import SharedExports

# The tests' own cache folder: what `hbp tune` measured on this machine must not decide what they see.
CACHE = tempfile.TemporaryDirectory(prefix="hbp-tests-")
os.environ["HBP_CACHE_DIR"] = CACHE.name

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
PHASES = list(Phase) if os.environ.get("HBP_SHRINK") else [Phase.explicit, Phase.reuse, Phase.generate]
settings.register_profile("hbp", deadline=None, max_examples=int(os.environ.get("HBP_EXAMPLES", "1")),
                          suppress_health_check=SLOW, phases=PHASES, print_blob=True)
settings.load_profile("hbp")
# Hypothesis reads every module for numbers to draw, each generated file as well: a fortieth of the time.
providers.is_local_module_file = lambda path: False

warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")


keep_overrides()
EXPORTS = SharedExports(exporting.export)
exporting.export = EXPORTS


def pytest_configure(config):
    config.pluginmanager.register(selection)
    device = config.getoption("--device")
    if device is not None:
        made_by_tests(device)


def pytest_collection_finish():
    gc.freeze()


def pytest_runtest_teardown(item):
    EXPORTS.forget()
    if item.config.getoption("--device") is not None:
        heal()


def pytest_addoption(parser):
    parser.addoption("--refresh-golden", action="store_true", help="rewrite tests/golden after a review of the change")
    parser.addoption("--device", help="where tests make their tensors, where they do not say it themselves: cuda")
    parser.addoption("--cases", type=int, metavar="K", help="of each test with parameters, only the first K cases")


def pytest_collection_modifyitems(config, items):
    most, seen = config.getoption("--cases"), collections.Counter()
    if most is None:
        return
    kept, left = [], []
    for item in items:
        function = item.nodeid.split("[")[0]
        seen[function] += 1
        (kept if seen[function] <= most else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)
