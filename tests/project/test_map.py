"""The maps in CONTRIBUTING and docs/map.md name the rooms of the library, and real paths."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "scripts"))

from map import MARK, arrows, floors  # noqa: E402

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
LINKS = sorted(set(re.findall(r"\]\(([^)#]+)\)", CONTRIBUTING)))
QUESTIONS = (
    "Where is the IWAE formula?",
    "What happens to a NaN?",
    "Where is the order of the data decided?",
    "How would I add a bound?",
    "How would I add a family?",
    "How would I add a method?",
)


@pytest.mark.parametrize("target", LINKS)
def test_links_of_contributing_lead_to_files(target):
    assert (ROOT / target).exists()


def test_paths_in_the_text_exist():
    paths = re.findall(
        r"`((?:tarspyro|models|guides|tests|docs|notebooks)/[^`* ]*)`", CONTRIBUTING
    )
    for path in paths:
        assert "NAME" in path or (ROOT / path).exists(), path


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_question_is_answered_by_a_link(question):
    """From the README to CONTRIBUTING is one click, and from there to the file another."""
    assert "](CONTRIBUTING.md)" in README
    answer = CONTRIBUTING.partition(f"**{question}**")[2].partition("\n**")[0]
    assert re.search(r"\]\([^)]+\)", answer)


def test_contributing_shows_every_package():
    table = CONTRIBUTING.partition("## The map")[2].partition("##")[0]
    for folder in (ROOT / "tarspyro").iterdir():
        if (folder / "__init__.py").is_file():
            shown = (
                folder.resolve().relative_to(ROOT).as_posix()
            )  # models and guides are links
            assert f"({shown}/)" in table


def test_the_page_of_the_map_shows_every_room_on_its_floor():
    """After a change of imports, ``python docs/scripts/map.py --write`` writes the table anew."""
    table = (ROOT / "docs" / "map.md").read_text("utf-8").partition(MARK)[2]
    shown = re.findall(r"^\| (\d+) \| `([^`]+)` \|", table, flags=re.MULTILINE)
    assert {room: int(floor) for floor, room in shown} == floors(arrows(ROOT))
