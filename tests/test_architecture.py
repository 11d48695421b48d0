"""The import rule of docs/architecture.md, read off the source, and what a bare import may load."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY, ENVIRONMENTS = ROOT / "icrl_gym", ROOT / "envs" / "icrl_envs"

# The table of docs/architecture.md, top row first. A module may import any module of a row above its own.
ROWS = {
    "data": {"atomic", "estimand", "observations", "space_description", "trajectory", "values"},
    "acting": {"policies", "environments"},
    "recording": {"recorder", "collection", "off_policy", "simulators"},
    "prompt": {"features", "prompt", "action_values"},
    "network": {"relevance", "attention", "model", "imagination", "generalist", "paper", "diagnostics"},
    "estimators": {"standard_error", "evaluator", "budget", "classical", "registry"},
    "truth": {"transitions", "rollouts", "returns", "critics", "demo_policy", "critic_training"},
    "judgement": {"scoring"},
    "wrappers": {"wrappers"},
    "front": {"tracking", "figures", "runs", "configuration", "policy_source", "findings", "evaluation", "report"}
    | {"benchmark", "reproduction", "pretraining", "cli", "__main__"},
}
# ... and of its own row only these.
WITHIN_ROW = {
    "trajectory": {"atomic", "observations", "space_description"},
    "values": {"estimand", "observations"},
    "prompt": {"features"},
    "action_values": {"features", "prompt"},
    "model": {"attention", "relevance"},
    "generalist": {"attention", "imagination", "model", "relevance"},
    "pretraining": {"configuration", "runs", "tracking", "prior"},
    "diagnostics": {"attention", "model", "generalist"},
    "collection": {"recorder"},
    "evaluator": {"standard_error"},
    "budget": {"evaluator"},
    "registry": {"evaluator", "classical"},
    "returns": {"rollouts", "transitions"},
    "critics": {"demo_policy"},
    "critic_training": {"critics"},
    "policy_source": {"configuration"},
    "findings": {"configuration", "runs"},
    "evaluation": {"configuration", "findings", "policy_source", "figures", "runs", "tracking"},
    "benchmark": {"configuration", "figures", "runs", "tracking"},
    "reproduction": {"configuration", "figures", "runs", "tracking", "reference", "prior"},
    "cli": {"benchmark", "configuration", "evaluation", "pretraining", "reproduction", "runs"},
    "runs": {"__init__"},  # the version
    "__main__": {"cli"},
}
# Outside the flow, with all that they may import: the reference is for tests and the reproduction of the papers, the
# prior for pretraining.
APART = {"reference": {"prompt"}, "prior": {"trajectory"}}
# Only these import the heavy packages, and only inside functions.
MAY_IMPORT = {
    "stable_baselines3": {"critics", "critic_training", "demo_policy", "policy_source", "callbacks"},
    "sb3_contrib": {"critics", "critic_training", "callbacks"},
    "tensorboard": {"tracking"},
    "torch.utils.tensorboard": {"tracking"},
    "ray": {"benchmark"},
}


class Imports(ast.NodeVisitor):
    """Absolute names of all imports, apart from those for type checkers; ``top`` holds the ones outside functions."""

    def __init__(self, package: str) -> None:
        self.package, self.all, self.top, self._depth = package, set(), set(), 0

    def _add(self, name: str) -> None:
        self.all.add(name)
        if not self._depth:
            self.top.add(name)

    def visit_If(self, node: ast.If) -> None:
        for child in node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else [*node.body, *node.orelse]:
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
    """Per module of the table: sub-packages count as one module."""
    found: dict[str, Imports] = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = parts[1] if len(parts) > 1 else "__init__"
        one = imports_of(path.read_text(encoding="utf-8"), ".".join(parts[:-1]))
        total = found.setdefault(name, Imports(""))
        total.all |= one.all
        total.top |= one.top
    return found


def imported_modules(names: set[str], modules: set[str]) -> set[str]:
    """Modules of the table among absolute names; a name of the package itself counts as "__init__"."""
    inside = {name.split(".")[1] if "." in name else "__init__" for name in names if name.split(".")[0] == "icrl_gym"}
    return {name if name in modules else "__init__" for name in inside}


def allowed(module: str) -> set[str]:
    if module in APART:
        return APART[module] | {module}
    above: set[str] = set()
    for members in ROWS.values():
        if module in members:
            return above | WITHIN_ROW.get(module, set()) | {module}
        above |= members
    raise AssertionError(f"icrl_gym/{module} stands in no row of the table in {Path(__file__).name}")


def is_heavy(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


LIBRARY_IMPORTS = library_imports()
MODULES = sorted(set(LIBRARY_IMPORTS) - {"__init__"})


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_the_table_allows(module):
    found = imported_modules(LIBRARY_IMPORTS[module].all, set(MODULES))
    assert found <= allowed(module), f"icrl_gym/{module} may not import {sorted(found - allowed(module))}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_heavy_packages_are_imported_where_allowed_and_lazily(package):
    importers = {m for m, i in LIBRARY_IMPORTS.items() if any(is_heavy(name, package) for name in i.all)}
    assert importers <= MAY_IMPORT[package]
    eager = {m for m, i in LIBRARY_IMPORTS.items() if any(is_heavy(name, package) for name in i.top)}
    assert not eager, f"{package} must be imported inside functions"


def test_nothing_in_the_flow_imports_what_stands_apart():
    for module in set(MODULES) - set(APART) - {"reproduction", "pretraining"}:
        assert not imported_modules(LIBRARY_IMPORTS[module].all, set(MODULES)) & set(APART), module


@pytest.mark.parametrize("module", ["reproduction", "pretraining"])
def test_the_longest_jobs_are_loaded_by_the_command_line_alone_and_lazily(module):
    importers = {m for m, i in LIBRARY_IMPORTS.items() if module in imported_modules(i.all, set(MODULES))} - {module}
    assert importers == {"cli"}
    assert module not in imported_modules(LIBRARY_IMPORTS["cli"].top, set(MODULES))


def test_library_and_environments_never_import_each_other():
    library = {name for found in LIBRARY_IMPORTS.values() for name in found.all}
    assert not [name for name in library if name.split(".")[0] == "icrl_envs"]
    for path in ENVIRONMENTS.rglob("*.py"):
        names = imports_of(path.read_text(encoding="utf-8"), "icrl_envs").all
        assert not [name for name in names if name.split(".")[0] == "icrl_gym"], path


def test_there_is_no_cycle():
    graph = {m: imported_modules(LIBRARY_IMPORTS[m].all, set(MODULES)) - {m, "__init__"} for m in MODULES}
    while graph:
        leaves = {module for module, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"these modules import each other in a cycle: {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in leaves}


def test_the_documented_table_is_this_one():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    documented = {}
    for row, modules in re.findall(r"^\| (\w+) \| (.*?) \|", text, flags=re.MULTILINE):
        documented[row] = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", modules)))
    documented.pop("row", None)
    assert list(documented) == list(ROWS)
    for row, modules in documented.items():
        assert modules == ROWS[row] - {"__main__"}, f"row {row}"


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
        "    if not found.name.endswith('__main__'): importlib.import_module(found.name)"
    )
    loaded = loaded_after(every)
    assert "icrl_gym.scoring" in loaded
    assert not loaded & {"stable_baselines3", "sb3_contrib", "tensorboard", "torch.utils.tensorboard", "ray"}


@pytest.mark.parametrize(
    ("source", "names", "top"),
    [
        ("import a.b", {"a.b"}, {"a.b"}),
        ("def f():\n    from a import b", {"a.b"}, set()),
        ("class C:\n    import a", {"a"}, {"a"}),
        ("from . import x", {"icrl_gym.p.x"}, {"icrl_gym.p.x"}),
        ("from ..model import x", {"icrl_gym.model.x"}, {"icrl_gym.model.x"}),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", {"b"}, {"b"}),
        ("try:\n    import a\nexcept ImportError:\n    pass", {"a"}, {"a"}),
        ("importlib.import_module('a.b')", {"a.b"}, {"a.b"}),
    ],
)
def test_the_reader_of_imports_sees_every_form(source, names, top):
    found = imports_of(source, "icrl_gym.p")
    assert (found.all, found.top) == (names, top)
