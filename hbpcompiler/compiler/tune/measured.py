"""What was measured on this machine, kept in the user's cache folder: its figures, and routes that won a race.

Without an entry here nothing depends on the machine: one model gives one file everywhere. An entry counts for one
device, dtype, torch version and number of threads.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from hbpcompiler.compiler.cost.figures import DEFAULT, GPU, ONEDNN, Machine
from hbpcompiler.compiler.program.kernels import has_onednn
from hbpcompiler.limits import MEASURED, ON_GPU, Limits, default_limits, is_possible
from hbpcompiler.system.cache import cache_folder, store

FILE = "measured.json"
MACHINES, LIMITS, ROUTES = "machines", "limits", "routes"


def key(device: torch.device, dtype: torch.dtype) -> str:
    """What a measurement holds for."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    version = torch.__version__.split("+")[0]
    kind, threads = str(dtype).removeprefix("torch."), torch.get_num_threads()
    return f"{device.type} {name}, {kind}, torch {version}, {threads} threads"


def _processor() -> str:
    """The processor's model, which platform.processor does not know on Linux."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def measured_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """The figures that were measured for it; the default ones if none were."""
    found = _read(MACHINES).get(key(device, dtype))
    names = [field.name for field in fields(Machine)]
    if not isinstance(found, dict) or not found.keys() >= set(names):
        return default_machine(device, dtype)
    rates = {name: found[name] for name in names}  # an older version may have kept others too
    return Machine(**rates) if all(map(_is_rate, rates.items())) else default_machine(device, dtype)


def default_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """The figures to plan with where none were measured."""
    if device.type not in ("cpu", "meta"):
        return GPU
    return ONEDNN if has_onednn(device, dtype) else DEFAULT


def _is_rate(figure: tuple[str, Any]) -> bool:
    name, number = figure
    known = isinstance(number, int | float) and 0 <= number < float("inf")
    return known and (number > 0 or name == "linear_per_second")


def measured_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """The default ones, but for those that were measured for it."""
    found = _read(LIMITS).get(key(device, dtype))
    known = found if isinstance(found, dict) else {}
    measured = {own.name: known[own.name] for own in fields(Limits)
                if own.name in MEASURED and own.name in known and is_possible(own, known[own.name])}
    return replace(default_limits(device.type), **measured)


def limits_for(given: Limits | None, device: torch.device, dtype: torch.dtype) -> Limits:
    """A user's own, or the measured ones. On a GPU what a user has left at a CPU's default is the GPU's."""
    if given is None:
        return measured_limits(device, dtype)
    default = default_limits(device.type)
    return replace(default, **given.changed()) if given.nearest() != default == ON_GPU else given


def remember_limits(device: torch.device, dtype: torch.dtype, measured: Limits) -> Path:
    """Keep those that can be measured; says where."""
    found = {name: getattr(measured, name) for name in MEASURED}
    return _write(LIMITS, {**_read(LIMITS), key(device, dtype): found})


def remember_machine(device: torch.device, dtype: torch.dtype, measured: Machine) -> Path:
    """Keep the figures; says where."""
    return _write(MACHINES, {**_read(MACHINES), key(device, dtype): asdict(measured)})


def winners() -> dict[str, Any]:
    """Routes by site, as `autotune` wrote them."""
    return _read(ROUTES)


def remember_winners(found: Mapping[str, Any]) -> Path:
    """Keep the routes that won; says where."""
    return _write(ROUTES, {**_read(ROUTES), **found})


def clear() -> bool:
    """Forget everything that was measured; whether there was anything."""
    path = cache_folder() / FILE
    there = path.exists()
    path.unlink(missing_ok=True)
    return there


def _all() -> dict[str, Any]:
    try:
        found = json.loads((cache_folder() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(part: str) -> dict[str, Any]:
    found = _all().get(part)
    return found if isinstance(found, dict) else {}


def _write(part: str, entries: Mapping[str, Any]) -> Path:
    path = cache_folder() / FILE
    store(path, json.dumps({**_all(), part: dict(entries)}, indent=1, sort_keys=True) + "\n")
    return path
