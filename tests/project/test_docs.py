"""The documentation: the code of its pages runs, and its site builds strictly and offline."""

import doctest
import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot
import pytest

ROOT = Path(__file__).parents[2]
# The code of mistakes.md fails on purpose, and test_mistakes.py runs it.
PAGES = sorted(
    page
    for page in (ROOT / "docs").rglob("*.md")
    if "```py" in page.read_text("utf-8") and page.stem != "mistakes"
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
    output = done.stdout + done.stderr
    assert done.returncode == 0 and "WARNING" not in output, output
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
        "errors.html",
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


def test_wide_formulas_scroll(site):
    page = (site / "reference" / "infer.html").read_text("utf-8")
    blocks = page.count('display="block"')
    assert blocks and page.count('<div class="formula">') == blocks
    sheet = (site / "stylesheets" / "extra.css").read_text("utf-8")
    assert re.search(r"\.formula \{[^}]*overflow-x: auto", sheet)


def test_search_works_from_disk_and_inside_words(site):
    """Opened from disk, a page cannot fetch: the index is a script, the worker a frame."""
    page = (site / "index.html").read_text("utf-8")
    assert 'src="javascripts/iframe-worker.js"' in page
    assert (site / "javascripts" / "iframe-worker.js").is_file()
    index = (site / "search" / "search_index.js").read_text("utf-8")
    index = json.loads(index.partition("=")[2])
    # The search is in JavaScript, where these parts of the pattern mean the same.
    separator = index["config"]["separator"]
    for text, word in {
        'gradient="dreg"': "dreg",
        "DReG gradients": "DReG",
        "log_weights": "weights",
        "AutoEncoder": "Encoder",
        "tarspyro.nn.MLP": "MLP",
    }.items():
        assert word in re.split(separator, text)
    assert any("dreg" in re.split(separator, entry["text"]) for entry in index["docs"])


def test_pages_have_light_and_dark(site):
    page = (site / "index.html").read_text("utf-8")
    assert 'data-md-color-scheme="default"' in page and 'data-md-color-scheme="slate"' in page


def test_plots_have_pictures(site):
    from tarspyro import plot

    folder = ROOT / "docs" / "pictures"
    page = (site / "reference" / "plot.html").read_text("utf-8")
    shown = re.findall(r'src="\.\./pictures/plot/(\w+)\.(?:png|gif)"', page)
    pages = {"Explorer", "explore"}  # for a browser, and no figures
    functions = set(plot.__all__) - {"Picture"} - pages
    assert functions <= set(shown) and len(shown) == len(set(shown))
    # The others are of other data, such as samples_table.
    others = set(shown) - functions
    assert all(name.rpartition("_")[0] in functions for name in others)
    assert set(shown) == {path.stem for path in (folder / "plot").iterdir()}
    assert sum(path.stat().st_size for path in folder.rglob("*.*")) < 400_000
    assert "pictures/quick_start.png" in (site / "index.html").read_text("utf-8")


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.stem
)
def test_links_lead_to_files_of_the_repository(page):
    for target in re.findall(r"\]\(([^)#:\s]+\.\w+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists() or target.endswith("gallery.md"), target


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


def test_the_gallery_links_to_the_notebooks(site):
    page = (site / "gallery.html").read_text("utf-8")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f'href="notebooks/{path.name}"' in page and f'id="{path.stem}"' in page
        assert (site / "notebooks" / path.name).is_file()
