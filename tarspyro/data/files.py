"""Files of data: where they are, and how they get there."""

__all__ = ["MOST", "DataError", "data_folder", "fetch", "read"]

import contextlib
import hashlib
import http.client
import os
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm

from tarspyro.arguments import format_value

MOST = 1 << 27  # bytes that a file may hold, packed or unpacked


class DataError(OSError):
    """A data file is missing, cannot be fetched, or is not what it should be."""


def data_folder(folder: str | Path | None) -> Path:
    """Returns the folder that is given, else the one that ``TARSPYRO_DATA`` names, else one in
    the user's cache.
    """
    if folder is None:
        folder = os.environ.get("TARSPYRO_DATA") or Path("~/.cache/tarspyro")
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(
            f"folder must be the path of the data folder, got {format_value(folder)}."
        )
    return Path(folder).expanduser()


def fetch(path: Path, url: str | None, sha256: str, decode: Callable[[bytes], bytes]) -> bytes:
    """Returns the decoded content of the file, downloaded first where it is missing; checks
    its SHA-256.

    Raises:
        DataError: If it is missing and cannot be downloaded, or has the wrong content.
    """
    downloaded = url is not None and not path.exists()
    if url is None and not path.exists():
        raise DataError(
            f"{path} is missing: put the file there, or name the folder that holds it in"
            " TARSPYRO_DATA."
        )
    if url is not None and downloaded:
        encoded, source, advice = (
            _download(url, path),
            url,
            f"try again, or put the right file at {path}",
        )
    else:
        advice = "delete it to download it again" if url else "put the right file there"
        encoded, source = read(path), str(path)
    try:
        content = decode(encoded)
    except Exception as error:  # decoders raise many kinds on bytes that are none of theirs
        reason = " ".join(str(error).split())
        raise DataError(f"{source} cannot be decoded ({reason}): {advice}.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(
            f"{source} does not hold the expected data (its SHA-256 differs): {advice}."
        )
    if downloaded:
        _write(path, encoded)
    return content


def read(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
        DataError: If it cannot be read, or is none.
    """
    if path.exists() and not path.is_file():
        raise DataError(
            f"{path} cannot be read (it is no file)."
        )  # reading a device may never end
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def _download(url: str, path: Path) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            told = str(response.headers.get("Content-Length", ""))
            size = int(told) if told.isdecimal() else None
            with tqdm(total=size, unit="B", unit_scale=True, desc=path.name) as bar:
                pieces: list[bytes] = []
                while piece := response.read(1 << 16):
                    pieces.append(piece)
                    bar.update(len(piece))
                    if bar.n > MOST:
                        raise DataError(
                            f"{url} does not end after {MOST >> 20} MB, more than any data set"
                            " has."
                        )
        return b"".join(pieces)
    except DataError:
        raise
    except (OSError, http.client.HTTPException) as error:  # a URLError is an OSError
        raise DataError(
            f"{path} is missing and {url} cannot be reached ({error}): put the file there, "
            "or name the folder that holds it in TARSPYRO_DATA."
        ) from error


def _write(path: Path, content: bytes) -> None:
    # Under a name of this process alone, so that two that download at once do not write into
    # one file.
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # a link that stands there would lead elsewhere
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise DataError(
            f"{path} was downloaded but cannot be written ({error.strerror}): name another"
            " folder in TARSPYRO_DATA."
        ) from error
