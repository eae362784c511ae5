"""Whether a wheel holds all that a user needs and nothing else: python .ci/wheel_files.py WHEEL."""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {"hbpcompiler": "hbpcompiler", "rules": "hbpcompiler/rules", "codegen": "hbpcompiler/codegen"}
"""By a folder of the source, where it lies in the wheel."""
NO_SOURCE = {".pyc"}


def expected() -> set[str]:
    """The files of the source, by their names in the wheel."""
    found = set()
    for folder, inside in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in NO_SOURCE:
                found.add(f"{inside}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


def main(wheel: str) -> None:
    """Exit with the names of the files that are missing or too many."""
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    missing, too_many = sorted(expected() - held), sorted(held - expected())
    if missing or too_many:
        sys.exit(f"missing in {wheel}: {missing}; not of the package: {too_many}")


main(sys.argv[1])
