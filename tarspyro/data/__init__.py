"""Data sets: bundled, found in a local folder, or downloaded with a checksum."""

__all__ = [
    "DataError",
    "Dataset",
    "Modes",
    "PartlyLabelled",
    "Regression",
    "SequenceBatches",
    "SequenceDataset",
    "Sequences",
    "Split",
    "digits",
    "frey_face",
    "grid",
    "join_quadrants",
    "labelled_subset",
    "lower_half",
    "mnist",
    "off_grid",
    "polyphonic_music",
    "quadrants",
    "random_pixels",
    "ring",
    "uci",
]

from tarspyro.data.datasets import (
    Dataset,
    Regression,
    Split,
    digits,
    frey_face,
    join_quadrants,
    mnist,
    quadrants,
    uci,
)
from tarspyro.data.files import DataError
from tarspyro.data.gaussians import Modes, grid, ring
from tarspyro.data.labels import PartlyLabelled, labelled_subset
from tarspyro.data.masks import lower_half, off_grid, random_pixels
from tarspyro.data.music import polyphonic_music
from tarspyro.data.sequences import SequenceBatches, SequenceDataset, Sequences
