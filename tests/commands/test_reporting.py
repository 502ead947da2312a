"""The page that reports a run."""

import json
import re

from tarspyro.commands import main
from tests.browser import Browser


def test_a_report_is_one_page_that_needs_no_network(folder, capsys, tmp_path):
    assert main(["report", str(folder), "--device", "cpu"]) == 0
    assert "report.html" in capsys.readouterr().out
    page = (folder / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page)
    for line in json.loads((folder / "evaluation.json").read_text())["lines"]:
        assert line in page.replace("&#x27;", "'")
    assert "+-" in page  # an estimate with its error
    assert "VAE: p(x, z) = p(x | z) p(z)" in page and "VAE: q(z | x)" in page
    assert "tarspyro train vae --data digits --epochs 2 --batch-size 400 --hidden 8" in page
    config = json.loads((folder / "config.json").read_text())
    assert f"torch {config['versions']['torch']}" in page
    assert re.search("<th>seed</th><td>0</td>", page)
    for name in ("curves", "samples", "reconstructions"):
        assert f'<img alt="{name}"' in page

    with Browser(tmp_path) as browser:
        for width in (1280, 390):
            browser.open(folder / "report.html", width=width)
            assert browser.evaluate("document.documentElement.scrollWidth") == width
            loaded = "Array.from(document.images).every(image => image.naturalWidth > 9)"
            assert browser.evaluate(loaded)
            left, top, side = browser.evaluate(
                "(map.scrollIntoView(), (r => [r.left, r.top, r.width])"
                "(map.getBoundingClientRect()))"
            )
            shown = "document.getElementById('place').textContent"
            before = browser.evaluate(shown)
            browser.pointer(left + 0.2 * side, top + 0.2 * side)
            assert browser.evaluate(shown) != before
        assert browser.errors == []


def test_a_report_uses_the_numbers_that_are_there(folder, capsys):
    stored = json.loads((folder / "evaluation.json").read_text())
    stored["lines"].append("a line of an earlier report")
    (folder / "evaluation.json").write_text(json.dumps(stored))
    out = folder / "page.html"
    assert main(["report", str(folder), "--device", "cpu", "--out", str(out)]) == 0
    assert "a line of an earlier report" in out.read_text()


def test_other_endings_are_refused(folder, assert_one_line):
    assert main(["report", str(folder), "--out", "page.pdf"]) == 2
    assert_one_line("--out page.pdf", ".html")
    assert main(["report", str(folder / "nothing")]) == 2
    assert_one_line("nothing")
