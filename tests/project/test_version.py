"""Which versions of torch are allowed, and which were tried."""

import re
import tomllib
import warnings
from pathlib import Path

import pytest
import torch

from hbpcompiler.version import TRIED_TORCH, warn_if_untried

ROOT = Path(__file__).parents[2]


def test_no_version_of_torch_is_forbidden_but_old_ones():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch_itself,) = [wanted for wanted in project["dependencies"] if wanted.startswith("torch")]
    assert torch_itself == f"torch>={TRIED_TORCH[0]}"


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.14.1", "2.14.0a0+git1234", "2.15.0"])
def test_a_version_that_was_tried(version):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_untried(version)


@pytest.mark.parametrize("version", ["2.99.0", "3.0", "2.1.3"])
def test_a_version_that_was_not(version):
    words = re.escape(f"never tried with torch {version}, only with 2.13, 2.14")
    with pytest.warns(UserWarning, match=words) as seen:
        warn_if_untried(version)
    assert len(seen) == 1


def test_this_one_was_tried():
    test_a_version_that_was_tried(torch.__version__)
