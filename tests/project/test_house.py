"""The house: which package may import which, and that nothing leads in a circle."""

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

import hbpcompiler
import hbpcompiler.rules
from hbpcompiler import codegen
from hbpcompiler.compiler.program.kernels import FILES as HELPERS

ROOT = Path(__file__).parents[2]
FOLDERS = {package.__name__: Path(package.__path__[0]) for package in (hbpcompiler, hbpcompiler.rules, codegen)}
"""Where the packages lie: in the source side by side, in a wheel one within the other."""
STAGES = ["trace", "match", "plan", "derive", "optimise", "lengths"]
SHARED = ["routes", "program", "cost", "tune"]
RULES = {"rule", "errors"}
TERMS = RULES | {"quantities", "schemes", "limits", "clipping", "compiler.trace"}
"""What every stage may know: the rules' vocabulary, the quantities, the limits, the traced graph."""
MATCHING = TERMS | {"elementwise", "rules.shared", "system"}
TRACE = ["source", "patches", "refusals", "fx_graph", "conditions", "rows"]
"""The folders of trace, which for all others is one package; each imports only those in front of it."""
MATCH = ["operation", "samples", "parameters", "made", "losses"]
"""The folders of match, which for all others is one package."""
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(), "dense": set(), "version": set(), "patterns": set(), "values": set(),
    "quantities": {"errors", "clipping", "patterns"},
    "changes": {"errors", "system"},
    "result": {"errors", "quantities", "values", "changes"}, "system": {"errors"},
    "curvature": {"errors", "quantities", "values", "system", "patterns"},
    "arguments": {"errors", "quantities", "clipping"},
    "tied_names": {"patterns"}, "runs": {"errors", "system"},
    "report.verdicts": {"report"}, "report.instruments": {"report", "report.verdicts"},
    "report": {"errors", "version", "runs", "report.instruments", "report.verdicts"},
    "guards": {"errors", "system"},
    "limits": {"errors"},
    "schemes": {"errors", "quantities"}, "clipping": set(),
    "options": RULES | {"dense", "quantities", "schemes", "limits", "clipping", "tied_names", "patterns",
                        "system"},
    "rule": {"errors", "system"}, "elementwise": RULES, "rules.shared": RULES,
    "rules": RULES | {"elementwise", "rules.shared"},
    "testing": RULES | {"elementwise", "system"},
    "compiler.trace": RULES | {"rules.shared", "dense", "system",
                              *(f"compiler.trace.{name}" for name in TRACE)},
    "compiler.trace.source": {"compiler.trace"},
    "compiler.trace.patches": RULES | {"rules.shared", "compiler.trace.source"},
    "compiler.trace.refusals": {"errors", "system", "compiler.trace",
                                *(f"compiler.trace.{name}" for name in TRACE[:2])},
    "compiler.trace.fx_graph": RULES | {"rules.shared", "compiler.trace", "compiler.trace.source"},
    "compiler.trace.conditions": {"rules.shared", *(f"compiler.trace.{name}" for name in TRACE[:4])},
    "compiler.trace.rows": {"errors", "system", "rules.shared", *(f"compiler.trace.{name}" for name in TRACE[:5])},
    "compiler.match": MATCHING | {f"compiler.match.{name}" for name in MATCH},
    "compiler.match.operation": MATCHING,
    "compiler.match.samples": MATCHING | {"compiler.match.operation"},
    "compiler.match.parameters": MATCHING | {"compiler.match.operation", "compiler.match.samples"},
    "compiler.match.made": MATCHING | {f"compiler.match.{name}" for name in ("operation", "samples", "parameters")},
    "compiler.match.losses": MATCHING | {"compiler.match", "compiler.match.operation"},
    "compiler.program": {"errors", "rule", "rules.shared", "arguments", "compiler.trace"},
    "compiler.cost": {"rules.shared", "arguments", "limits", "compiler.trace", "compiler.program"},
    "compiler.routes": TERMS | {"compiler.cost", "compiler.program"},
    "compiler.plan": TERMS | {"options", "values",
                              *(f"compiler.{name}" for name in ("match", "routes", "cost", "program"))},
    "compiler.derive": TERMS | {"arguments", "compiler.match", "compiler.plan", "compiler.routes", "compiler.program"},
    "compiler.optimise": {"limits", "rules.shared", "compiler.program", "compiler.cost"},
    "compiler.lengths": TERMS | {"compiler.match", "compiler.program"},
    "codegen": {"rule", "rules.shared", "quantities", "arguments", "system", "limits", "compiler.trace",
                "compiler.program"},
    "compiler.tune": TERMS | {"system", "codegen", *(f"compiler.{name}" for name in (*STAGES, *SHARED))},
    "compiler.prove": TERMS | {"rules.shared", "arguments", "options", "reference", "values", "system",
                               "patterns", "compiler.match", "compiler.plan", "compiler.derive"},
    "compiler": TERMS | {"arguments", "options", "system", "values", "version", "codegen",
                         *(f"compiler.{name}" for name in (*STAGES, *SHARED))},
}
"""By package, what its files import besides each other. Files of the face that are not listed may import all."""


def test_every_package_imports_only_what_the_table_says() -> None:
    arrows = {(_package(name), _package(other)): f"{name} -> {other}" for name, other in _imports().edges
              if other != "hbpcompiler.rules"}  # the folder as such, which is scanned: no file of it
    wrong = [shown for (package, other), shown in sorted(arrows.items())
             if package != other and package in MAY_IMPORT and _as_seen_from(package, other) not in MAY_IMPORT[package]]
    assert not wrong, wrong


def _as_seen_from(package: str, other: str) -> str:
    """What the table calls another package: to those outside of trace and match their folders are trace and match."""
    whole = ".".join(other.split(".")[:2])
    return whole if whole in ("compiler.trace", "compiler.match") and not package.startswith(whole) else other


def test_the_table_names_packages_that_exist() -> None:
    assert set(MAY_IMPORT) <= {_package(name) for name in _files()}


def test_contributors_read_the_same_table() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    table = text.split("Imports go one way")[1].split("\n## ")[0]
    for packages, allowed in re.findall(r"^\| (.+) \| (.+) \|$", table, re.MULTILINE):
        names = {name for name in allowed.split(", ") if name not in ("nothing", "*terms*")}
        for package in packages.split(", "):
            found[package] = names | (TERMS if "*terms*" in allowed else set())
    assert found.pop("*terms*") == TERMS
    assert found.pop("package") == {"may import"}
    assert found == MAY_IMPORT


def test_every_folder_of_modules_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {".".join([name, *file.parent.relative_to(folder).parts])
               for name, folder in FOLDERS.items() for file in folder.rglob("__init__.py")}  # in a wheel some twice
    assert sorted(listed) == sorted(folders)


def test_contributors_read_what_each_file_of_the_face_belongs_to() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("The face itself")[1].split("\n\n")[1]
    named = [name for row in table.splitlines()[2:] for name in row.split("|")[1].replace("`", "").split(",")]
    files = {path.stem for path in (ROOT / "hbpcompiler").glob("*.py") if path.name != "__init__.py"}
    assert sorted(name.strip() for name in named) == sorted(files | {"calls/"})


def test_no_import_leads_in_a_circle() -> None:
    assert [sorted(circle) for circle in nx.strongly_connected_components(_imports()) if len(circle) > 1] == []


def test_every_module_of_the_compiler_is_met_by_a_test_of_its_own() -> None:
    """By one that imports it, or a name of it that its package hands on."""
    handed_on, met = _handed_on(), set[str]()
    for path in (ROOT / "tests").rglob("*.py"):
        for name in _imported(ast.parse(path.read_text(encoding="utf-8")), ["tests"]):
            met |= {name, name.rpartition(".")[0], handed_on.get(name, "")}
    own = {name for name, path in _files().items() if path.name != "__init__.py"
           and name.startswith(("hbpcompiler.compiler", "hbpcompiler.codegen"))}
    assert not own - met


ELSEWHERE = {"rule": "rules", "testing": "rules"}
"""Packages without a folder of tests by their own name, and the one that holds theirs."""


def test_the_folders_of_tests_are_those_of_the_library() -> None:
    packages = ["benchmarks", "codegen", "rules"]
    for path in sorted((ROOT / "hbpcompiler").glob("*/__init__.py")):
        packages.append(ELSEWHERE.get(path.parent.name, path.parent.name))
    for path in sorted((ROOT / "hbpcompiler" / "compiler").glob("*/**/__init__.py")):
        packages.append(str(path.parent.relative_to(ROOT / "hbpcompiler")))
    assert not [package for package in packages if not list((ROOT / "tests" / package).glob("test_*.py"))]


def _handed_on() -> dict[str, str]:
    """The module that a name comes from which a package's own file imports."""
    found = {}
    for module, path in _files().items():
        if path.name == "__init__.py":
            for name in _imported(ast.parse(path.read_text(encoding="utf-8")), module.split(".")):
                found[f"{module}.{name.rpartition('.')[2]}"] = name.rpartition(".")[0]
    return found


@functools.cache
def _files() -> dict[str, Path]:
    """The file of every module, by the name it is imported with."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def _package(module: str) -> str:
    """The package of a module without the first name; a file of the face is its own."""
    path, name = _files()[module], module.removeprefix("hbpcompiler").removeprefix(".")
    inner = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return inner or name


@functools.cache
def _imports() -> nx.DiGraph:
    """Modules, with an arrow to each that is imported anywhere in their text, also where only types are checked."""
    files, graph = _files(), nx.DiGraph()
    for module, path in files.items():
        folder = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for name in _imported(ast.parse(path.read_text(encoding="utf-8")), folder.split(".")):
            target = name if name in files else name.rpartition(".")[0]
            if target in files and target != module:
                graph.add_edge(module, target)
    return graph


def _imported(tree: ast.AST, folder: list[str]) -> Iterator[str]:
    """The full names of all that is imported; relative ones count from the module's folder."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_nothing_outside_rule_files_names_an_operation() -> None:
    """Texts of errors and docstrings aside, which say more than a name; the network that `testing` puts around an
    operation; and the helpers of generated files, which call kernels as any program does."""
    named = [f"{module}: {name}" for module, path in _files().items()
             if not module.startswith(("hbpcompiler.rules", "hbpcompiler.testing")) and module not in HELPERS
             for name in _operations_named(ast.parse(path.read_text(encoding="utf-8")))]
    assert not named, named
    assert _operations_named(ast.parse("aten = torch.ops.aten; aten.mul.Tensor; torch.ops.aten.add; f('aten.sub')"))


def _operations_named(tree: ast.AST) -> list[str]:
    """"aten.relu" as a text, torch.ops.aten.relu, and aten.relu where `aten` stands for torch.ops.aten."""
    short = {target.id for node in ast.walk(tree)
             if isinstance(node, ast.Assign) and ast.unparse(node.value) == "torch.ops.aten"
             for target in node.targets if isinstance(target, ast.Name)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += re.findall(r"^aten\.\w+(?:\.\w+)?$", node.value)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"torch.ops.aten", *short}:
            found.append(ast.unparse(node))
    return found


def test_no_test_patches_a_constant() -> None:
    """What a test needs at another size it hands in: an argument, or a field of `Limits`. Tables that take entries, as
    that of sympy's functions does, may get some."""
    found = [f"{path.relative_to(ROOT)}: {name}" for path in sorted((ROOT / "tests").rglob("*.py"))
             for name in _constants_patched(ast.parse(path.read_text(encoding="utf-8")))]
    assert not found, found
    patches = """
from benchmarks import timing
monkeypatch.setattr(cache, "SOME_BYTES", 0)
monkeypatch.setattr("hbpcompiler.system.cache.MOST", 0)
with mock.patch.object(cache, "LEAST", 0): timing.SHORTEST = 0.0
timing.LONGEST += 1
own.SCALE = 1
monkeypatch.setattr(torch.distributed, "get_rank", None)
"""
    assert len(_constants_patched(ast.parse(patches))) == 5


def _constants_patched(tree: ast.AST) -> list[str]:
    """Names in capitals that are given another value: by pytest's or mock's patches, or plainly, where a name is
    imported."""
    imported = {name.rpartition(".")[2] for name in _imported(tree, [])}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PATCHES:
            found += [ast.unparse(given) for given in node.args[:2] if _is_constant(given)]
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [ast.unparse(target) for target in targets if isinstance(target, ast.Attribute)
                      and _is_constant(target) and ast.unparse(target.value) in imported]
    return found


PATCHES = {"setattr", "delattr", "patch", "object"}


def _is_constant(node: ast.AST) -> bool:
    """A module's NAME, or the text "NAME" or "module.NAME"."""
    text = node.value if isinstance(node, ast.Constant) else ast.unparse(node)
    return isinstance(text, str) and re.fullmatch(r"(?:\w+[.])*_?[A-Z][A-Z0-9_]+", text) is not None


FACTORIES = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn",
             "randperm", "scalar_tensor", "tensor", "zeros"}
"""Of tensors, on torch's default device where nothing is said: a user's choice, which must not decide over ours."""


def _makes_a_tensor_somewhere(node: ast.AST) -> bool:
    """Whether it is torch.zeros(...) or the like without a device."""
    return (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES
            and isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            and not any(given.arg in ("device", None) for given in node.keywords))


def test_every_tensor_of_ours_is_made_on_a_device_that_is_said() -> None:
    """Not in the rules' cases and their checks, which `check_rule` holds on the processor."""
    found = []
    for path in sorted(Path(hbpcompiler.__file__).parent.rglob("*.py")):
        if "testing" not in path.parts and path.name != "elementwise.py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if _makes_a_tensor_somewhere(node):
                    found.append(f"{path}:{node.lineno}")
    assert not found, "say device=: " + ", ".join(found)


def test_no_test_is_left_out_with_another_module() -> None:
    """What leaves out a whole module, where an optional package is missing, leaves out those that import it, too: they
    say so themselves."""
    texts = {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8")
             for path in (ROOT / "tests").rglob("*.py")}
    needed = {module: set(re.findall(r"""^(?:\w+ = )?pytest\.importorskip\(["'](\w+)""", text, re.MULTILINE))
              for module, text in texts.items()}
    assert any(needed.values())
    leaving_out = {module: packages for module, packages in needed.items() if packages}
    for module, text in texts.items():
        for other, packages in leaving_out.items():
            if re.search(rf"^(from|import) {re.escape(other)}\b", text, re.MULTILINE):
                assert packages <= needed[module], f"{module} imports {other}"
