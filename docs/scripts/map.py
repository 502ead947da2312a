"""The map of the package: its rooms, the imports between them, and the resulting floors.

    python docs/scripts/map.py            (of this checkout)
    python docs/scripts/map.py FOLDER     (of another one)
    python docs/scripts/map.py --write    (writes the table in docs/map.md)

A room is a package of the library, or a module outside any package. The ``__init__`` of a
package that contains packages is a room of its own, since it only gathers their public names.
An arrow leads from a room to a room that it imports from. A room's floor is one above the
highest room that it imports from.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "map.md"
MARK = "<!-- written by docs/scripts/map.py --write -->"
OUTSIDE = (
    "models",
    "guides",
)  # beside the package in the repository, inside it once installed


def modules(root: Path) -> dict[str, Path]:
    """Returns the files of the library by the names of their modules."""
    files = [*root.glob("tarspyro/**/*.py")]
    for folder in OUTSIDE:
        files += root.glob(f"{folder}/*.py")
    found = {}
    for file in sorted(files):
        parts = file.relative_to(root).with_suffix("").parts
        if parts[0] in OUTSIDE:
            parts = ("tarspyro", *parts)
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = file
    return found


def imports(file: Path) -> Iterator[str]:
    """Yields the names that a file imports from the library, wherever in the file it does."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (
                alias.name for alias in node.names if alias.name.startswith("tarspyro")
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tarspyro"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str, known: dict[str, Path]) -> str:
    """Returns the room of a module: its package, or itself if it is directly in ``tarspyro``."""
    parts = module.split(".")
    if known[module].name == "__init__.py":
        inner = any(
            other.startswith(f"{module}.") and other.count(".") > len(parts) for other in known
        )
        return (
            f"{'.'.join(parts[1:]) or 'tarspyro'} (its names)"
            if inner
            else ".".join(parts[1:])
        )
    return ".".join(parts[1:-1] if len(parts) > 2 else parts[1:])


def arrows(root: Path = ROOT) -> dict[str, dict[str, int]]:
    """Returns for every room the rooms that it imports from, with the number of modules that
    do.
    """
    known = modules(root)
    found: dict[str, dict[str, int]] = {}
    for module, file in known.items():
        room = room_of(module, known)
        leads = found.setdefault(room, defaultdict(int))
        targets = set()
        for name in imports(file):
            while name not in known:  # the name of a function or a class
                name = name.rpartition(".")[0]
            targets.add(room_of(name, known))
        for target in targets - {room}:
            leads[target] += 1
    return found


def floors(found: dict[str, dict[str, int]]) -> dict[str, int]:
    """Returns the floor of every room.

    Raises:
        ValueError: If rooms import from each other in a circle; the message names them.
    """
    heights: dict[str, int] = {}

    def height(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            raise ValueError(
                f"A circle of imports: {' -> '.join([*above[above.index(room) :], room])}."
            )
        if room not in heights:
            below = [height(target, (*above, room)) for target in found[room]]
            heights[room] = 1 + max(below, default=-1)
        return heights[room]

    for room in found:
        height(room, ())
    return heights


def subject(room: str, known: dict[str, Path]) -> str:
    """Returns what a room holds: the first sentence of its docstring, or its modules' names."""
    if f"{room} (its names)" in (room_of(module, known) for module in known):
        prefix = f"tarspyro.{room}."
        names = [name.removeprefix(prefix) for name in known if name.startswith(prefix)]
        inner = [name for name in names if room_of(prefix + name, known) == room]
        return "The modules " + ", ".join(f"`{name}`" for name in inner)
    module = f"tarspyro.{room.removesuffix(' (its names)')}"
    file = known["tarspyro" if room.startswith("tarspyro") else module]
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    first = docstring.partition("\n\n")[0].replace("\n", " ")
    return first.partition(". ")[0].rstrip(".").replace(" | ", ", ").replace("``", "`")


def table(root: Path = ROOT) -> str:
    """Returns the map as a table in Markdown, from the top floor down."""
    known = modules(root)
    found = arrows(root)
    heights = floors(found)
    lines = ["| floor | room | content | imports from |", "|---|---|---|---|"]
    for room in sorted(found, key=lambda room: (-heights[room], room)):
        leads = ", ".join(f"`{target}`" for target in sorted(found[room]))
        lines.append(f"| {heights[room]} | `{room}` | {subject(room, known)} | {leads} |")
    counts = f"{len(found)} rooms, {sum(map(len, found.values()))} arrows"
    counts += f", {1 + max(heights.values())} floors, {len(known)} modules"
    return "\n".join([*lines, "", f"Together: {counts}."])


def write() -> None:
    """Writes the table below the mark in the page of the map."""
    above = PAGE.read_text("utf-8").partition(MARK)[0]
    PAGE.write_text(f"{above}{MARK}\n\n{table()}\n", "utf-8")


def main(root: Path) -> None:
    """Prints the rooms from the ground up, each with its size and what it imports from."""
    known = modules(root)
    found = arrows(root)
    held = defaultdict(list)
    for module, file in known.items():
        held[room_of(module, known)].append(len(file.read_text().splitlines()))
    try:
        heights = floors(found)
    except ValueError as error:
        print(error)
        heights = dict.fromkeys(found, 0)
    for room in sorted(found, key=lambda room: (heights[room], room)):
        leads = ", ".join(sorted(found[room])) or "-"
        print(
            f"{heights[room]:2}  {room:20} {len(held[room]):3} modules {sum(held[room]):6}"
            f" lines   {leads}"
        )
    count = sum(len(leads) for leads in found.values())
    print(
        f"{len(found)} rooms, {count} arrows, {1 + max(heights.values())} floors, {len(known)}"
        " modules"
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write()
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
