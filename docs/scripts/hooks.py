"""MkDocs hooks: pages generated from files outside ``docs/``, and formulas in MathML.

The front page is the README. Contributing, changelog and benchmarks are the files of those
names. The gallery shows the pictures that the notebooks store.
"""

import base64
import html
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_FORMULA = re.compile(r"\\\((.*?)\\\)|\\\[(.*?)\\\]", flags=re.DOTALL)
_ARITHMATEX = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', flags=re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, their pictures and the notebooks."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=page_of(source)))

    for name in benchmark_pictures():
        path = ROOT / "benchmarks" / name
        files.append(File.generated(config, name, abs_src_path=str(path)))

    text, pictures = gallery()
    files.append(File.generated(config, "gallery.md", content=text))
    for name, content in pictures.items():
        files.append(File.generated(config, name, content=content))

    for path in notebooks():
        name = f"notebooks/{path.name}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: object) -> str:
    """Points links that leave ``docs/`` to pages of the site."""
    name = page.file.src_uri
    if not (ROOT / "docs" / name).is_file():  # a generated page
        return markdown
    return with_site_links(markdown, f"docs/{name}", name)


def on_page_content(content: str, **kwargs: object) -> str:
    """Writes formulas in MathML, which browsers show without a script."""
    return _ARITHMATEX.sub(lambda found: _as_mathml(html.unescape(found[2])), content)


def page_of(source: str) -> str:
    """Returns a file of the repository as a page of the site."""
    return with_site_links((ROOT / source).read_text("utf-8"), source, PAGES[source])


def with_site_links(text: str, source: str, page: str) -> str:
    """Returns a text whose links lead to pages of the site.

    A link to a file that the site does not hold, such as a module, becomes plain text.

    Arguments:
        text: The text in Markdown, with links that are relative to its file.
        source: The path of that file in the repository.
        page: The path of its page in the site.
    """

    def linked(found: re.Match[str]) -> str:
        mark, label, target, anchor = found.groups(default="")
        if "://" in target:
            return found[0]
        place = site_path(
            posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        )
        if place is None:
            return label
        place = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"{mark}[{label}]({place}{anchor})"

    return _LINK.sub(linked, text)


def site_path(path: str) -> str | None:
    """Returns where the site holds a file of the repository, or None if it does not."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/") and not path.startswith("docs/scripts/"):
        return path.removeprefix("docs/") or None
    if path.startswith("benchmarks/results/"):
        return path.removeprefix("benchmarks/")
    if path.startswith("notebooks/") and path.endswith(".ipynb"):
        return path
    return None


def benchmark_pictures() -> list[str]:
    """Returns the names of the results that the page of the benchmarks shows or links to."""
    text = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    return sorted(set(re.findall(r"\]\((results/[\w.-]+)\)", text)))


def notebooks() -> list[Path]:
    """Returns the files of the notebooks in their order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def gallery() -> tuple[str, dict[str, bytes]]:
    """Returns the page with the notebooks' stored pictures, and the pictures by name."""
    lines = [
        "# Gallery",
        "",
        "The pictures of the notebooks, from their last complete runs. Each title links to its"
        " notebook.",
    ]
    contents: dict[str, bytes] = {}
    for path in notebooks():
        above = ""
        cells = json.loads(path.read_text("utf-8"))["cells"]
        for index, (title, heading, suffix, content) in enumerate(_pictures(cells)):
            name = f"gallery/{path.stem}_{index:02d}.{suffix}"
            contents[name] = content
            if index == 0:
                link = f"[notebooks/{path.name}](notebooks/{path.name})"
                lines += ["", f"## {title} {{ #{path.stem} }}", "", f"Notebook: {link}"]
            if heading not in (title, above):
                lines += ["", f"### {heading}"]
            above = heading
            lines += ["", f"![{heading}]({name})"]
    return "\n".join(lines) + "\n", contents


def _pictures(cells: list[dict]) -> Iterator[tuple[str, str, str, bytes]]:
    """Yields a notebook's pictures: its title, the heading above, the format, the bytes."""
    title = ""
    heading = ""
    for cell in cells:
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^#+ (.*)", "".join(cell["source"]), flags=re.MULTILINE)
            if headings:
                title = title or headings[0]
                heading = headings[-1]
        for output in cell.get("outputs", ()):
            for suffix in ("png", "gif"):
                if f"image/{suffix}" in output.get("data", {}):
                    encoded = "".join(output["data"][f"image/{suffix}"])
                    yield title, heading, suffix, base64.b64decode(encoded)


def _as_mathml(text: str) -> str:
    # The converter makes one unknown word of \arg\max.
    text = text.strip().replace(r"\arg", r"\mathrm{arg}\,")
    found = _FORMULA.fullmatch(text)
    assert found is not None, text
    inline, block = found.groups()
    if block is None:
        return convert(inline)
    return f'<div class="formula">{convert(block, display="block")}</div>'
