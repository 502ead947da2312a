"""Data files: where they are looked for, and downloads from a server on this machine."""

import gzip
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import requests

from tarspyro import data
from tarspyro.data import DataError, files, images
from tarspyro.data.files import fetch

from ..damages import everything, one_sentence

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Further tries come at once, and only servers on this machine are asked."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def offline(monkeypatch):
    """Nothing can be reached; the list tells what would have been asked for."""
    urls = []

    def refuse(url, **options):
        urls.append(url)
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setattr(requests, "get", refuse)
    return urls


class Server:
    """A server that answers with the contents of its paths, after some failures."""

    def __init__(self):
        self.contents = {}
        self.requested = []
        self.failures = 0
        self.headers = {}
        self.endless = False
        self.cut = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def answer(self, handler):
        path = handler.path.lstrip("/")
        self.requested.append(path)
        if self.failures:
            self.failures -= 1
            handler.send_error(503)
            return
        if path not in self.contents and not self.endless:
            handler.send_error(404)
            return
        handler.send_response(200)
        content = self.contents.get(path, b"")
        headers = {"Content-Length": str(len(content)), **self.headers}
        for name, value in headers.items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        try:
            handler.wfile.write(content[: len(content) - self.cut])
            while self.endless:
                handler.wfile.write(bytes(1 << 16))
        except OSError:  # the client has had enough
            pass

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def get(server, path, decode=gzip.decompress, sha256=SHA256):
    return fetch(path, server.url + path.name, sha256, decode)


# --- where files are


@pytest.mark.parametrize("load", [data.mnist, data.frey_face])
def test_a_missing_file_without_a_network_is_one_sentence(
    load, tmp_path, monkeypatch, offline
):
    monkeypatch.setenv("TARSPYRO_DATA", str(tmp_path))
    with pytest.raises(DataError) as error:
        load()
    text = one_sentence(error)
    assert str(tmp_path / load.__name__) in text
    assert "TARSPYRO_DATA" in text and "no network in tests" in text
    assert len(set(offline)) == 1 and offline[0].startswith("https://")
    assert list(tmp_path.iterdir()) == []


def test_the_argument_comes_before_the_variable_and_the_variable_before_the_cache(
    tmp_path, monkeypatch, offline
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TARSPYRO_DATA", str(tmp_path / "variable"))
    with pytest.raises(DataError, match="argument"):
        data.mnist(folder=tmp_path / "argument")
    with pytest.raises(DataError, match="variable"):
        data.mnist()
    monkeypatch.delenv("TARSPYRO_DATA")
    cache = tmp_path / "home" / ".cache" / "tarspyro" / "mnist"
    with pytest.raises(DataError, match=str(cache / TRAIN_IMAGES)):
        data.mnist()
    with pytest.raises(DataError, match=str(tmp_path / "home" / "data")):
        data.mnist(folder="~/data")
    with pytest.raises(TypeError, match="folder must be .* got 3"):
        data.mnist(folder=3)


def test_a_file_in_the_folder_is_not_downloaded(tmp_path, offline):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(CONTENT, 1))
    assert fetch(path, "https://example.org/file.gz", SHA256, gzip.decompress) == CONTENT
    assert offline == []


def test_a_file_without_an_address(tmp_path):
    path = tmp_path / "table.txt"
    with pytest.raises(DataError, match="is missing: put the file there") as error:
        fetch(path, None, SHA256, bytes)
    assert str(path) in one_sentence(error) and "TARSPYRO_DATA" in str(error.value)
    path.write_bytes(b"other")
    with pytest.raises(DataError, match="SHA-256.*put the right file there") as error:
        fetch(path, None, SHA256, bytes)
    one_sentence(error)


# --- downloads


def test_a_download_is_kept(tmp_path, server):
    server.contents["file.gz"] = gzip.compress(CONTENT)
    path = tmp_path / "new" / "folder" / "file.gz"
    assert get(server, path) == CONTENT
    assert everything(path.parent) == {"file.gz": server.contents["file.gz"]}  # as it came
    assert path.stat().st_mode & 0o777 == 0o644  # others may read a folder that is shared
    assert get(server, path) == CONTENT
    assert server.requested == ["file.gz"]  # once


def test_mnist_is_downloaded(tmp_path, server, monkeypatch):
    """Four tiny files in the place of MNIST's."""
    rng = np.random.default_rng(0)
    arrays = {
        TRAIN_IMAGES: rng.integers(0, 256, (60, 28, 28)),
        "train-labels-idx1-ubyte.gz": rng.integers(0, 10, 60),
        "t10k-images-idx3-ubyte.gz": rng.integers(0, 256, (10, 28, 28)),
        "t10k-labels-idx1-ubyte.gz": rng.integers(0, 10, 10),
    }
    checksums = {}
    for name, array in arrays.items():
        header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
        content = header + array.astype(np.uint8).tobytes()
        checksums[name] = hashlib.sha256(content).hexdigest()
        server.contents[name] = gzip.compress(content)
    monkeypatch.setattr(images, "MNIST_FILES", checksums)
    monkeypatch.setattr(images, "MNIST_URL", server.url)
    dataset = data.mnist(validation=20, folder=tmp_path)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [
        40,
        20,
        10,
    ]
    assert dataset.train.y.tolist() == arrays["train-labels-idx1-ubyte.gz"][:40].tolist()
    pixels = (dataset.test.x * 255).round().int().numpy().reshape(10, 28, 28)
    assert np.array_equal(pixels, arrays["t10k-images-idx3-ubyte.gz"])
    assert everything(tmp_path / "mnist") == server.contents


@pytest.mark.parametrize("failures, works", [(1, True), (2, True), (3, False)])
def test_a_server_that_fails_is_asked_again(failures, works, tmp_path, server):
    server.contents["file.gz"] = gzip.compress(CONTENT)
    server.failures = failures
    path = tmp_path / "file.gz"
    if works:
        assert get(server, path) == CONTENT
    else:
        with pytest.raises(DataError, match="503") as error:
            get(server, path)
        assert str(path) in one_sentence(error) and server.url in str(error.value)
        assert everything(tmp_path) == {}
    assert len(server.requested) == min(failures + 1, 3)


@pytest.mark.parametrize("how", ["cut off", "missing", "no such machine"])
def test_a_connection_that_breaks_is_one_sentence(how, tmp_path, server):
    path = tmp_path / "file.gz"
    if how == "cut off":
        server.contents["file.gz"] = gzip.compress(CONTENT)
        server.cut = 9
    if how == "no such machine":
        server.close()
    with pytest.raises(DataError, match="cannot be downloaded from") as error:
        get(server, path)
    text = one_sentence(error)
    assert str(path) in text and server.url in text and "TARSPYRO_DATA" in text
    assert everything(tmp_path) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"<html>not found</html>",
        gzip.compress(b"another file"),
        gzip.compress(CONTENT)[:-9],
    ],
    ids=["page", "another", "truncated"],
)
def test_a_bad_download_is_not_kept(content, tmp_path, server):
    server.contents["file.gz"] = content
    path = tmp_path / "file.gz"
    with pytest.raises(DataError) as error:
        get(server, path)
    text = one_sentence(error)
    assert server.url in text and str(path) in text
    assert "delete" not in text  # there is nothing to delete
    assert everything(tmp_path) == {}


def test_a_server_that_packs_on_the_way_is_not_asked_to(tmp_path, server):
    """A .gz file that comes with ``Content-Encoding: gzip`` would be unpacked on arrival."""
    seen = []
    answer = server.answer

    def note(handler):
        seen.append(handler.headers["Accept-Encoding"])
        answer(handler)

    server.answer = note
    server.contents["file.gz"] = gzip.compress(CONTENT)
    get(server, tmp_path / "file.gz")
    assert seen == ["identity"]


@pytest.mark.parametrize("told", [None, "10000000000000", "-5", "many"])
def test_a_download_without_end_is_stopped(told, tmp_path, server, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1 << 20)
    server.endless = True
    server.headers = {"Content-Length": told}
    with pytest.raises(DataError, match="does not end after 1 MB") as error:
        get(server, tmp_path / "file.gz")
    one_sentence(error)
    assert everything(tmp_path) == {}
    assert server.requested == ["file.gz"]  # once


def test_a_download_is_moved_into_place_when_it_is_whole(tmp_path, server, monkeypatch):
    """A crash while writing must not leave half a file under the name of the whole one."""
    server.contents["file.gz"] = gzip.compress(CONTENT)

    def full(path, content):
        with open(path, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    path = tmp_path / "file.gz"
    monkeypatch.setattr(files.Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left on device") as error:
        get(server, path)
    assert str(path) in one_sentence(error) and "TARSPYRO_DATA" in str(error.value)
    assert everything(tmp_path) == {}


def test_a_folder_that_cannot_be_written(tmp_path, server):
    server.contents["file.gz"] = gzip.compress(CONTENT)
    (tmp_path / "data").write_bytes(b"a file, no folder")
    with pytest.raises(DataError, match="TARSPYRO_DATA") as error:
        get(server, tmp_path / "data" / "file.gz")
    one_sentence(error)


def test_a_link_in_the_place_of_a_file_is_not_written_through(tmp_path, server):
    server.contents["file.gz"] = gzip.compress(CONTENT)
    outside = tmp_path / "outside"
    path = tmp_path / "data" / "file.gz"
    path.parent.mkdir()
    path.symlink_to(outside)  # to nothing yet
    assert get(server, path) == CONTENT
    assert not outside.exists() and not path.is_symlink()
    path.unlink()
    outside.write_bytes(b"mine")
    path.symlink_to(outside)
    with pytest.raises(DataError, match="delete it"):
        get(server, path)
    assert outside.read_bytes() == b"mine"


def test_a_pipe_in_the_place_of_data_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "Own.mat")
    with pytest.raises(DataError, match="not a regular file"):
        data.polyphonic_music(tmp_path / "Own.mat")


def test_importing_data_imports_nothing_that_only_downloads_and_decoders_need():
    code = "import sys, tarspyro.data; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"sklearn", "scipy", "pooch", "requests"} & set(done.stdout.split())
