"""The page of the explorer, read as a browser would read its data."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, data, evaluate, guides, models, plot
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP


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
    with pytest.raises(ValueError, match="image_shape must be that of 64 numbers"):
        plot.explore(p, q, x, image_shape=(5, 5))


STUBS = """
const noop = () => {};
const ink = new Proxy({}, { get: () => noop, set: () => true });
const element = text => ({ textContent: text, getContext: () => ink, addEventListener: noop,
  append: noop, clientWidth: 100, value: 0 });
const known = {};
globalThis.document = {
  getElementById: name => known[name] ??= element(name === "content" ? CONTENT : ""),
  createElement: () => element(""), querySelectorAll: () => [], body: {},
};
globalThis.window = { addEventListener: noop };
globalThis.getComputedStyle = () => ({ color: "black" });
globalThis.ImageData = class { constructor(w, h) { this.data = new Uint8Array(4 * w * h); } };
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_decodes_between_the_points_of_the_grid(tmp_path):
    p, q = pair_of(2)
    found = plot.explore(p, q, data.digits().test[:50])
    content = content_of(found.page)
    script = found.page.rpartition("<script>")[2].partition("</script>")[0]
    program = tmp_path / "page.js"
    stubs = STUBS.replace("CONTENT", json.dumps(json.dumps(content)))
    half = 0.5 / (content["side"] - 1)  # between the first two columns of the lowest row
    end = f"move({half}, 0); console.log(Array.from(decode()).join(' '));"
    program.write_text(stubs + script.replace('"use strict";', "") + end)
    run = subprocess.run(["node", program], check=True, capture_output=True, text=True)
    grid = images(content["grid"]).astype(float)
    assert np.allclose(np.array(run.stdout.split(), float), (grid[0] + grid[1]) / 2, atol=1e-3)
