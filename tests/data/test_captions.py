"""MNIST with captions: what a caption says is what the image shows."""

from collections import defaultdict

import pyro
import pyro.distributions as dist
import pytest
import torch

from tarspyro import data, evaluate
from tarspyro.data import captions as module

DIGITS = "zero one two three four five six seven eight nine".split()
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


@pytest.fixture
def plain(monkeypatch):
    """MNIST with a square for each digit, whose grey tells the digit; smaller for testing."""

    def squares(**_):
        parts = []
        for margin in (4, 6):
            y = torch.arange(50) % 10
            x = torch.zeros(50, 1, 28, 28)
            x[:, :, margin:-margin, margin:-margin] = (y[:, None, None, None] + 1) / 20
            parts.append(data.Split(x, y))
        return data.Dataset("squares", *parts, (1, 28, 28))

    monkeypatch.setattr(module, "mnist", squares)


def seen(image):
    """The digits in an image with the centres of their squares: (digit, row, column)."""
    found = []
    for grey in image.unique().tolist()[1:]:
        rows, columns = (image[0] == grey).nonzero().double().T
        found.append((round(grey * 20) - 1, rows, columns))
    return found


def test_captions_say_what_images_show(plain):
    dataset = data.captioned_mnist(num_train=400, num_test=100)
    kinds = defaultdict(int)
    for part, area in ((dataset.train, 400), (dataset.test, 256), (dataset.withheld, 256)):
        assert part.x.shape[1:] == (1, 60, 60) and part.lengths.unique().tolist() == [12]
        for n, caption in enumerate(dataset.decode(part.y)):
            words = caption.split()
            place = [word for word in words if word in OPPOSITE]
            digits = [DIGITS.index(word) for word in words if word in DIGITS]
            kinds[(*place, len(digits))] += 1
            # no overlap: each square is whole
            assert (part.x[n] > 0).sum() == area * len(digits)
            shown = seen(part.x[n])
            assert {digit for digit, _, _ in shown} == set(digits)
            if len(digits) == 1:
                ((_, rows, columns),) = shown
                assert (rows.mean() < 30) == ("top" in place)
                assert (columns.mean() < 30) == ("left" in place)
                name = " ".join(place)
                assert part.digits[n].tolist() == [digits[0], 10]
            else:
                name = {"left": "left and right", "top": "top and bottom"}.get(
                    place[0], f"{OPPOSITE[place[0]]} and {place[0]}"
                )
                first = digits if place[0] in ("left", "top") else digits[::-1]
                assert part.digits[n].tolist() == first
                if first[0] != first[1]:
                    across = place[0] in ("left", "right")
                    order = sorted(shown, key=lambda d: d[2 if across else 1].mean())
                    assert [digit for digit, _, _ in order] == first
            assert part.layouts[part.layout[n]] == name
    assert len(kinds) == 8 and min(kinds.values()) > 30


def test_withheld_digits_are_in_no_other_caption(plain):
    """In each place of each kind of caption, training lacks one digit."""
    dataset = data.captioned_mnist(num_train=4000, num_test=500, seed=3)
    trained = places_of(dataset, dataset.train)
    assert len(trained) == 2 * 4 + 4
    assert {len(digits) for digits in trained.values()} == {9}
    tested = places_of(dataset, dataset.test)
    assert all(tested[place] <= digits for place, digits in trained.items())
    for caption in dataset.withheld.y:
        (kind, digits) = parsed(dataset, caption)
        assert any(digit not in trained[kind, k] for k, digit in enumerate(digits))


def places_of(dataset, part):
    found = defaultdict(set)
    for caption in part.y:
        kind, digits = parsed(dataset, caption)
        for k, digit in enumerate(digits):
            found[kind, k].add(digit)
    return found


def parsed(dataset, caption):
    (text,) = dataset.decode(caption[None])
    digits = [word for word in text.split() if word in DIGITS]
    return " ".join(word for word in text.split() if word not in DIGITS), digits


def test_the_same_for_the_same_seed(plain):
    state = torch.get_rng_state()
    one, same, other = (
        data.captioned_mnist(num_train=50, num_test=20, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("train", "test", "withheld"):
        first, second = vars(getattr(one, name)), vars(getattr(same, name))
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert not torch.equal(getattr(one, name).x, getattr(other, name).x)


def test_words_and_numbers(plain):
    dataset = data.captioned_mnist(num_train=3, num_test=2)
    assert len(dataset.vocabulary) == 22
    text = "The digit three is at the bottom of the digit one."
    found = dataset.encode(text, "the digit")
    assert found.lengths.tolist() == [12, 2]
    plain_text = "the digit three is at the bottom of the digit one ."
    assert dataset.decode(found.x[:1]) == [plain_text]
    with pytest.raises(ValueError, match="the word 'cat', which is not in the vocabulary"):
        dataset.encode("the cat")
    some = dataset.train[:2]
    assert len(some) == 2 and repr(some) == "CaptionedImages: 2 of shape (1, 60, 60), 12 words"
    with pytest.raises(ValueError, match="num_train must be at least 1, got 0"):
        data.captioned_mnist(num_train=0)


def test_programs_take_the_parts_that_they_name(plain):
    dataset = data.captioned_mnist(num_train=3, num_test=5)
    seen = []

    def model(x, y, lengths):
        seen.append((x, y, lengths))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z[..., None, None, None].expand(*z.shape, 1, 60, 60)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(3), obs=x)

    def guide(x, y, lengths):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert evaluate.elbo(model, guide, dataset.test).elbo.shape == (5,)
    part = dataset.test
    for given, own in zip(seen[-1], (part.x, part.y, part.lengths), strict=True):
        assert torch.equal(given, own)
