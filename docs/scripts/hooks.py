"""What MkDocs makes of what stands elsewhere, when it builds: gallery, benchmarks and
changelog; and the formulas.
"""

import base64
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
_FORMULA = re.compile(r"\\\((.*?)\\\)|\\\[(.*?)\\\]", flags=re.DOTALL)
_ARITHMATEX = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', flags=re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and their pictures."""
    files.append(
        File.generated(
            config, "changelog.md", content=(ROOT / "CHANGELOG.md").read_text("utf-8")
        )
    )
    page, pictures = benchmarks()
    files.append(File.generated(config, "benchmarks.md", content=page))
    for name in pictures:
        files.append(
            File.generated(config, name, abs_src_path=str(ROOT / "benchmarks" / name))
        )
    page, contents = gallery()
    files.append(File.generated(config, "gallery.md", content=page))
    for name, content in contents.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_content(content: str, **kwargs: Any) -> str:
    """Writes formulas in MathML, which browsers show without a script."""
    return _ARITHMATEX.sub(lambda found: _as_mathml(html.unescape(found[2])), content)


def benchmarks() -> tuple[str, list[str]]:
    """Returns the page of the benchmarks, and the pictures that it shows."""
    text = (ROOT / "benchmarks" / "README.md").read_text("utf-8").replace("](../docs/", "](")
    return text, sorted(set(re.findall(r"\]\((results/[\w.-]+\.png)\)", text)))


def gallery() -> tuple[str, dict[str, bytes]]:
    """Returns the page with the pictures of the notebooks' stored outputs, and the pictures by
    their names.
    """
    lines, contents = (
        [
            "# Gallery",
            "",
            "The pictures of the notebooks, as their last complete runs stored them.",
        ],
        {},
    )
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        above = ""
        for index, (title, heading, suffix, content) in enumerate(
            _pictures(json.loads(path.read_text("utf-8"))["cells"])
        ):
            name = f"gallery/{path.stem}_{index:02d}.{suffix}"
            contents[name] = content
            if index == 0:
                lines += ["", f"## {title}", "", f"`notebooks/{path.name}`"]
            if heading not in (title, above):
                lines += ["", f"### {heading}"]
            above = heading
            lines += ["", f"![{heading}]({name})"]
    return "\n".join(lines) + "\n", contents


def _pictures(cells: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, bytes]]:
    """Yields the pictures of a notebook, each with the notebook's title and the heading above
    it.
    """
    title = heading = ""
    for cell in cells:
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^#+ (.*)", "".join(cell["source"]), flags=re.MULTILINE)
            title, heading = title or next(iter(headings), ""), (headings or [heading])[-1]
        for output in cell.get("outputs", ()):
            for suffix in ("png", "gif"):
                if f"image/{suffix}" in output.get("data", {}):
                    encoded = "".join(output["data"][f"image/{suffix}"])
                    yield title, heading, suffix, base64.b64decode(encoded)


def _as_mathml(text: str) -> str:
    text = text.strip().replace(
        r"\arg", r"\mathrm{arg}\,"
    )  # the converter makes one unknown word of \arg\max
    inline, block = _FORMULA.fullmatch(text).groups()  # type: ignore[union-attr]
    return convert(inline) if block is None else convert(block, display="block")
