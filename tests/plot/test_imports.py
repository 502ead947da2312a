"""``import tarspyro`` loads no library that only some of its functions use."""

import subprocess
import sys

import pytest

HEAVY = "matplotlib", "sklearn", "scipy"


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.parametrize("package", ["tarspyro.evaluate", "tarspyro.plot"])
def test_heavy_libraries_are_imported_where_they_are_used(package):
    loaded = f"print(*[name for name in {HEAVY} if name in sys.modules])"
    assert run(f"import sys, {package}; {loaded}") == []


def test_drawing_does_not_import_pyplot():
    code = (
        "import sys; from tarspyro import plot;"
        "plot.piano_roll([[0, 1], [1, 0]]); plot.active_units([0.1, 0.2]);"
        "print(plot.Picture.__name__, 'matplotlib.pyplot' in sys.modules)"
    )
    assert run(code) == ["Picture", "False"]


def test_a_notebook_without_widgets_gets_no_warning():
    code = """
import sys, types, warnings
import IPython, ipykernel.zmqshell
sys.modules["ipywidgets"] = None
IPython.get_ipython = lambda: types.SimpleNamespace(config={"IPKernelApp": {}})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import tarspyro
    import tqdm.auto  # as Pyro does
print(len(caught), "tqdm.auto" in sys.modules)
"""
    assert run(code) == ["0", "True"]
