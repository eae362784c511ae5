"""What counts as the user's own code, and what as installed packages, which are not read for what may change."""

import os
import subprocess
import sys
from pathlib import Path

from hbpcompiler.guards.atoms import folders_of_packages, is_own
from tests.selection import slow


def test_folders_that_packages_are_installed_in():
    environment, system, users = (f"/folder{i}/python3/{name}" for i, name in enumerate(
        ["site-packages", "dist-packages", "site-packages"]))
    paths = ["", "/project", environment, "/project/site-packages/src", "/lib/python3.zip", system, users]
    assert folders_of_packages(paths) == {environment, system, users}


def test_own_code():
    assert is_own("/project/models.py")
    assert is_own("<string>")
    assert not is_own(os.__file__)


PROGRAM = """
import helpers, package
from hbpcompiler.guards.walk import Walk
from torch import nn

class Model(nn.Module):
    def forward(self, x):
        return package.table["scale"] * helpers.table["scale"] * x

model = Model()
before = Walk(model, nn.MSELoss()).key
package.table["scale"] = 2.0
print(before == Walk(model, nn.MSELoss()).key)
helpers.table["scale"] = 2.0
print(before == Walk(model, nn.MSELoss()).key)
"""


@slow("a process of its own")
def test_packages_of_another_folder_are_not_walked(tmp_path):
    """As `pip install --user` and environments that see the system's packages have them: reading all of a package such
    as sympy took minutes."""
    packages = tmp_path / "site-packages"
    packages.mkdir()
    for file in (packages / "package.py", tmp_path / "helpers.py"):
        file.write_text('table = {"scale": 1.0}\n', encoding="utf-8")
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    project = str(Path(__file__).parents[2])
    paths = os.pathsep.join([str(tmp_path), str(packages), project])
    done = subprocess.run([sys.executable, tmp_path / "program.py"], env={**os.environ, "PYTHONPATH": paths},
                          capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "False"], done.stderr
