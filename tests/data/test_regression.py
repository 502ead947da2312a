"""Regression tables: their splits, their units, and what is said when a file is missing."""

import os

import numpy as np
import pytest
import torch

from tarspyro import data
from tarspyro.data import DataError

from ..damages import one_sentence


@pytest.fixture
def uci_folder():
    folder = os.environ.get("TARSPYRO_DATA", "")
    if not os.path.isdir(os.path.join(folder, "uci")):
        pytest.skip("TARSPYRO_DATA does not name a folder with uci/")
    return folder


@pytest.mark.parametrize(
    "name, rows, features, held_out", [("concrete", 1030, 8, 103), ("yacht", 308, 6, 31)]
)
def test_uci_has_random_splits_of_all_rows(uci_folder, name, rows, features, held_out):
    table = np.loadtxt(os.path.join(uci_folder, "uci", f"{name}.txt"))
    for split in (0, 1):
        dataset = data.uci(name, split=split)
        assert dataset.name == name
        assert dataset.train.x.shape == (
            rows - held_out,
            features,
        ) and dataset.train.y.shape == (rows - held_out,)
        assert dataset.test.x.shape == (held_out, features) and dataset.test.y.shape == (
            held_out,
        )
        y = (
            dataset.y_mean
            + dataset.y_scale * torch.cat([dataset.train.y, dataset.test.y]).double()
        )
        np.testing.assert_allclose(np.sort(y.numpy()), np.sort(table[:, -1]), atol=1e-4)
    assert not torch.equal(data.uci(name).test.y, dataset.test.y)
    assert torch.equal(data.uci(name, split=1).test.x, dataset.test.x)


def test_uci_is_standardized_by_its_training_part_alone(uci_folder):
    dataset = data.uci("yacht")
    for part, exact in ((dataset.train, True), (dataset.test, False)):
        values = torch.cat([part.x, part.y.unsqueeze(1)], 1).double()
        for found, truth in ((values.mean(0), 0.0), (values.std(0, correction=0), 1.0)):
            assert torch.allclose(found, torch.full_like(found, truth), atol=1e-5) == exact
    raw = dataset.y_mean + dataset.y_scale * dataset.train.y.double()
    assert dataset.y_mean == pytest.approx(
        raw.mean().item()
    ) and dataset.y_scale == pytest.approx(raw.std(correction=0).item())


def test_uci_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="name must be .*concrete.*yacht.*, got 'boston'"):
        data.uci("boston")
    with pytest.raises(ValueError, match="split must not be negative, got -1"):
        data.uci("yacht", split=-1)
    with pytest.raises(DataError) as error:
        data.uci("yacht", folder=tmp_path)
    text = one_sentence(error)
    assert str(tmp_path / "uci" / "yacht.txt") in text and "TARSPYRO_DATA" in text
    (tmp_path / "uci").mkdir()
    (tmp_path / "uci" / "yacht.txt").write_text("1 2 3\n")
    with pytest.raises(
        DataError, match="does not hold the expected data.*: put the right file there"
    ):
        data.uci("yacht", folder=tmp_path)
