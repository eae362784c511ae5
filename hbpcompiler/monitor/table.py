"""The table of what a monitor tracks: each entry says what it needs compiled, and is a function of the results."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hbpcompiler.errors import OptionError
from hbpcompiler.monitor.histograms import histogram, histograms_2d
from hbpcompiler.monitor.seen import TINY, Seen, norms, total
from hbpcompiler.quantities import QUANTITIES as COMPILED

SAMPLES = ("grad", "batch_l2", "batch_inner")
PAIR, LARGEST, OPTIMIZER, SGD, CONVEX = "pair", "largest", "optimizer", "sgd", "convex"
"""What else is asked: a step and the one after it; the Hessian's largest eigenvalue; an optimizer; one that is plain
SGD; a loss whose GGN is known to be positive."""


@dataclass(frozen=True)
class Tracked:
    """One quantity of a monitor. `value(seen)` is a number, a dict of them by name, or None where there is none.

    `needs` are names of compiled quantities (docs/quantities.md), which `seen["name"]` gives by parameter name.
    """

    name: str
    needs: tuple[str, ...]
    value: Callable[[Seen], Any]
    summary: str = ""
    asks: tuple[str, ...] = ()


# -- noise of the gradient -------------------------------------------------------------------------------------------


def norm_test(seen: Seen) -> float | None:
    """sqrt( (sum_n |g_n|^2 - N |g|^2) / (N (N - 1) |g|^2) ): Byrd et al. 2012, equation 3.9."""
    return _root(float(seen.squared_norms.sum()) - seen.samples * seen.squared_gradient, seen, 1)


def inner_test(seen: Seen) -> float | None:
    """sqrt( (sum_n (g_n . g)^2 - N |g|^4) / (N (N - 1) |g|^4) ): Bollapragada et al. 2017, equation 2.6."""
    return _root(float(seen.slopes.square().sum()) - seen.samples * seen.squared_gradient**2, seen, 2)


def ortho_test(seen: Seen) -> float | None:
    """sqrt( (sum_n |g_n|^2 - sum_n (g_n . g)^2 / |g|^2) / (N (N - 1) |g|^2) ): Bollapragada et al. 2017, eq. 3.3."""
    if seen.squared_gradient == 0:
        return None
    along = float(seen.slopes.square().sum()) / seen.squared_gradient
    return _root(float(seen.squared_norms.sum()) - along, seen, 1)


def _root(squares: float, seen: Seen, power: int) -> float | None:
    """None for one sample, and where the gradient is zero."""
    if seen.samples < 2 or seen.squared_gradient == 0:
        return None
    if not math.isfinite(squares):
        return math.nan
    return math.sqrt(max(0.0, squares) / (seen.samples * (seen.samples - 1))) / seen.squared_gradient ** (power / 2)


def mean_gsnr(seen: Seen) -> float | None:
    """mean_d g_d^2 / (var_d + eps), eps a small part of the mean variance (Liu et al. 2020, scale-free)."""
    found = _ratios(seen, 1.0)
    return None if found is None else found


def early_stopping(seen: Seen) -> float | None:
    """1 - N mean_d g_d^2 / (S_d^2 + eps), S^2 the unbiased variance: > 0 says stop (Mahsereci et al. 2017, eq. 7)."""
    found = _ratios(seen, seen.samples / max(1, seen.samples - 1))
    return None if found is None else 1 - seen.samples * found


def _ratios(seen: Seen, factor: float) -> float | None:
    """mean_d g_d^2 / (factor var_d + TINY of its mean); None for one sample or where nothing varies."""
    pairs = seen.moments()
    count = sum(variance.numel() for _, variance in pairs)
    mean = factor * total(variance.sum() for _, variance in pairs) / max(1, count)
    if seen.samples < 2 or not count or mean == 0:
        return None
    return total((squared / (factor * variance + TINY * mean)).sum() for squared, variance in pairs) / count


def cabs(seen: Seen) -> float | None:
    """lr sum_d var_d / L, the batch size at which noise and progress balance (Balles et al. 2017, equation 22).

    None for one sample: its variance is rounding.
    """
    loss, rate = float(seen.loss), learning_rate(seen.optimizer)
    if not isinstance(rate, float) or seen.samples < 2 or not loss > 0:
        return None
    return rate * seen.spread / loss if seen.mean else rate * seen.samples**2 * seen.spread / loss


# -- curvature -------------------------------------------------------------------------------------------------------


def tic_diag(seen: Seen) -> float | None:
    """sum_d m2_d / (h_d + eps), h the GGN's diagonal, eps a small part of its mean (Thomas et al. 2020)."""
    pairs = seen.curvatures()
    count = sum(curvature.numel() for _, curvature in pairs)
    mean = total(curvature.sum() for _, curvature in pairs) / max(1, count)
    if not mean > 0:
        return None
    return total((second / (curvature.clamp(min=0) + TINY * mean)).sum() for second, curvature in pairs)


def tic_trace(seen: Seen) -> float | None:
    """sum_d m2_d / sum_d h_d (Thomas et al. 2020)."""
    trace = total(part.double() for part in seen["trace_ggn"].values()) / (1 if seen.mean else seen.samples)
    return float(seen.squared_norms.mean()) / trace if trace > 0 else None


# -- the optimizer ---------------------------------------------------------------------------------------------------


def learning_rate(optimizer: Any) -> float | dict[str, float] | None:
    """The one of all groups of parameters; where they differ a dict by the group's number. A group may have none: with
    lr=None `hbp.optim.KFAC` finds the length of each step by itself."""
    rates = {f"group {number}": float(group["lr"]) for number, group in
             enumerate(getattr(optimizer, "param_groups", ())) if group.get("lr") is not None}
    return next(iter(rates.values()), None) if len(set(rates.values())) <= 1 else rates


def _loss(seen: Seen) -> float:
    return float(seen.loss)


def _rate(seen: Seen) -> float | dict[str, float] | None:
    return learning_rate(seen.optimizer)


def _gradient_norms(seen: Seen) -> dict[str, float]:
    return norms(seen.gradient)


def _numbers(seen: Seen) -> dict[str, Any]:
    return {name: value.detach().tolist() for name, value in seen.parameters.items()}


def _parameter_norms(seen: Seen) -> dict[str, float]:
    return norms(seen.parameters)


def _later(seen: Seen) -> None:
    """It is known at the next step (see `pairs`)."""


def _largest(seen: Seen) -> float | None:
    return seen.largest_eigenvalue()


def _moved(seen: Seen) -> dict[str, float]:
    return norms({name: value - seen.start[name] for name, value in seen.parameters.items()})


def _traces(seen: Seen) -> dict[str, float]:
    return {name: float(value) for name, value in seen["trace_h"].items()}


TABLE = (
    Tracked("loss", (), _loss, "loss L of the batch"),
    Tracked("lr", (), _rate, "learning rate", (OPTIMIZER,)),
    Tracked("grad_norm", (), _gradient_norms, "|grad L|, by parameter"),
    Tracked("parameter_norm", (), _parameter_norms, "|theta|, by parameter"),
    Tracked("distance", (), _moved, "|theta - theta at the first step|, by parameter"),
    Tracked("update_size", (), _later, "|theta after the step - theta|, by parameter", (PAIR,)),
    Tracked("norm_test", SAMPLES, norm_test, "noise of the gradient beside its length"),
    Tracked("inner_test", SAMPLES, inner_test, "its part along the gradient"),
    Tracked("ortho_test", SAMPLES, ortho_test, "its part orthogonal to the gradient"),
    Tracked("alpha", ("batch_loss", *SAMPLES), _later, "where a step lands in the parabola along it",
            (PAIR,)),
    Tracked("grad_hist_1d", ("grad_histogram",), histogram, "histogram of all entries of all g_n"),
    Tracked("tic_diag", ("grad", "second_moment", "diag_ggn"), tic_diag,
            "gradient noise over curvature, entry by entry", (CONVEX,)),
    Tracked("tic_trace", (*SAMPLES, "trace_ggn"), tic_trace, "gradient noise over curvature, of the traces", (CONVEX,)),
    Tracked("hess_trace", ("trace_h",), _traces, "trace of the Hessian, by parameter"),
    Tracked("hess_max_ev", (), _largest, "largest algebraic eigenvalue of the Hessian",
            (LARGEST,)),
    Tracked("grad_hist_2d", ("grad_histogram_2d",), histograms_2d, "histogram of g_n's entries and the parameters'"),
    Tracked("mean_gsnr", ("grad", "second_moment"), mean_gsnr, "mean signal-to-noise ratio of the gradient"),
    Tracked("cabs", SAMPLES, cabs, "suggested batch size", (SGD,)),
    Tracked("early_stopping", ("grad", "second_moment"), early_stopping, "> 0: the gradient is but noise"),
    Tracked("parameters", (), _numbers, "all numbers of the parameters, nested lists by name"),
)
QUANTITIES: Mapping[str, Tracked] = {tracked.name: tracked for tracked in TABLE}
_ECONOMY = ("loss", "lr", "grad_norm", "parameter_norm", "distance", "update_size", "norm_test", "inner_test",
            "ortho_test", "alpha", "grad_hist_1d")
_BUSINESS = (*_ECONOMY, "tic_diag", "hess_trace")
ALL = tuple(name for name in QUANTITIES if name != "parameters")
"""All but what is as long as the model."""
SETS: Mapping[str, tuple[str, ...]] = {"economy": _ECONOMY, "business": _BUSINESS,
                                       "full": (*_BUSINESS, "hess_max_ev", "grad_hist_2d"), "all": ALL}


def chosen(track: Any) -> dict[str, Tracked]:
    """What `track` names: a set, a quantity, a `Tracked` of one's own, or a list of such. OptionError for others."""
    items = [track] if isinstance(track, str | Tracked) else track
    if not isinstance(items, Sequence) or not items:
        raise OptionError(_wrong(track))
    found: dict[str, Tracked] = {}
    for item in items:
        if isinstance(item, Tracked):
            _check_own(item)
            found[item.name] = item
        elif isinstance(item, str) and (item in SETS or item in QUANTITIES):
            found |= {name: QUANTITIES[name] for name in SETS.get(item, (item,))}
        else:
            raise OptionError(_wrong(item))
    return found


def _check_own(tracked: Tracked) -> None:
    """OptionError for one of a user's that would take a name of ours, or needs what is no compiled quantity."""
    if tracked.name in QUANTITIES and tracked is not QUANTITIES[tracked.name]:
        raise OptionError(f"track: {tracked.name!r} is a quantity of the monitor's; give your own another name")
    needs: Any = tracked.needs
    if isinstance(needs, str):
        raise OptionError(f"track: needs of {tracked.name!r} must be a tuple of names, ({needs!r},)")
    if unknown := [need for need in needs if need not in COMPILED]:
        raise OptionError(f"track: {tracked.name!r} needs {', '.join(map(repr, unknown))}, unknown to hbp.compile; its "
                          f"quantities are {', '.join(COMPILED)}")


def _wrong(item: Any) -> str:
    spelled = {name.replace("_", ""): name for name in [*SETS, *QUANTITIES]}  # Cockpit's HessMaxEV is hess_max_ev
    plain = item.lower().replace("_", "") if isinstance(item, str) else ""
    meant = [spelled[name] for name in difflib.get_close_matches(plain, spelled, 1, 0.75)]
    return (f"track: {item!r} is unknown{f' (is it {meant[0]}?)' if meant else ''}; name sets ({', '.join(SETS)}), "
            f"quantities ({', '.join(QUANTITIES)}), or give a hbp.monitor.Tracked of your own")
