"""The import rule of docs/architecture.md, read off the source, and what a bare import may load."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY, ENVIRONMENTS = ROOT / "icrl_gym", ROOT / "envs" / "icrl_envs"

# The house, from the ground up, as docs/architecture.md draws it. A floor may import the floors below it, and no other;
# imports for type checkers count. What stands in one folder is one floor, inside which there is no circle either.
FLOORS = (
    "observations",
    "runs",
    "tracking",
    "values",
    "stored_values",
    "configuration",
    "acting",
    "context",
    "evaluator",
    "ground_truth",
    "rivals",
    "registry",
    "live",
    "scoring",
    "audit",
    "main_job",
    "pretraining",
    "benchmark",
    "workers",
    "reproduction",
    "cli",
    "__main__",
)
# Only these import the heavy packages, and only inside functions.
MAY_IMPORT = {
    "stable_baselines3": {
        "acting.demo_policy",
        "acting.normalisation",
        "acting.sb3_models",
        "audit.callback",
        "rivals.critic_training",
    },
    "sb3_contrib": {"acting.sb3_models"},
    "tensorboard": {"tracking"},
    "torch.utils.tensorboard": {"tracking"},
    "ray": {"benchmark.backends"},
    "minari": {"context.logs.minari_datasets"},
    "h5py": {"context.logs.tables"},
    "pyarrow": {"context.logs.tables"},
}
# A callback of Stable-Baselines3 is a sub-class of its own; `icrl_gym.CriticAuditCallback` loads this on first use.
MAY_IMPORT_EAGERLY = {"stable_baselines3": {"audit.callback"}}


class Imports(ast.NodeVisitor):
    """Absolute names of all imports, those for type checkers too; ``top`` holds what runs outside functions."""

    def __init__(self, package: str) -> None:
        self.package, self.all, self.top, self._depth = package, set(), set(), 0

    def _add(self, name: str) -> None:
        self.all.add(name)
        if not self._depth:
            self.top.add(name)

    def visit_If(self, node: ast.If) -> None:
        typing_only = "TYPE_CHECKING" in ast.unparse(node.test)
        self._depth += typing_only
        for child in node.body:
            self.visit(child)
        self._depth -= typing_only
        for child in node.orelse:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        parents = self.package.split(".")
        base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
        module = ".".join(part for part in (base, node.module) if part)
        for alias in node.names:
            self._add(f"{module}.{alias.name}")

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func).endswith("import_module") and node.args and isinstance(node.args[0], ast.Constant):
            self._add(str(node.args[0].value))
        self.generic_visit(node)


def imports_of(source: str, package: str) -> Imports:
    visitor = Imports(package)
    visitor.visit(ast.parse(source))
    return visitor


def library_imports() -> dict[str, Imports]:
    """By module, named below the package: "values", "context.prompt"; a package's own file under the package's name."""
    found = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = ".".join(parts[:-1])
        name = ".".join(part for part in parts[1:] if part != "__init__") or "__init__"
        found[name] = imports_of(path.read_text(encoding="utf-8"), package)
    return found


def imported_modules(names: set[str]) -> set[str]:
    """Modules of the library among absolute names; a name that a package's own file defines counts as that file."""
    found = set()
    for name in names:
        if name.split(".")[0] != "icrl_gym":
            continue
        parts = name.split(".")[1:]
        while parts and ".".join(parts) not in LIBRARY_IMPORTS:
            parts = parts[:-1]
        found.add(".".join(parts) or "__init__")
    return found


def is_heavy(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def floor_of(module: str) -> int:
    return FLOORS.index(module.split(".")[0])


LIBRARY_IMPORTS = library_imports()
MODULES = sorted(set(LIBRARY_IMPORTS) - {"__init__"})
GRAPH = {module: imported_modules(LIBRARY_IMPORTS[module].all) - {module, "__init__"} for module in MODULES}


def test_every_module_stands_on_a_floor_and_every_floor_is_there():
    assert {module.split(".")[0] for module in MODULES} == set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_floors_below_its_own(module):
    room = module.split(".")[0]
    upward = {name for name in GRAPH[module] if name.split(".")[0] != room and floor_of(name) >= floor_of(module)}
    assert not upward, f"icrl_gym.{module} may not import {sorted(upward)}"


def test_there_is_no_circle_between_files():
    graph = dict(GRAPH)
    while graph:
        leaves = {module for module, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"these modules import each other in a circle: {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in leaves}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_heavy_packages_are_imported_where_allowed_and_lazily(package):
    importers = {m for m, i in LIBRARY_IMPORTS.items() if any(is_heavy(name, package) for name in i.all)}
    assert importers <= MAY_IMPORT[package]
    eager = {m for m, i in LIBRARY_IMPORTS.items() if any(is_heavy(name, package) for name in i.top)}
    assert eager == MAY_IMPORT_EAGERLY.get(package, set()), f"{package} must be imported inside functions"


def test_what_imports_heavy_packages_eagerly_is_loaded_by_its_public_name_alone():
    for module in set().union(*MAY_IMPORT_EAGERLY.values()):
        assert not [importer for importer, needs in GRAPH.items() if module in needs]


@pytest.mark.parametrize("room", ["reproduction", "pretraining"])
def test_the_longest_jobs_are_loaded_by_the_command_line_alone_and_lazily(room):
    importers = {m for m, needs in GRAPH.items() if any(need.split(".")[0] == room for need in needs)}
    outside = {m for m in importers if m.split(".")[0] not in (room, "reproduction")}
    assert outside == {"cli"}
    assert not any(name.startswith(f"icrl_gym.{room}") for name in LIBRARY_IMPORTS["cli"].top)


def test_library_and_environments_never_import_each_other():
    library = {name for found in LIBRARY_IMPORTS.values() for name in found.all}
    assert not [name for name in library if name.split(".")[0] == "icrl_envs"]
    for path in ENVIRONMENTS.rglob("*.py"):
        names = imports_of(path.read_text(encoding="utf-8"), "icrl_envs").all
        assert not [name for name in names if name.split(".")[0] == "icrl_gym"], path


def test_the_documented_floors_are_these():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE)) == FLOORS[:-1]


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_a_bare_import_is_light():
    loaded = loaded_after("import icrl_gym")
    assert "icrl_gym" in loaded
    assert not loaded & {"stable_baselines3", "sb3_contrib", "tensorboard", "torch.utils.tensorboard", "ray"}


def test_even_importing_every_module_loads_neither_sb3_nor_tensorboard():
    every = "import importlib, pkgutil, icrl_gym\n" + (
        "for found in pkgutil.walk_packages(icrl_gym.__path__, 'icrl_gym.'):\n"
        "    if not found.name.endswith(('__main__', 'audit.callback')): importlib.import_module(found.name)"
    )
    loaded = loaded_after(every)
    assert "icrl_gym.scoring.score" in loaded
    assert not loaded & {"stable_baselines3", "sb3_contrib", "tensorboard", "torch.utils.tensorboard", "ray"}


@pytest.mark.parametrize(
    ("source", "names", "top"),
    [
        ("import a.b", {"a.b"}, {"a.b"}),
        ("def f():\n    from a import b", {"a.b"}, set()),
        ("class C:\n    import a", {"a"}, {"a"}),
        ("from . import x", {"icrl_gym.p.x"}, {"icrl_gym.p.x"}),
        ("from ..values import x", {"icrl_gym.values.x"}, {"icrl_gym.values.x"}),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", {"a", "b"}, {"b"}),
        ("try:\n    import a\nexcept ImportError:\n    pass", {"a"}, {"a"}),
        ("importlib.import_module('a.b')", {"a.b"}, {"a.b"}),
    ],
)
def test_the_reader_of_imports_sees_every_form(source, names, top):
    found = imports_of(source, "icrl_gym.p")
    assert (found.all, found.top) == (names, top)
