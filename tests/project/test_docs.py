"""The documentation: its site builds without a network, and the code of its pages runs."""

import doctest
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page for page in (ROOT / "docs").rglob("*.md") if "```py" in page.read_text("utf-8")
)
NEEDS = {"other-tools": ("lightning", "tensorboard")}
_BLOCK = re.compile(r"^```(python|pycon)[^\n]*\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore:::lightning")  # its advice, and deprecations inside it
def test_code_of_the_pages_runs(page, tmp_path, monkeypatch):
    """Blocks of ``python`` run, and those of ``pycon`` print what they say, one after the
    other in one namespace.
    """
    for package in NEEDS.get(page.stem, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the page shows {package}, which is not installed")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for kind, code in _BLOCK.findall(page.read_text("utf-8")):
        if kind == "python":
            exec(compile(code, str(page), "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(
                textwrap.dedent(code), names, page.name, str(page), 0
            )
            failures = []
            runner.run(test, out=failures.append, clear_globs=False)
            names.update(test.globs)
            assert runner.failures == 0, "".join(failures)
    matplotlib.pyplot.close("all")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("mkdocs", "material", "mkdocstrings_handlers", "latex2mathml"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"building the site needs {package}: pip install tarspyro[docs]")
    folder = tmp_path_factory.mktemp("site")
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(folder),
    ]
    environment = {
        **os.environ,
        **nowhere,
        "NO_MKDOCS_2_WARNING": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_asks_for_nothing_from_elsewhere(site):
    pages = {
        str(page.relative_to(site)): page.read_text("utf-8") for page in site.rglob("*.html")
    }
    assert {
        "index.html",
        "tutorial.html",
        "gallery.html",
        "benchmarks.html",
        "reference/infer.html",
    } <= pages.keys()
    for name, page in pages.items():
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]*src=\"?([^\" >]+)", page)
        fetched += re.findall(
            r"<link[^>]*rel=\"(?:stylesheet|preconnect|preload|icon)\"[^>]*>", page
        )
        assert fetched and not [what for what in fetched if "//" in what], name
    assert not [
        sheet
        for sheet in site.rglob("*.css")
        if re.search(r"url\([\"']?(https?:)?//", sheet.read_text("utf-8"))
    ]


def test_formulas_are_written_out(site):
    pages = [
        page.read_text("utf-8")
        for page in [*site.glob("*.html"), *site.glob("reference/*.html")]
    ]
    text = "".join(re.sub(r"<(pre|code).*?</\1>", "", page, flags=re.DOTALL) for page in pages)
    formulas = re.findall(r"<math.*?</math>", text, flags=re.DOTALL)
    assert len(formulas) > 150 and not [
        formula for formula in formulas if re.search(r"\\[a-zA-Z]", formula)
    ]
    assert not re.search(r"\.\. math::|:math:|arithmatex|\$\$", text)


@pytest.mark.parametrize(
    "part", "models guides infer distributions nn evaluate plot data estimators".split()
)
def test_the_reference_has_every_public_name(site, part):
    page = (site / "reference" / f"{part}.html").read_text("utf-8")
    module = importlib.import_module(f"tarspyro.{part}")
    anchors = set(re.findall(r'id="tarspyro\.([\w.]+)"', page))
    # A function that has its module's name stands there under both.
    assert not [
        name
        for name in module.__all__
        if not {f"{part}.{name}", f"{part}.{name}.{name}"} & anchors
    ]


def test_the_gallery_shows_every_picture_of_the_notebooks(site):
    stored = sum(
        path.read_text("utf-8").count('"image/png":')
        for path in (ROOT / "notebooks").glob("*.ipynb")
    )
    shown = re.findall(r'src="(gallery/[^"]+)"', (site / "gallery.html").read_text("utf-8"))
    assert stored and len({name for name in shown if name.endswith(".png")}) == stored
    assert all((site / name).stat().st_size > 1000 for name in shown)
