"""Regression tables of the UCI repository."""

__all__ = ["uci"]

import io
from pathlib import Path

import numpy as np
import torch

from tarspyro.arguments import as_count, check_choice
from tarspyro.data.containers import Regression, Split
from tarspyro.data.files import data_folder, fetch

# The SHA-256 of each table as text, with one row for each data point and the target last. The
# tables have no stable address.
_TABLES = {
    "concrete": "43d290fd2c2a399ad7e62c45cab5337ba94ece69ebdcf5875aa668cb886243de",
    "yacht": "00dfecc0fc01ddd4c90b558a3ac11b246df8ebcfea130724223475a9a67f0ea1",
}


def uci(name: str, *, split: int = 0, folder: str | Path | None = None) -> Regression:
    """Returns a regression data set of the UCI repository, with nine tenths of the rows for
    training and the rest for testing.

    - ``"concrete"``: 1,030 mixtures of 8 numbers each, and their strength in MPa (Yeh 1998).
    - ``"yacht"``: 308 hulls of 6 numbers each, and their resistance.

    Arguments:
        name: The name of the data set.
        split: The seed of the random split.
        folder: The data folder, see ``mnist``. The file ``uci/NAME.txt`` has to be put there.

    Raises:
        DataError: If the file is missing or has the wrong content.
        ValueError: If there is no such data set, or ``split`` is negative.
    """
    check_choice("name", name, _TABLES)
    split = as_count("split", split, 0)
    content = fetch(data_folder(folder) / "uci" / f"{name}.txt", None, _TABLES[name], bytes)
    table = np.loadtxt(io.BytesIO(content))
    table = table[np.random.default_rng(split).permutation(len(table))]

    count = round(0.9 * len(table))
    mean = table[:count].mean(0)
    scale = table[:count].std(0)
    values = torch.as_tensor((table - mean) / scale, dtype=torch.get_default_dtype())
    train = Split(values[:count, :-1], values[:count, -1])
    test = Split(values[count:, :-1], values[count:, -1])
    return Regression(name, train, test, float(mean[-1]), float(scale[-1]))
