"""Folders of images as people have them: modes, depths, orientations, and files that are no images."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from tarspyro.data import load
from tarspyro.data.files import DataError

COLOUR = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
GREY = COLOUR[..., 0]
DEEP = (np.arange(24).reshape(4, 6) * 2800).astype(np.uint16)
IN_COLOUR = torch.from_numpy(COLOUR).permute(2, 0, 1) / 255
IN_GREY = torch.from_numpy(GREY)[None] / 255
OF_DEEP = torch.from_numpy(DEEP.astype(np.float32))[None] / 65535


def with_alpha(colour, alpha):
    return Image.fromarray(np.dstack([colour, np.full((4, 6), alpha, np.uint8)]))


def on_white(image, alpha):
    return image * alpha / 255 + (1 - alpha / 255)


IMAGES = {
    "colour": (Image.fromarray(COLOUR), "png", IN_COLOUR),
    "palette": (Image.fromarray(COLOUR).quantize(256), "png", IN_COLOUR),
    "grey": (Image.fromarray(GREY), "png", IN_GREY),
    "black and white": (Image.fromarray(GREY > 127), "png", (IN_GREY > 0.5).float()),
    "opaque": (with_alpha(COLOUR, 255), "png", IN_COLOUR),
    "transparent": (with_alpha(COLOUR, 0), "png", torch.ones(3, 4, 6)),
    "half transparent": (with_alpha(COLOUR, 100), "png", on_white(IN_COLOUR, 100)),
    "grey and half transparent": (with_alpha(GREY, 100), "png", on_white(IN_GREY, 100)),
    "16 bits": (Image.fromarray(DEEP), "png", OF_DEEP),
    "16 bits in 32": (Image.fromarray(DEEP.astype(np.int32)), "tif", OF_DEEP),
    "real numbers": (Image.fromarray(OF_DEEP[0].numpy()), "tif", OF_DEEP),
}


@pytest.mark.parametrize(("image", "ending", "expected"), IMAGES.values(), ids=IMAGES)
def test_modes_of_images(tmp_path, image, ending, expected):
    image.save(tmp_path / f"a.{ending}")
    x = load(tmp_path).x
    assert x.dtype is torch.float32 and x.shape == (1, *expected.shape)
    # What is half transparent is rounded to bytes.
    assert torch.allclose(x[0], expected, atol=1.01 / 255)
    if image.mode in ("RGB", "L", "I;16"):
        assert torch.equal(x[0], expected)


def test_a_mixture_of_modes(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "1.png")
    Image.fromarray(DEEP).save(tmp_path / "2.png")
    assert torch.equal(load(tmp_path).x, torch.stack([IN_GREY, OF_DEEP]))
    Image.fromarray(COLOUR).save(tmp_path / "3.png")
    expected = [IN_GREY.expand(3, 4, 6), OF_DEEP.expand(3, 4, 6), IN_COLOUR]
    assert torch.equal(load(tmp_path).x, torch.stack(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, orientation):
    """By the eight orientations of EXIF: where the stored first row and column are."""
    turned = {
        1: COLOUR,
        2: COLOUR[:, ::-1],
        3: COLOUR[::-1, ::-1],
        4: COLOUR[::-1],
        5: COLOUR.swapaxes(0, 1),
        6: COLOUR[::-1].swapaxes(0, 1),
        7: COLOUR[::-1, ::-1].swapaxes(0, 1),
        8: COLOUR[:, ::-1].swapaxes(0, 1),
    }[orientation]
    image = Image.fromarray(COLOUR)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    found = load(tmp_path).x[0]
    assert torch.equal(found, torch.from_numpy(turned.copy()).permute(2, 0, 1) / 255)
    height, width = turned.shape[:2]
    assert torch.equal(load(tmp_path, size=(height, width)).x[0], found)


def test_scaled_images_stay_in_range(tmp_path):
    edges = np.where(np.arange(24).reshape(4, 6) % 6 < 3, 0, 65535).astype(np.uint16)
    Image.fromarray(edges).save(tmp_path / "1.png")
    Image.fromarray((edges > 0).astype(np.uint8) * 255).save(tmp_path / "2.png")
    x = load(tmp_path, size=(9, 13)).x
    assert x.shape == (2, 1, 9, 13) and x.min() == 0 and x.max() == 1
    assert torch.allclose(x[0], x[1], atol=0.01)
    with pytest.raises(ValueError, match=r"size must be a height and a width, got \(4,\)"):
        load(tmp_path, size=(4,))
    with pytest.raises(TypeError, match="size must be a list of sizes.*got 4"):
        load(tmp_path, size=4)


def test_other_files_are_left_out(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "A.PNG")
    for name in (
        ".DS_Store",
        "._A.png",
        ".hidden.png",
        "Thumbs.db",
        "labels.csv",
        "notes.txt",
    ):
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    Image.fromarray(GREY).save(tmp_path / ".ipynb_checkpoints" / "A-checkpoint.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "directory.png").mkdir()
    found = load(tmp_path)
    assert found.x.shape == (1, 3, 4, 6) and found.y is None


def test_what_cannot_be_read_is_named(tmp_path):
    content = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60), np.uint8)).save(
        content
    )
    cases = {
        "broken": b"?",
        "nothing": b"",
        "truncated": content.read_bytes()[:2000],
        "damaged": content.read_bytes()[:60] + b"\0" * 200,
    }
    for name, written in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.png").write_bytes(written)
        with pytest.raises(DataError, match=r"a\.png cannot be read \(.*\): repair") as error:
            load(folder)
        assert "\n" not in str(error.value)
    folder = tmp_path / "linked"
    folder.mkdir()
    os.symlink(tmp_path / "gone.png", folder / "a.png")
    with pytest.raises(DataError, match=r"a\.png cannot be read \(.*No such file"):
        load(folder)


@pytest.mark.parametrize("values", [DEEP.astype(np.int32) * 10, DEEP.astype(np.float32) - 5])
def test_depths_whose_white_is_unknown_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif has values from .*white is not known"):
        load(tmp_path)


def test_folders_that_are_ambiguous_or_too_deep(tmp_path):
    train = tmp_path / "train"
    for name in ("cat", "dog"):
        (train / name).mkdir(parents=True)
        Image.fromarray(COLOUR).save(train / name / "a.png")
    with pytest.raises(DataError, match=r"folders of folders: give one of them, .*train"):
        load(tmp_path)
    assert load(train).y.tolist() == [0, 1]
    Image.fromarray(COLOUR).save(train / "b.png")
    with pytest.raises(DataError, match=r"holds b\.png beside the sub-folder cat"):
        load(train)
