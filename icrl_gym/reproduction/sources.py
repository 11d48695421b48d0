"""`fingerprint`: a hash of the code behind a number, so that a stored result is taken for the same code only."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = "icrl_gym"
ROOT = Path(__file__).parents[1]  # folder of the package
PRESENTATION = frozenset({  # modules that keep and show what was measured
    "configuration", "reproduction.sources", "reproduction.store", "runs", "scoring.document", "scoring.figures",
})  # fmt: skip


@cache
def fingerprint(module: str) -> str:
    """SHA-256 over the code of a module and of all modules of this library that it imports, directly or not.

    Comments, docstrings and line breaks do not count, and the modules of `PRESENTATION` are left out.
    """
    digest = hashlib.sha256()
    for name in sorted(_closure(module)):
        digest.update(f"{name}\n{_code(name)}\n".encode())
    return digest.hexdigest()


def _closure(module: str) -> set[str]:
    found, open_ends = set(), [module]
    while open_ends:
        name = open_ends.pop()
        if name not in found:
            found.add(name)
            open_ends += [imported for imported in _imports(name) if _measures(imported)]
    return found


def _measures(module: str) -> bool:
    package, _, name = module.partition(".")
    return package == PACKAGE and bool(name) and name not in PRESENTATION


def _imports(module: str) -> Iterator[str]:
    """The modules that a module imports, by absolute name."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [member for member in members if _measures(member) and _file(member) is not None]
            yield from modules
            if len(modules) < len(members):
                yield node.module


def _code(module: str) -> str:
    """The syntax tree without docstrings, as text."""
    tree = _tree(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def _tree(module: str) -> ast.Module:
    path = _file(module)
    return ast.parse("" if path is None else path.read_bytes())


def _file(module: str) -> Path | None:
    """The source of a module; None where there is none, such as for a name inside a module."""
    package, *parts = module.split(".")
    if package != PACKAGE:
        found = getattr(sys.modules.get(module), "__file__", None)
        return None if found is None else Path(found)
    path = ROOT.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
