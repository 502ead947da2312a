"""Sequences, their batches, polyphonic music, and piano rolls."""

import numpy as np
import pytest
import torch
from scipy.io import savemat

from tarspyro import data, plot
from tarspyro.data import DataError, Sequences, polyphonic_music
from tarspyro.sources import as_arguments


def program(x, lengths=None):
    pass


def ragged(*lengths):
    return Sequences.padded([torch.rand(length, 3) for length in lengths])


def test_padding():
    parts = [np.ones((2, 3)), np.full((4, 3), 2.0)]
    sequences = Sequences.padded(parts)
    assert (
        sequences.x.dtype == torch.float32
        and sequences.lengths.tolist() == [2, 4]
        and sequences.steps == 6
    )
    assert sequences.x[0].tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2
    torch.testing.assert_close(sequences.mean(), torch.full((3,), (2 * 1 + 4 * 2) / 6))
    assert sequences[:1].x.shape == (1, 2, 3) and sequences[torch.tensor([1])].x.shape == (
        1,
        4,
        3,
    )
    x, lengths = as_arguments(sequences, program)
    assert x is sequences.x and lengths is sequences.lengths
    assert len(as_arguments(sequences, lambda x: None)) == 1


def test_a_single_sequence_has_its_own_steps():
    parts = [torch.randn(length, 2) for length in (3, 1, 4)]
    sequences = Sequences.padded(parts)
    for found, part in zip(sequences, parts, strict=True):
        torch.testing.assert_close(found, part)
    torch.testing.assert_close(sequences[-1], parts[-1])


def test_what_padding_refuses():
    with pytest.raises(ValueError, match="sequences is empty"):
        Sequences.padded([])
    with pytest.raises(
        ValueError, match=r"lengths be N integers, got \(2, 3\) and torch.float32"
    ):
        Sequences(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="lengths must be from 1 to 3, got 1 to 4"):
        Sequences(torch.zeros(2, 3), torch.tensor([1, 4]))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("multiple_of", [1, 4])
def test_batches_hold_every_sequence_once(shuffle, multiple_of):
    sequences = ragged(*[1 + n % 7 for n in range(23)])
    batches = sequences.batches(5, shuffle=shuffle, multiple_of=multiple_of)
    assert len(batches) == 5
    found = []
    for x, lengths in batches:
        longest = int(lengths.max())
        assert x.shape[1] % multiple_of == 0 and longest <= x.shape[1] < longest + multiple_of
        assert lengths.max() - lengths.min() <= 2  # of similar lengths
        found += [part[:length] for part, length in zip(x, lengths, strict=True)]
    key = lambda part: (len(part), part.flatten().tolist())  # noqa: E731
    expected = sorted(
        (x[:n] for x, n in zip(sequences.x, sequences.lengths, strict=True)), key=key
    )
    assert all(
        torch.equal(*both) for both in zip(sorted(found, key=key), expected, strict=True)
    )


def test_the_order_of_batches_is_that_of_the_random_state():
    batches = ragged(*range(1, 13)).batches(3)
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        orders.append([lengths.tolist() for _, lengths in batches])
    assert orders[0] == orders[1] != orders[2]
    for how in ({"batch_size": 0}, {"batch_size": 1, "multiple_of": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            ragged(2).batches(**how)


@pytest.fixture
def music_folder(mnist_folder):
    if not (mnist_folder / "polyphonic_music" / "JSB_Chorales.mat").exists():
        pytest.skip("TARSPYRO_DATA does not name a folder with polyphonic_music/")
    return mnist_folder


@pytest.mark.parametrize(
    ("name", "counts", "steps"),
    [("jsb_chorales", (229, 76, 77), 4725), ("nottingham", (694, 173, 170), 44463)],
)
def test_polyphonic_music(music_folder, name, counts, steps):
    music = polyphonic_music(name, folder=music_folder)
    assert (
        tuple(map(len, (music.train, music.validation, music.test))) == counts
        and music.name == name
    )
    assert music.test.steps == steps and music.train.x.shape[2] == 88
    for part in (music.train, music.validation, music.test):
        assert ((part.x == 0) | (part.x == 1)).all() and part.x.any()
        assert (part.x.sum((1, 2)) > 0).all()


def test_a_constant_note_by_note_is_the_floor(music_folder):
    """Independent notes with the means of the training part: 11.06 nats a step on the test
    part.
    """
    music = polyphonic_music("jsb_chorales", folder=music_folder)
    mean = music.train.mean().clamp(1e-4, 1 - 1e-4)
    inside = torch.arange(music.test.x.shape[1]) < music.test.lengths.unsqueeze(1)
    log_p = torch.distributions.Bernoulli(mean).log_prob(music.test.x[inside]).sum()
    assert log_p / music.test.steps == pytest.approx(-11.06, abs=0.02)


def test_any_file_of_the_form(tmp_path):
    def cells(*lengths):
        found = np.empty((1, len(lengths)), object)
        for index, length in enumerate(lengths):
            found[0, index] = np.eye(88)[:length]
        return found

    path = tmp_path / "Own.mat"
    savemat(path, {"traindata": cells(3, 2), "validdata": cells(4), "testdata": cells(1)})
    music = polyphonic_music(path)
    assert music.name == "Own" and music.train.lengths.tolist() == [3, 2]
    assert torch.equal(music.train.x[0], torch.eye(88)[:3])
    savemat(path, {"traindata": cells(3, 2)})
    with pytest.raises(
        DataError, match="does not hold cell arrays traindata, validdata, testdata"
    ):
        polyphonic_music(path)
    path.write_bytes(b"no such file")
    with pytest.raises(DataError, match="does not hold"):
        polyphonic_music(path)
    with pytest.raises(DataError, match="cannot be read"):
        polyphonic_music(tmp_path / "none.mat")


def test_what_music_refuses(tmp_path):
    with pytest.raises(
        ValueError,
        match="name must be one of jsb_chorales, nottingham, or the path of a .mat file",
    ):
        polyphonic_music("jsb")
    with pytest.raises(DataError, match="JSB_Chorales.mat is missing"):
        polyphonic_music("jsb_chorales", folder=tmp_path)
    (tmp_path / "polyphonic_music").mkdir()
    (tmp_path / "polyphonic_music" / "JSB_Chorales.mat").write_bytes(b"other")
    with pytest.raises(DataError, match="does not hold the expected data"):
        polyphonic_music("jsb_chorales", folder=tmp_path)


def test_rows_of_images_are_sequences():
    digits = data.digits().reshape(8, 8)
    assert digits.train.x.shape == (1437, 8, 8)
    assert as_arguments(digits.train, program)[0] is digits.train.x


def test_piano_roll():
    roll = torch.zeros(10, 88)
    roll[:, 60 - 21] = 1.0
    figure = plot.piano_roll(roll, known=4, title="one note")
    figure.canvas.draw()
    ax = figure.axes[0]
    image = ax.images[0]
    assert image.get_array().shape == (88, 10) and image.get_array()[60 - 21].min() == 1
    low, high = ax.get_ylim()
    assert low < 60 < high and high - low < 20
    assert "C4" in [label.get_text() for label in ax.get_yticklabels()]
    assert ax.lines[0].get_xdata()[0] == 3.5 and ax.get_title() == "one note"
    axes = figure.subplots(1, 2)
    assert plot.piano_roll(np.zeros((3, 88)), ax=axes[0]) is figure
    with pytest.raises(
        ValueError, match=r"x must be one piece of shape \(steps, notes\), got \(1, 10, 88\)"
    ):
        plot.piano_roll(roll.unsqueeze(0))


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray], ids=["tensors", "arrays"])
def test_a_list_of_sequences_is_padded_or_refused_in_a_sentence(kind):
    """It is padded for a program that takes lengths, whatever the number of sequences."""

    def of_rows(x):
        pass

    def of_parts(x, y):
        pass

    sequences = [kind(np.full((3 + i % 5, 3), i, np.float32)) for i in range(200)]
    wanted = Sequences.padded(sequences)
    x, lengths = as_arguments(sequences, program)
    assert torch.equal(x, wanted.x) and torch.equal(lengths, wanted.lengths)

    with pytest.raises(
        ValueError,
        match="data is a list of 200 tensors that differ in length, from 3 to 7 rows, and"
        " .*of_rows takes no lengths",
    ):
        as_arguments(sequences, of_rows)
    with pytest.raises(
        ValueError,
        match=r"parts of data differ in length, got shapes \(3, 3\), \(4, 3\): .*"
        r"data\.Sequences\.padded\(sequences\)",
    ):
        as_arguments(tuple(sequences[:2]), of_parts)
