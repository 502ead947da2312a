"""Folders of images as tensors."""

__all__ = ["IMAGES", "read_image_folder"]

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tarspyro.arguments import as_sizes
from tarspyro.data.containers import Split
from tarspyro.data.files import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")

# Pillow's names of images with more than eight bits.
_DEEP = ("F", "I", "I;16", "I;16L", "I;16B", "I;16N")
_GREY = ("1", "L", "LA", "La")


def read_image_folder(folder: Path, size: Sequence[int] | None = None) -> Split:
    """Returns the images of a folder, in the order of their names, with values in [0, 1].

    They are turned upright by their EXIF orientation. Images of 16 bits are divided by 65,535,
    all others by 255. What is transparent is put on white. Grey images among coloured ones get
    three equal channels. Of an animation the first image counts. Hidden files and files of
    other kinds are left out.

    Arguments:
        folder: The folder. If its sub-folders hold images, they are the labels 0, 1, ... in
            the order of their names.
        size: The height and width to which all are scaled.

    Raises:
        DataError: If there are no images, some of them cannot be read or differ in size, or
            there are images beside sub-folders with images.
    """
    if size is not None:
        size = as_sizes("size", size)
        if len(size) != 2:
            raise ValueError(f"size must be a height and a width, got {size}.")
    files = _files_of(folder)
    images: list[np.ndarray] = []
    for path, _ in files:
        image = _pixels(path, size)
        if images and image.shape[:2] != images[0].shape[:2]:
            height, width = images[0].shape[:2]
            raise DataError(
                f"{path} is of {image.shape[0]} x {image.shape[1]} pixels and the images before"
                f" it of {height} x {width}: scale them to one size, size=({height}, {width})."
            )
        images.append(image)
    if any(image.ndim == 3 for image in images):
        images = [i if i.ndim == 3 else np.repeat(i[..., None], 3, -1) for i in images]
        stacked = np.stack(images).transpose(0, 3, 1, 2)
    else:
        stacked = np.stack(images)[:, None]
    labels = [label for _, label in files if label is not None]
    x = torch.from_numpy(np.ascontiguousarray(stacked))
    return Split(x, torch.tensor(labels) if labels else None)


def _files_of(folder: Path) -> list[tuple[Path, int | None]]:
    """Returns the images of a folder or of its sub-folders, with their labels."""
    loose = _images_in(folder)
    classes = [path for path in _folders_in(folder) if _images_in(path)]
    if loose and classes:
        raise DataError(
            f"{folder} holds {loose[0].name} beside the sub-folder {classes[0].name}, whose"
            " name is a label: move the images into sub-folders, or give one of these."
        )
    if loose:
        return [(path, None) for path in loose]
    if classes:
        return [
            (path, label) for label, part in enumerate(classes) for path in _images_in(part)
        ]
    deeper = [part for part in _folders_in(folder) if any(map(_images_in, _folders_in(part)))]
    if deeper:
        raise DataError(f"{folder} holds folders of folders: give one of them, {deeper[0]}.")
    raise DataError(
        f"{folder} holds no images: they end in {', '.join(IMAGES[:3])} and the like."
    )


def _folders_in(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _images_in(folder: Path) -> list[Path]:
    """Returns the images of a folder; a broken link counts, so that it is not overlooked."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGES
        and not path.is_dir()
        and not path.name.startswith(".")
    )


def _pixels(path: Path, size: Sequence[int] | None) -> np.ndarray:
    """Returns an image of shape ``(height, width)`` or ``(height, width, 3)``, in [0, 1]."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image, largest = _converted(ImageOps.exif_transpose(opened), path)
            if size is not None:
                height, width = size
                image = image.resize((width, height), Image.Resampling.LANCZOS)
            pixels: np.ndarray = np.asarray(image, np.float32) / np.float32(largest)
            return pixels.clip(0, 1)  # scaling overshoots at edges
    except DataError:
        raise
    except Exception as error:  # decoders raise errors of their own
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} cannot be read ({reason}): repair it, or take it out of the folder."
        ) from error


def _converted(image: "Image", path: Path) -> tuple["Image", int]:
    """Returns an image in grey or in colour, and the value of white."""
    from PIL import Image

    if image.mode in _DEEP:
        values = np.asarray(image).astype(np.float32)
        largest = 1 if image.mode == "F" else 2**16 - 1
        if not (values.min() >= 0 and values.max() <= largest):
            raise DataError(
                f"{path} has values from {values.min():g} to {values.max():g}, and its white is"
                " not known: save it with 8 or 16 bits, or the images as one array, .npy."
            )
        return Image.fromarray(values), largest
    grey = image.mode in _GREY
    if "transparency" in image.info or {"A", "a"} & set(image.getbands()):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("L" if grey else "RGB"), 255
