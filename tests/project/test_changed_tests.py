"""The tests that ``make check`` chooses."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "scripts"))

from changed_tests import selected_for  # noqa: E402

TREE = [
    "tests/infer/test_weights.py",
    "tests/infer/bounds/test_elbo.py",
    "tests/commands/methods/test_methods.py",
    "tests/models/test_draw.py",
    "tests/test_conditional.py",
]


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("tarspyro/infer/bounds/elbo.py", ["tests/infer/bounds/test_elbo.py"]),
        ("tarspyro/infer/bounds/weights.py", ["tests/infer/test_weights.py"]),
        ("tarspyro/infer/bounds/other.py", ["tests/infer/bounds"]),
        ("tarspyro/infer/compilation/other.py", ["tests/infer"]),
        ("tarspyro/commands/methods/draw.py", ["tests/commands/methods"]),
        ("tarspyro/conditional.py", ["tests/test_conditional.py"]),
        ("tarspyro/scopes.py", []),
    ],
)
def test_the_selected_for_a_module(file, tests, tmp_path):
    for path in TREE:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert selected_for(Path(file), tmp_path) == [*map(Path, tests), Path(file)]


@pytest.mark.parametrize("half", ["models", "guides"])
def test_both_halves_have_one_test(half, tmp_path):
    (tmp_path / "tests" / "models").mkdir(parents=True)
    (tmp_path / "tests" / "models" / "test_draw.py").touch()
    found = selected_for(Path(half, "draw.py"), tmp_path)
    assert found == [Path("tests/models/test_draw.py"), Path("tarspyro", half, "draw.py")]


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("tests/infer/test_elbo.py", ["tests/infer/test_elbo.py"]),
        ("tests/commands/conftest.py", ["tests/commands"]),
        ("README.md", ["tests/project/test_readme.py"]),
        ("docs/how-to/data.md", ["tests/project/test_docs.py"]),
        ("setup.py", ["tests/project/test_packaging.py"]),
        ("LICENSE", []),
    ],
)
def test_other_files(file, tests):
    assert selected_for(Path(file)) == list(map(Path, tests))
