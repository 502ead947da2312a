"""The commands of docs/how-to/command-line.md on six kinds of data, with their time and memory.

    python benchmarks/terminal.py                    # all of them
    python benchmarks/terminal.py survey walks       # those of some files
    python benchmarks/terminal.py --small            # small files, in a minute or two

The files are made in a temporary folder: a folder of 500 PNGs, a table with 40 % of its cells
missing, a sparse matrix of counts of 20,000 x 2,000, an archive of 2,000 RGB images as bytes, an
array of 20 GB of which every 125th row, 160 MB, is on disk (the rest are holes), and 300
sequences of different lengths. The commands are those of the section "Six kinds of data", as
they are printed there.
The table has the seconds of each command on the wall and the largest memory of its process, in
which pages of a large file count while they are mapped.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how-to" / "command-line.md"
SECTION = "## Six kinds of data"


def commands():
    """Returns the documented commands by the name of their data."""
    section = PAGE.read_text().partition(SECTION)[2].partition("\n## ")[0]
    lines = re.findall(r"^    (tarspyro .*)$", section, re.MULTILINE)
    found = {}
    name = ""
    for line in lines:
        data = re.search(r"train \S+ --data (\w+)", line)
        name = data[1] if data else name
        found.setdefault(name, []).append(line)
    return found


def picture(rng, side):
    """Returns a disc or a square of one colour on a ground of another, as bytes."""
    image = np.empty((side, side, 3), np.uint8)
    image[:] = rng.integers(256, size=3)
    y, x = np.mgrid[:side, :side]
    centre = rng.integers(side // 4, 3 * side // 4, 2)
    radius = rng.integers(side // 8, side // 4)
    down, right = abs(y - centre[0]), abs(x - centre[1])
    disc = down**2 + right**2 < radius**2
    square = np.maximum(down, right) < radius
    image[disc if rng.random() < 0.5 else square] = rng.integers(256, size=3)
    return image


def make_pictures(folder, rng, scale):
    from PIL import Image

    (folder / "pictures").mkdir()
    for index in range(max(40, 500 // scale)):
        Image.fromarray(picture(rng, 32)).save(folder / "pictures" / f"{index:03}.png")


def make_survey(folder, rng, scale):
    header = ["height", "weight", "age", "children", "smokes", "city"]
    with open(folder / "survey.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for _ in range(max(100, 2000 // scale)):
            height = rng.normal(170, 10)
            age = rng.integers(18, 90)
            row = [
                f"{height:.1f}",
                f"{height - 100 + rng.normal(0, 8):.1f}",
                age,
                rng.poisson(age / 40),
                "yes" if rng.random() < 0.3 else "no",
                rng.choice(["Bonn", "Oslo", "Rome"]),
            ]
            writer.writerow(["" if rng.random() < 0.4 else cell for cell in row])


def make_genes(folder, rng, scale):
    from scipy import sparse

    cells, genes = 20_000 // scale, 2_000
    kinds = rng.gamma(0.1, 2.0, (8, genes))
    blocks = [
        sparse.csr_matrix(rng.poisson(kinds[rng.integers(8, size=500)] * rng.gamma(2, 0.5)))
        for _ in range(cells // 500)
    ]
    sparse.save_npz(folder / "genes.npz", sparse.vstack(blocks, format="csr"))


def make_colours(folder, rng, scale):
    images = [picture(rng, 32) for _ in range(max(40, 2000 // scale))]
    np.savez_compressed(folder / "colours.npz", x=np.stack(images))


def make_large(folder, rng, scale):
    shape = (2_500_000, 2_000)  # of single precision
    array = np.lib.format.open_memmap(folder / "large.npy", "w+", np.float32, shape)
    directions = rng.normal(size=(5, shape[1])).astype(np.float32)
    for row in range(0, shape[0], 125):
        array[row] = rng.normal(size=5).astype(np.float32) @ directions
    array.flush()


def make_walks(folder, rng, scale):
    lengths = rng.integers(10, 40, max(30, 300 // scale))
    walks = [np.cumsum(rng.normal(size=(length, 2)), 0) for length in lengths]
    np.savez(folder / "walks.npz", *walks)


MAKERS = {
    "pictures": make_pictures,
    "survey": make_survey,
    "genes": make_genes,
    "colours": make_colours,
    "large": make_large,
    "walks": make_walks,
}


def run(line, folder):
    """Runs a command; returns its seconds, and the largest memory of its process in GB."""
    arguments = [sys.executable, "-m", "tarspyro", *line.split()[1:]]
    if " train " in line:
        arguments.append("--quiet")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    begin = time.perf_counter()
    with open(folder / "output.txt", "w") as output:
        process = subprocess.Popen(
            arguments, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        sys.exit(f"{line}\n{(folder / 'output.txt').read_text()}")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(MAKERS)}")
    parser.add_argument("--small", action="store_true", help="small files, where they can be")
    options = parser.parse_args()
    documented = commands()
    rng = np.random.default_rng(0)

    print("| command | seconds | memory, GB |\n|---|---:|---:|")
    for name in options.names or documented:
        with tempfile.TemporaryDirectory() as path:
            folder = Path(path)
            MAKERS[name](folder, rng, 10 if options.small else 1)
            for line in documented[name]:
                seconds, memory = run(line, folder)
                print(f"| `{line}` | {seconds:.1f} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    main()
