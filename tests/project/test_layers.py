"""The map of the package stays true: a module imports only from the floors below its own."""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "scripts"))

from map import arrows, floors, imports, modules  # noqa: E402

FLOORS = (
    {"_version", "accelerators", "arguments", "formulas", "memory", "programs", "types"},
    {"data", "scopes", "sharing"},
    {"modules", "infer"},
    {"nn", "runs", "sequences"},
    {"distributions"},
    {"conditional", "inputs", "models", "infer.bounds"},
    {
        "autoregressive",
        "exporting",
        "quantized",
        "semi_implicit",
        "guides",
        "sources",
        "infer.games",
        "infer.compilation",
    },
    {"infer (its names)", "evaluate"},
    {"plot", "sweeping", "training"},
    {"tarspyro (its names)", "estimators"},
    {"commands.methods"},
    {"commands"},
    {"commands (its names)"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(modules(ROOT).values())


@functools.cache
def found():
    """The arrows between the rooms, read once for all tests."""
    return arrows(ROOT)


def test_every_room_has_a_floor():
    assert found().keys() == FLOOR.keys()


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_imports_lead_down(room):
    for target in found()[room]:
        assert FLOOR[target] < FLOOR[room], (
            f"{room} imports from {target}, which is not below it"
        )


def test_no_circle():
    assert max(floors(found()).values()) < len(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_absolute(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), (
            f"{path}: relative imports mean something else under the other path"
        )


def test_models_and_guides_do_not_know_each_other():
    for folder, other in (("models", "guides"), ("guides", "models")):
        for path in (ROOT / folder).glob("*.py"):
            assert not any(name.startswith(f"tarspyro.{other}") for name in imports(path))


def _functions(path):
    """Every function with the number of its lines below the docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            first = (
                node.body[1]
                if ast.get_docstring(node) is not None and len(node.body) > 1
                else node.body[0]
            )
            yield f"{path.name}: {node.name}", node.end_lineno - first.lineno + 1


def test_functions_stay_short():
    lengths = dict(item for path in FILES for item in _functions(path))
    assert max(lengths.values()) <= 60, max(lengths, key=lengths.get)
