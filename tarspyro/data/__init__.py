"""Data sets, and data in the form that ``fit`` takes.

- ``containers``: ``Split``, ``Dataset`` and ``Regression``, the parts of a data set.
- ``images``: the digits of scikit-learn, MNIST, Frey Face.
- ``regression``: tables of the UCI repository.
- ``music``: polyphonic music as piano rolls.
- ``captions``: MNIST with captions.
- ``gaussians``: mixtures of Gaussians in the plane.
- ``sprites``: images of shapes with known factors.
- ``sequences``: sequences of different lengths, and their batches.
- ``labels``: few labels among many rows.
- ``masks``: masks of missing pixels, and the quadrants of images.
- ``modalities``: the modalities among a program's arguments.
- ``parts``, ``rows``, ``dense``: the parts of any container, rows that are read when they are
  used, and all rows in one tensor.
- ``files``, ``matlab``: downloads with a checksum, and MATLAB files.
"""

__all__ = [
    "CaptionedDataset",
    "CaptionedImages",
    "Column",
    "DataError",
    "Dataset",
    "Modes",
    "PartlyLabelled",
    "Regression",
    "SequenceBatches",
    "SequenceDataset",
    "Sequences",
    "Split",
    "Sprites",
    "Stream",
    "Table",
    "captioned_mnist",
    "digits",
    "frey_face",
    "grid",
    "join_quadrants",
    "labelled_subset",
    "load",
    "lower_half",
    "mnist",
    "off_grid",
    "polyphonic_music",
    "quadrants",
    "random_pixels",
    "read_table",
    "ring",
    "sprites",
    "stored",
    "uci",
]

from tarspyro.data.captions import CaptionedDataset, CaptionedImages, captioned_mnist
from tarspyro.data.containers import Dataset, Regression, Split
from tarspyro.data.files import DataError
from tarspyro.data.gaussians import Modes, grid, ring
from tarspyro.data.images import digits, frey_face, mnist
from tarspyro.data.labels import PartlyLabelled, labelled_subset
from tarspyro.data.loading import load
from tarspyro.data.masks import (
    join_quadrants,
    lower_half,
    off_grid,
    quadrants,
    random_pixels,
)
from tarspyro.data.music import polyphonic_music
from tarspyro.data.regression import uci
from tarspyro.data.rows import stored
from tarspyro.data.sequences import SequenceBatches, SequenceDataset, Sequences
from tarspyro.data.sprite_images import Sprites, sprites
from tarspyro.data.streams import Stream
from tarspyro.data.tables import Column, Table, read_table
