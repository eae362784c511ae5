"""Where a benchmark runs: on the processor, or on a GPU (`--device cuda`), whose work is waited for by every clock."""

from __future__ import annotations

import click
import torch

DEVICE = click.option("--device", default="cpu", show_default=True, help="cpu or cuda: where models and batches are.")
"""The option of every benchmark that can."""


def choose(device: str) -> None:
    """Everything that is made from now on is made there."""
    if device != "cpu":
        torch.set_default_device(device)


def on_cuda() -> bool:
    return torch.get_default_device().type == "cuda"


def wait() -> None:
    """Until the device has done what it was given: calls of a GPU return at once."""
    if on_cuda():
        torch.cuda.synchronize()


def in_words() -> str:
    """The device's name, for a table's head."""
    return torch.cuda.get_device_name() if on_cuda() else "cpu"
