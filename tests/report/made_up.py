"""Logs of runs that never were: a descent into nan, a single step, a long run of many layers, a healthy one."""

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

HOSTILE = ("<script>alert(1)</script>", '"quotes" & \'more\'', "</script><img src=x onerror=alert(2)>",
           "größe 层 🙂 %{x} $a$", "<b>bold</b><a href='javascript:alert(3)'>link</a>", "-->")
"""Names that a page must show as they are."""
MAGNITUDES = [2.0**octave * part for octave in range(-30, 6) for part in (1.0, 1.5)]
GRADIENT_EDGES = [-edge for edge in reversed(MAGNITUDES)] + MAGNITUDES
PARAMETER_EDGES = [index / 5 - 2 for index in range(21)]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def header(name: str, parameters: dict[str, list[int]], **more: Any) -> dict[str, Any]:
    return {"kind": "header", "format": "hbp-monitor", "version": 1, "name": name,
            "started": "2026-11-26T17:30:00+00:00", "hbpcompiler": "0.1.0",
            "torch": "2.13.0", "model": "Sequential", "loss": "CrossEntropyLoss",
            "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0}, "parameters": parameters, "quantities": [],
            "left_out": {}, "schedule": "every step", "notes": [], **more}


def value(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def parameters(layers: int, names: tuple[str, ...] = ()) -> dict[str, list[int]]:
    named = {name: [8, 8] for name in names}
    return named | {f"{index}.weight": [64, 64] for index in range(layers - len(named))}


class Noise:
    """Numbers around one, spread by a factor."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def __call__(self, spread: float = 0.2) -> float:
        return math.exp(self.random.gauss(0, spread))


def histogram(noise: Noise, scale: float) -> dict[str, Any]:
    middles = [(low + high) / 2 for low, high in itertools.pairwise(GRADIENT_EDGES)]
    counts = [int(1e5 * math.exp(-(math.log10(max(abs(middle), 1e-12) / scale) ** 2)) * noise()) for middle in middles]
    return {"counts": counts, "edges": GRADIENT_EDGES}


def field(noise: Noise, scale: float) -> dict[str, Any]:
    rows = histogram(noise, scale)["counts"]
    columns = [math.exp(-3 * (edge + 0.1) ** 2) for edge in PARAMETER_EDGES[:-1]]
    counts = [[int(row * column * noise() / 20) for column in columns] for row in rows]
    return {"counts": counts, "edges": [GRADIENT_EDGES, PARAMETER_EDGES]}


def everything(step: int, progress: float, names: list[str], noise: Noise) -> dict[str, Any]:
    """All numbers of a step of a training that goes well; progress goes from 0 to 1."""
    loss = (2.3 * math.exp(-4 * progress) + 0.05) * noise(0.1)
    depth = len(names)
    norms = {name: 0.4 * math.exp(-3 * progress) * 10 ** (-2.5 * (1 - index / depth)) * noise()
             for index, name in enumerate(names)}
    return {
        "loss": loss, "lr": 0.1 * 0.5 ** int(4 * progress), "grad_norm": norms,
        "distance": {name: 0.8 * progress**0.6 * norm / norms[names[-1]] for name, norm in norms.items()},
        "update_size": {name: 0.5 * norm for name, norm in norms.items()},
        "parameter_norm": dict.fromkeys(names, 5 + progress),
        "norm_test": 1.2 + 2.5 * progress * noise(), "inner_test": 0.5 + 0.8 * progress * noise(),
        "ortho_test": 1.0 + 2.3 * progress * noise(), "alpha": -0.3 + 0.4 * progress + 0.35 * noise.random.gauss(0, 1),
        "tic_diag": 40 * (1 - 0.7 * progress) * noise(), "tic_trace": 12 * (1 - 0.6 * progress) * noise(),
        "hess_max_ev": (4 + 14 * progress) * noise(0.1),
        "hess_trace": {name: (20 + 60 * progress) / depth * noise() for name in names},
        "mean_gsnr": 0.02 * math.exp(-2 * progress) * noise(), "cabs": (60 + 300 * progress) * noise(),
        "early_stopping": -1.5 + 1.4 * progress + 0.1 * noise.random.gauss(0, 1),
    }


def healthy(path: Path, name: str = "healthy", steps: int = 160, layers: int = 12, seed: int = 0,
            names: tuple[str, ...] = HOSTILE) -> Path:
    """All quantities at every step, with hostile names of parameters, quantities and the run."""
    noise, shapes = Noise(seed), parameters(layers, names)
    lines: list[dict[str, Any]] = [header(name, shapes, notes=["batch norm is run in eval mode <b>"])]
    for step in range(steps):
        progress = step / max(1, steps - 1)
        values = everything(step, progress, list(shapes), noise)
        if step % 20 == 0 or step == steps - 1:
            scale = 0.01 * math.exp(-2 * progress)
            values["grad_hist_1d"] = histogram(noise, scale)
            values["grad_hist_2d"] = {"": field(noise, scale)} | {each: field(noise, scale) for each in shapes}
        lines.append({"kind": "step", "step": step, "time": 0.1 * step, "rows": 128, "values": values})
        if step % 10 == 0:
            added = {"valid_accuracy": 0.1 + 0.85 * progress, HOSTILE[0]: progress}
            lines.append({"kind": "scalars", "step": step, "time": 0.1 * step, "values": added})
    return write(path, lines)


def broken(path: Path, name: str = HOSTILE[2]) -> Path:
    """A run that leaves the numbers at step 60 of 90; alpha climbs before. Curvature was left out."""
    noise, names = Noise(1), list(parameters(12, HOSTILE))
    left_out = {"hess_max_ev": "<i>no rule</i> for it"}
    lines: list[dict[str, Any]] = [header(name, parameters(12, HOSTILE), left_out=left_out)]
    for step in range(90):
        values = everything(step, min(step / 400, 1), names, noise)
        grown = math.inf if step == 60 else math.nan if step > 60 else 10.0 ** (step / 15)
        for key in ("tic_diag", "tic_trace", "hess_max_ev", "hess_trace", "early_stopping"):
            del values[key]
        values["loss"] = value(values["loss"] * grown)
        values["alpha"] = value(values["alpha"] + (1.8 if step < 60 else math.nan))
        values["grad_norm"] = {each: value(norm * grown) for each, norm in values["grad_norm"].items()}
        for key in ("norm_test", "inner_test", "ortho_test", "cabs", "mean_gsnr"):
            values[key] = value(values[key] if step < 60 else math.nan)
        lines.append({"kind": "step", "step": step, "time": 0.1 * step, "rows": 32, "values": values})
    return write(path, lines)


def single(path: Path, name: str = HOSTILE[3]) -> Path:
    """One step alone."""
    noise, shapes = Noise(2), parameters(4)
    values = everything(0, 0.0, list(shapes), noise) | {"grad_hist_1d": histogram(noise, 0.1)}
    del values["alpha"], values["update_size"]  # as at the first step of a monitor: they are known at the second
    return write(path, [header(name, shapes), {"kind": "step", "step": 0, "time": 0.1, "rows": 64, "values": values}])


def large(path: Path, steps: int = 10_000, layers: int = 200) -> Path:
    """Every step tracked: numbers, two quantities by parameter, and at the end histograms of every layer."""
    noise, shapes = Noise(3), parameters(layers)
    names = list(shapes)
    keys = [json.dumps(name) for name in names]
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(header("large <&>", shapes)) + "\n")
        for step in range(steps):
            progress = step / steps
            values = everything(step, progress, names[:1], noise)
            for key in ("grad_norm", "distance", "update_size", "parameter_norm", "hess_trace"):
                del values[key]
            values["loss"] = value(values["loss"] * (1000 if step == 4321 else 1))
            if step == steps - 1:
                values["grad_hist_1d"] = histogram(noise, 0.01)
                values["grad_hist_2d"] = {"": field(noise, 0.01)} | {each: field(noise, 0.01) for each in names}
            size, wave = 10 ** (-2 - progress), noise(0.3)
            scale = size * wave
            norms = ",".join(f"{key}:{scale * (1 + index % 7) * (1 + index):.5g}" for index, key in enumerate(keys))
            updates = ",".join(f"{key}:{0.1 * scale * (1 + index % 5):.5g}" for index, key in enumerate(keys))
            text = json.dumps(values)[:-1] + f', "grad_norm": {{{norms}}}, "update_size": {{{updates}}}}}'
            file.write(f'{{"kind": "step", "step": {step}, "time": {step / 10}, "rows": 128, "values": {text}}}\n')
    return path
