"""Files of running totals: written whole or not at all, and read only where everything that matters is the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.accumulate.partial import Partials
from hbpcompiler.accumulate.settings import around, settings_of
from hbpcompiler.accumulate.sums import Key, Sums
from hbpcompiler.accumulate.weigh import Weight
from hbpcompiler.errors import InputError, listing
from hbpcompiler.limits import DEFAULT_LIMITS, Limits
from hbpcompiler.system.digest import bytes_of, digest_of, digest_of_tree
from hbpcompiler.values import Stored
from hbpcompiler.version import __version__

FORMAT = "hbpcompiler total 8"
HASH = "hash"
"""Under which a file has one of everything else in it."""
SHOWN = 5
"""Names of parameters that a difference lists."""
IN_WORDS = {"world": "number of ranks"}
"""What a difference calls a field whose name does not say it."""


@dataclass(frozen=True)
class Header:
    """What totals were made from."""

    quantities: tuple[str, ...]
    patterns: str
    """Which parameters each quantity is for."""
    loss: str
    parameters: dict[str, str]
    """Shape and dtype of each parameter and buffer."""
    digest: str
    """A hash of their numbers."""
    modes: str
    """Of its modules, see `modes_of`."""
    options: dict[str, str]
    """Those of `compile` that change numbers."""
    settings: dict[str, str]
    """What computes in each module, and in the loss (see `settings`)."""
    dtype: str
    compensated: bool
    sample_weights: bool
    counted: bool
    """Whether `count` gave the batches' terms."""
    arguments: str
    """A hash of those that every call has beside its batch; "" for none."""
    library: str
    torch: str
    seed: int
    world: int
    rank: int
    batches: int = 0
    """How many batches are in."""
    last_batch: str = ""
    """A hash of the last one; "" where the loader had written over it."""
    complete: bool = False
    """Whether the data set's end was reached."""
    frozen: str = ""
    """Names of parameters that are not trainable."""

    def differences(self, other: Header, of_run: bool = True) -> list[str]:
        """In words, each with both values; `of_run`: seed, ranks and versions too."""
        found = [f"parameters: {text}" for text in changed(self.parameters, other.parameters)]
        if not found:
            found = [f"what computes: {text}" for text in changed(self.settings, other.settings)]
        if not found and self.digest != other.digest:
            found.append("the parameters' or buffers' numbers are others")
        found += [f"options: {text}" for text in changed(self.options, other.options)]
        names = ["quantities", "patterns", "loss", "modes", "dtype", "compensated", "sample_weights",
                 "counted", "arguments"]
        names += ["frozen", "seed", "world", "rank", "library", "torch"] if of_run else []
        for name in names:
            own, theirs = getattr(self, name), getattr(other, name)
            if own != theirs:
                found.append(f"{IN_WORDS.get(name, name)}: {_text(own)} here, {_text(theirs)} there")
        return found

    def model_differences(self, model: nn.Module) -> list[str]:
        """Between the model of the file and this one, whatever their numbers."""
        return replace(self, parameters=fingerprint(model)[0]).differences(self, of_run=False)


def header_of(model: nn.Module, loss: Callable[..., Tensor], quantities: tuple[str, ...], patterns: str,
              options: dict[str, str],
              **run: Any) -> Header:
    """Of a run that is about to begin."""
    parameters, digest = fingerprint(model)
    return Header(quantities=quantities, patterns=patterns, loss=loss_text(loss), parameters=parameters, digest=digest,
                  modes=modes_of(model), options=options, settings={**settings_of(model, loss), **around(model)},
                  library=__version__,
                  torch=str(torch.__version__), frozen=frozen_of(model), **run)


def fingerprint(model: nn.Module) -> tuple[dict[str, str], str]:
    """Shapes and dtypes of parameters and buffers by name, and a hash of their numbers."""
    hashed, shapes = hashlib.blake2b(digest_size=16), {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        shapes[name] = f"{list(tensor.shape)} {tensor.dtype}"
        hashed.update(name.encode())
        hashed.update(bytes_of(tensor))
    return shapes, hashed.hexdigest()


def modes_of(model: nn.Module) -> str:
    """"train" or "eval", and the modules that are in the other."""
    others = [name for name, module in model.named_modules() if module.training != model.training]
    mode = "train" if model.training else "eval"
    return f"{mode} but for {', '.join(others)}" if others else mode


def frozen_of(model: nn.Module) -> str:
    """Names of its parameters that are not trainable."""
    return ", ".join(name for name, parameter in model.named_parameters() if not parameter.requires_grad)


def loss_text(loss: Callable[..., Tensor]) -> str:
    """A module by its class, its plain attributes and a hash of its tensors; a function by its name."""
    if not isinstance(loss, nn.Module):
        return f"{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', repr(loss))}"
    plain = []
    for name, value in sorted(vars(loss).items()):
        if not name.startswith("_") and name != "training" and (value is None or isinstance(value, str | int | float)):
            plain.append(f"{name}={value!r}")
    held = [f"{name}={digest_of((tensor,))}" for name, tensor in loss.state_dict().items()]
    return f"{type(loss).__name__}({', '.join(plain + held)})"


# -- files -----------------------------------------------------------------------------------------------------------


def write(path: Path, sums: Sums, header: Header) -> Path:
    """Totals, whole or not at all (see `write_file`)."""
    return write_file(path, {"format": FORMAT, "header": asdict(header), "sums": _state(sums)})


def write_file(path: Path, held: Mapping[str, Any]) -> Path:
    """Write a file beside it, with a hash of all that it holds, sync it to the disk and put it in its place. Raises
    InputError where that fails; what was there before is then still there."""
    temporary, whole = "", {**held, HASH: digest_of_tree(dict(held))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            torch.save(whole, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise InputError(f"{path} could not be written ({type(error).__name__}: {error}); what was there before is "
                         "untouched") from error
    except BaseException:  # an interrupt: no half-written file stays
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return path


def _sync_folder(folder: Path) -> None:
    """So that the new name outlasts a power cut; not every system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_file(path: Path, form: str) -> dict[str, Any]:
    """What `write_file` wrote in this format, bit for bit. Raises InputError for anything else; the file is only read.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except Exception as error:  # damaged bytes, read as instructions, may raise anything
        raise InputError(f"{path} is no file of hbpcompiler's, or it is damaged ({type(error).__name__} when it was "
                         "read); it is left as it is") from error
    if not isinstance(held, dict) or held.get("format") != form:
        raise InputError(f"{path} is not of the format {form!r} of this version; it is left as it is")
    if not _is_as_written(held):
        raise InputError(f"{path} is damaged: what it holds is not what was written; it is left as it is")
    return held


def _is_as_written(held: dict[str, Any]) -> bool:
    """Whether its hash is that of the rest of it."""
    try:
        return bool(held.pop(HASH, None) == digest_of_tree(held))
    except Exception:  # damaged bytes may have made anything of it: a list that is in itself
        return False


def read(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> tuple[Sums, Header]:
    """What `write` wrote. Raises InputError for anything else; the file is only read."""
    held = read_file(path, FORMAT)
    try:
        known = {field.name for field in fields(Header)}
        header = Header(**{name: value for name, value in held["header"].items() if name in known})
        return _restored(held["sums"], limits), replace(header, quantities=tuple(header.quantities))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); it is left as it is") from error


def check_resumes(path: Path, held: Header, now: Header) -> None:
    """InputError that lists every difference between a checkpoint and the run that would go on from it."""
    if differences := now.differences(held):
        raise InputError(listing(f"{path} holds the totals of another run; it is left as it is. Differences, this "
                                 "run's value and the file's:", differences,
                                 "Name another checkpoint, or remove the file to begin anew."))


def _state(sums: Sums) -> dict[str, Any]:
    return {
        "quantities": list(sums.quantities), "dtype": sums.dtype, "compensated": sums.compensated,
        "totals": [(list(key), tensor) for key, tensor in sums.totals.items()],
        "lost": [(list(key), tensor) for key, tensor in sums.lost.items()],
        "partials": [(list(key), tensor) for key, tensor in sums.partials.sums.items()],
        "batches_in_partials": sums.partials.batches,
        "samples": sums.samples, "terms": sums.terms, "of_average": sums.of_average, "positions": sums.positions,
        "shared_positions": sums.shared_positions, "samples_with": sums.samples_with,
        "stored": {name: tuple(own) for name, own in sums.stored.items()},
        "first": None if sums.first is None else {**sums.first._asdict(), "positions": dict(sums.first.positions)},
    }


def _restored(state: Mapping[str, Any], limits: Limits) -> Sums:
    sums = Sums(tuple(state["quantities"]), state["dtype"], state["compensated"], limits=limits)
    sums.totals = {Key(*key): tensor for key, tensor in state["totals"]}
    sums.lost = {Key(*key): tensor for key, tensor in state["lost"]}
    sums.partials = Partials({Key(*key): tensor for key, tensor in state["partials"]}, state["batches_in_partials"],
                             most=limits.partial_bytes)
    sums.samples, sums.terms, sums.of_average = state["samples"], state["terms"], state["of_average"]
    sums.positions, sums.shared_positions = state["positions"], state["shared_positions"]
    sums.samples_with = state["samples_with"]
    sums.stored = {name: Stored(*own) for name, own in state["stored"].items()}
    first = state["first"]
    sums.first = None if first is None else Weight(**{**first, "parts": tuple(first["parts"])})
    return sums


def changed(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    found = [f"{name!r} is {here.get(name, 'absent')} here, {there.get(name, 'absent')} there"
             for name in names[:SHOWN]]
    return found + ([f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else [])


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
