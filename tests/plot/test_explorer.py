"""The page of the explorer: its data, and what a browser shows."""

import base64
import json
import re

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tarspyro import Conditional, data, evaluate, guides, models, plot
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP
from tests.browser import Browser


def pair_of(units):
    torch.manual_seed(0)
    likelihood = Conditional(dist.Bernoulli, MLP(units, [8]), 64)
    p = models.VAE(default_prior(dist.Normal, units), likelihood)
    return p, guides.VAE(Conditional(dist.Normal, MLP(64, [8]), units))


def content_of(page):
    (text,) = re.findall(r'<script id="content" type="application/json">(.*?)</script>', page)
    return json.loads(text)


def images(text):
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 64)


def test_the_page_holds_codes_and_decoded_images(tmp_path):
    p, q = pair_of(2)
    test = data.digits().test[:200]
    found = plot.explore(p, q, test, tmp_path / "explorer.html", title="<digits>")
    page = (tmp_path / "explorer.html").read_text()
    assert page == found.page and "<title>&lt;digits&gt;</title>" in page
    assert "http" not in page and "src=" not in page  # no network
    assert found.part in page
    content = content_of(page)
    assert content["shape"] == [8, 8, 1] and content["strips"] == []
    assert content["labels"] == test.y.tolist()

    codes = np.frombuffer(base64.b64decode(content["codes"]["bytes"]), "<u2").reshape(200, 2)
    low = np.array(content["low"])
    high = np.array(content["high"])
    embedded = evaluate.embed(q, test.x).numpy()
    inside = ((embedded >= low) & (embedded <= high)).all(1)
    assert inside.mean() > 0.9
    error = np.abs(low + codes / 65535 * (high - low) - embedded)[inside]
    assert error.max() < 1e-3 * (high - low).max()

    across, up = content["axes"]
    corner = torch.zeros(1, 2)
    corner[0, across] = high[across]  # the last column of the lowest row
    corner[0, up] = low[up]
    decoded = evaluate.decode(p, corner)[0].numpy()
    assert np.abs(images(content["grid"])[content["side"] - 1] / 255 - decoded).max() < 3e-3
    assert np.abs(images(content["data"])[5] / 255 - test.x[5].flatten().numpy()).max() < 3e-3
    assert found._repr_html_().startswith("<iframe srcdoc=")


def test_more_units_have_sliders():
    p, q = pair_of(3)
    content = content_of(plot.explore(p, q, data.digits().test.x[:50]).page)
    assert len(content["strips"]) == 3
    assert images(content["strips"][0]).shape == (content["steps"], 64)
    assert len(set(content["axes"])) == 2


def test_labels_and_shapes_that_do_not_fit():
    p, q = pair_of(2)
    x = data.digits().test.x[:20]
    with pytest.raises(ValueError, match="labels must have one number for each of 20"):
        plot.explore(p, q, x, labels=[1, 2])
    for labels in ([0.5] * 20, [float("nan")] * 20):
        with pytest.raises(ValueError, match="labels must be whole numbers"):
            plot.explore(p, q, x, labels=labels)
    with pytest.raises(ValueError, match="image_shape must be that of 64 numbers"):
        plot.explore(p, q, x, image_shape=(5, 5))
    with torch.no_grad():
        q.posterior.heads["loc"].bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="codes must be finite"):
        plot.explore(p, q, x)


def test_ten_thousand_codes_of_mnist_take_less_than_three_megabytes():
    units = 20
    p = models.VAE(
        default_prior(dist.Normal, units), Conditional(dist.Bernoulli, MLP(units, []), 784)
    )
    q = guides.VAE(Conditional(dist.Normal, MLP(784, []), units))
    found = plot.explore(p, q, torch.rand(10_000, 784), labels=torch.arange(10_000) % 10)
    assert content_of(found.page)["codes"]["rows"] == 10_000
    assert len(found.page.encode()) < 3e6


def test_large_pictures_are_fewer():
    p = models.VAE(
        default_prior(dist.Normal, 8), Conditional(dist.Normal, MLP(8, []), 12288, scale=1.0)
    )
    q = guides.VAE(Conditional(dist.Normal, MLP(12288, []), 8))
    found = plot.explore(p, q, torch.rand(500, 12288), image_shape=(3, 64, 64))
    assert content_of(found.page)["shape"] == [64, 64, 3]
    assert len(found.page.encode()) < 4e6


def test_the_data_may_have_any_form_that_fit_takes():
    p, q = pair_of(2)
    x = data.digits().test.x[:20]
    labels = torch.arange(20) % 10
    expected = content_of(plot.explore(p, q, x, labels=labels, num_codes=9).page)
    pairs = TensorDataset(x, labels)
    for form in (list(x), [row.numpy() for row in x], pairs, DataLoader(pairs, batch_size=7)):
        found = plot.explore(p, q, form, labels=labels, num_codes=9)
        assert content_of(found.page) == expected


@pytest.mark.parametrize("shape", [(3, 5, 6), (5, 6, 3)])
def test_colours_before_or_after_the_pixels(shape):
    p = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Normal, MLP(2, []), shape, scale=1.0)
    )
    q = guides.VAE(Conditional(dist.Normal, nn.Sequential(nn.Flatten(), MLP(90, [])), 2))
    x = torch.rand(20, *shape)
    content = content_of(plot.explore(p, q, x).page)
    assert content["shape"] == [5, 6, 3]
    shown = np.frombuffer(base64.b64decode(content["data"]), np.uint8) / 255
    shown = shown.reshape(20, 5, 6, 3)
    expected = x if shape[-1] == 3 else x.permute(0, 2, 3, 1)
    assert np.abs(shown - expected.numpy()).max() < 3e-3


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A page with two units and one with three, with their models and contents."""
    folder = tmp_path_factory.mktemp("pages")
    test = data.digits().test[:200]
    made = {}
    for units in (2, 3):
        p, q = pair_of(units)
        with torch.no_grad():  # such that a decoded image changes over the map
            p.likelihood.heads["logits"].weight.mul_(20)
        found = plot.explore(p, q, test, folder / f"{units}.html")
        made[units] = (p, found.path, content_of(found.page))
    return made


def pixels(browser, name):
    shown = browser.evaluate(
        f"(c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data))"
        f"(document.getElementById('{name}'))"
    )
    return np.array(shown).reshape(-1, 4)[:, 0]


def box(browser):
    return browser.evaluate(
        "(r => [r.left, r.top, r.width, r.height])"
        "(document.getElementById('map').getBoundingClientRect())"
    )


def place(browser):
    """What the page says of the pointer, as numbers."""
    text = browser.evaluate("document.getElementById('place').textContent")
    return [float(number) for number in re.findall(r"= (-?[\d.]+)", text)]


def interpolated(content, x, y):
    """The image between the points of the grid, where x and y are from 0 to 1."""
    side = content["side"]
    grid = images(content["grid"]).astype(float).reshape(side, side, 64)
    column = min(int(x * (side - 1)), side - 2)
    row = min(int(y * (side - 1)), side - 2)
    a = x * (side - 1) - column
    b = y * (side - 1) - row
    below = (1 - a) * grid[row, column] + a * grid[row, column + 1]
    above = (1 - a) * grid[row + 1, column] + a * grid[row + 1, column + 1]
    return (1 - b) * below + b * above


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_the_pointer_decodes_its_place(browser, shown, width, dark):
    p, path, content = shown[2]
    browser.open(path, width=width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") == width  # no scrolling
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == dark
    left, top, across, down = box(browser)
    assert across == pytest.approx(down) and across > 0.4 * width
    low = np.array(content["low"])
    high = np.array(content["high"])
    for x, y in ((0.23, 0.71), (0.9, 0.1)):
        browser.pointer(left + x * across, top + (1 - y) * down)
        found = pixels(browser, "decoded")
        assert np.abs(found - interpolated(content, x, y)).max() <= 3
        z = torch.zeros(1, 2)
        for axis, share in zip(content["axes"], (x, y), strict=True):
            z[0, axis] = low[axis] + share * (high[axis] - low[axis])
        decoded = 255 * evaluate.decode(p, z)[0].numpy().ravel()
        assert np.abs(found - decoded).max() < 12  # the error of the interpolation
        assert np.allclose(place(browser), z[0, content["axes"]], atol=0.02)

        codes = np.frombuffer(base64.b64decode(content["codes"]["bytes"]), "<u2")
        codes = codes.reshape(-1, 2)[:, content["axes"]] / 65535
        nearest = ((codes - [x, y]) ** 2).sum(1).argmin()
        assert np.array_equal(pixels(browser, "nearest"), images(content["data"])[nearest])
        caption = browser.evaluate("document.getElementById('caption').textContent")
        assert caption == f"data point {nearest}, label {content['labels'][nearest]}"
    assert browser.errors == []


def test_the_keyboard_moves_and_lays_a_path_that_plays(browser, shown):
    browser.open(shown[2][1])
    browser.evaluate("document.getElementById('map').focus()")
    start = place(browser)
    for _ in range(5):
        browser.press("ArrowRight")
    moved = place(browser)
    assert moved[0] > start[0] and moved[1] == start[1]
    browser.press("ArrowUp", shift=True)
    assert place(browser)[1] > start[1]
    disabled = "document.getElementById('play').disabled"
    assert browser.evaluate(disabled) is True
    browser.press("Enter")
    browser.press("ArrowLeft", shift=True)
    browser.press("Enter")
    end = place(browser)
    assert browser.evaluate(disabled) is False
    browser.press(" ")
    playing = "document.getElementById('play').textContent"
    assert browser.evaluate(playing) == "Stop"
    wait = "new Promise(done => setTimeout(done, 200))"
    browser.evaluate(wait)
    between = place(browser)
    assert end[0] < between[0] < moved[0]
    for _ in range(20):
        if browser.evaluate(playing) != "Stop":
            break
        browser.evaluate(wait)
    assert place(browser) == end and browser.evaluate(playing) == "Play the path"
    browser.press("Backspace")
    assert browser.evaluate(disabled) is True
    assert browser.errors == []


def test_a_touch_lays_the_path_too(browser, shown):
    browser.open(shown[2][1], width=390, height=844)
    left, top, across, _ = box(browser)
    for x, y in ((0.2, 0.2), (0.8, 0.5)):
        browser.touch(left + x * across, top + y * across)
    assert browser.evaluate("path.length") == 2
    assert browser.evaluate("path[1][content.axes[0]]") == pytest.approx(0.8, abs=0.01)


def test_sliders_of_more_units_change_the_picture(browser, shown):
    _, path, content = shown[3]
    browser.open(path)
    (other,) = set(range(3)) - set(content["axes"])
    before = pixels(browser, "decoded").astype(float)
    browser.evaluate(
        f"(input => {{ input.value = 1; input.dispatchEvent(new Event('input')); }})"
        f"(document.querySelectorAll('#sliders input')[{other}])"
    )
    line = images(content["strips"][other]).astype(float)
    steps = content["steps"]
    share = (content["centre"][other] - content["low"][other]) / (
        content["high"][other] - content["low"][other]
    )
    first = int(share * (steps - 1))
    rest = share * (steps - 1) - first
    middle = (1 - rest) * line[first] + rest * line[first + 1]
    expected = (before + line[-1] - middle).clip(0, 255)
    assert np.abs(pixels(browser, "decoded") - expected).max() <= 2
    assert np.abs(line[-1] - middle).max() > 20  # the test has something to see
    assert browser.errors == []


def test_conditions_are_given_to_the_decoder():
    likelihood = Conditional(dist.Bernoulli, MLP([2, 3], [8]), 64)
    p = models.ConditionalVAE(default_prior(dist.Normal, 2), likelihood)
    q = guides.ConditionalVAE(Conditional(dist.Normal, MLP([64, 3], [8]), 2))
    parts = (torch.rand(20, 64), torch.eye(3)[torch.arange(20) % 3])
    grids = []
    for label in torch.eye(3)[:2]:
        content = content_of(plot.explore(p, q, parts, given={"y": label[None]}).page)
        grids.append(images(content["grid"]))
        z = torch.tensor([[content["low"][0], content["low"][1]]])
        decoded = evaluate.decode(p, z, given={"y": label[None]})[0].numpy()
        assert np.abs(grids[-1][0] / 255 - decoded).max() < 3e-3
    assert (grids[0] != grids[1]).any()
