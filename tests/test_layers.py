"""Dependencies point one way: apps -> {probe, sae} -> activations_store, and inside the store from the bytes up."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "activations_store": ("apps", "probe", "sae"),
    "probe": ("apps", "sae"),
    "sae": ("apps", "probe"),
    "activations_store/storage": tuple(
        f"activations_store.{name}" for name in ("format", "views", "writing", "loading", "upkeep", "store")
    ),
    "activations_store/format": tuple(
        f"activations_store.{name}" for name in ("views", "writing", "loading", "upkeep", "store")
    ),
    "activations_store/writing": tuple(f"activations_store.{name}" for name in ("views", "loading", "upkeep", "store")),
    "activations_store/views": tuple(f"activations_store.{name}" for name in ("writing", "loading", "upkeep")),
    "activations_store/loading": ("activations_store.writing", "activations_store.upkeep"),
}


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports when it runs; imports for types only do not count."""
    names: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        todo.extend(ast.iter_child_nodes(node))
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_layer_imports_only_what_lies_below_it(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in sorted(imported(path))
        if any(name == upper or name.startswith(f"{upper}.") for upper in FORBIDDEN[folder])
    ]
    assert not wrong
