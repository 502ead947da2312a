"""The drawing of the layers stays true: a module imports only from layers below its own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = (
    {"arguments"},
    {
        "_version",
        "modules",
        "programs",
        "labels",
        "optimizers",
        "processes",
        "interrupts",
        "callbacks",
    },
    {"data", "nn", "config", "steps"},
    {"distributions"},
    {"conditional", "infer"},
    {"models", "guides", "checks", "runs"},
    {"batches", "checkpoints"},
    {"counts"},
    {"watch"},
    {"trainer"},
    {"training", "evaluate"},
    {"plot", "estimators"},
    {"__init__"},
    {"commands"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(
    [*ROOT.glob("tarspyro/**/*.py"), *ROOT.glob("models/*.py"), *ROOT.glob("guides/*.py")]
)


def _unit(path):
    parts = path.relative_to(ROOT).parts
    if parts[0] in ("models", "guides"):
        return parts[0]
    return parts[1] if len(parts) > 2 else path.stem


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("tarspyro")
        ):
            yield from (
                [node.module]
                if "." in node.module
                else [f"tarspyro.{alias.name}" for alias in node.names]
            )
        elif isinstance(node, ast.Import):
            yield from (
                alias.name for alias in node.names if alias.name.startswith("tarspyro.")
            )
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path}: relative imports mean something else under the other path"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    unit = _unit(path)
    for imported in _imports(path):
        target = imported.split(".")[1]
        if target == unit or (unit in ("models", "guides") and target == unit):
            continue
        if target not in LEVEL:
            target = "__init__"  # a name that the package itself exports
        assert LEVEL[target] < LEVEL[unit], f"{unit} imports {imported}, which is not below it"


def test_models_and_guides_do_not_know_each_other():
    for folder, other in (("models", "guides"), ("guides", "models")):
        for path in (ROOT / folder).glob("*.py"):
            assert not any(name.startswith(f"tarspyro.{other}") for name in _imports(path))


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
    assert (
        lengths.pop("training.py: fit") <= 90
    )  # a list of arguments, and what is made of them
    assert max(lengths.values()) <= 60, max(lengths, key=lengths.get)
