"""The drawing of the layers stays true: a module imports only from layers below its own."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    {"arguments"},
    {"_version", "modules", "labels", "optimizers", "processes", "interrupts", "callbacks"},
    {"data", "nn", "config", "steps"},
    {"distributions"},
    {"conditional", "infer"},
    {"models", "guides", "checks", "runs"},
    {"batches", "checkpoints"},
    {"watch"},
    {"trainer"},
    {"training", "evaluate"},
    {"plot", "estimators"},
    {"__init__"},
    {"commands"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted([*ROOT.glob("tarspyro/**/*.py"), *ROOT.glob("models/*.py"), *ROOT.glob("guides/*.py")])


def _unit(path):
    parts = path.relative_to(ROOT).parts
    if parts[0] in ("models", "guides"):
        return parts[0]
    return parts[1] if len(parts) > 2 else path.stem


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tarspyro"):
            yield from ([node.module] if "." in node.module else [f"tarspyro.{alias.name}" for alias in node.names])
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("tarspyro."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports mean something else under the other path"


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


def _lines_of_code(path):
    """Lines that hold code: docstrings, comments and blank lines apart."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, documented) and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    lines = enumerate(path.read_text().splitlines(), start=1)
    return sum(
        1 for number, line in lines if number not in docstrings and line.strip() and not line.strip().startswith("#")
    )


def test_files_stay_short():
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    assert max(lengths.values()) <= 400, max(lengths, key=lengths.get)
    # What all methods share; the methods, the data sets, what only looks at trained pairs, and what is said of
    # arguments are apart.
    apart = ("arguments", "models", "guides", "data", "labels", "evaluate", "plot", "commands", "__main__")
    core = [path for path in FILES if _unit(path) not in apart]
    # Five thousand was the aim before there were sequences, games, several processes and checks of every argument.
    assert sum(_lines_of_code(path) for path in core) < 7200


def test_every_model_has_its_namesake_in_the_guides():
    import tarspyro.guides
    import tarspyro.models

    alone = {"Classifier", "ConditionalGAN", "GAN"}  # without latent variables, or with some that nobody infers
    assert not alone & set(tarspyro.guides.__all__)
    for name in set(tarspyro.models.__all__) - alone:
        assert hasattr(tarspyro.guides, name)
        file = re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower() + ".py"
        assert (ROOT / "models" / file).exists() and (ROOT / "guides" / file).exists()
