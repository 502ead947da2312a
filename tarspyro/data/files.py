"""Data files: the data folder, downloads with a checksum, and reading."""

# Pooch tries again and moves a file into place when it is whole. The limit of size and the
# checksum of the decoded bytes are ours, because pooch has no limit and hashes the bytes as
# they come, which differ from one compression to another.

__all__ = [
    "MAX_BYTES",
    "DataError",
    "check_file",
    "check_size",
    "data_folder",
    "fetch",
    "memory",
    "read",
]

import contextlib
import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tarspyro.arguments import format_value, printable

MAX_BYTES = 1 << 27  # of a file, packed or unpacked
SECONDS = 3600  # that a download may take
_LARGE = 1 << 26  # bytes from which on a file may not consist of holes
RETRIES = 2  # after one and two seconds

Decoder = Callable[[bytes], bytes]


class DataError(OSError):
    """A data file is missing, cannot be downloaded, or has the wrong content."""

    def __init__(self, message: str) -> None:
        # It may quote a stranger's file, which must not command the terminal.
        super().__init__(printable(message))


def data_folder(folder: str | Path | None) -> Path:
    """Returns the given folder; if None, the one that the variable ``TARSPYRO_DATA`` names,
    else ``~/.cache/tarspyro``.

    Raises:
        TypeError: If ``folder`` is not a path.
    """
    if folder is None:
        folder = os.environ.get("TARSPYRO_DATA") or "~/.cache/tarspyro"
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(
            f"folder must be the path of the data folder, got {format_value(folder)}."
        )
    return Path(folder).expanduser()


def fetch(path: Path, url: str | None, sha256: str, decode: Decoder) -> bytes:
    """Returns the decoded content of a file, which is downloaded first if it is missing.

    Arguments:
        path: The file.
        url: The address to download it from; None if it has none.
        sha256: The SHA-256 of the decoded content.
        decode: A function from the bytes of the file to its content.

    Raises:
        DataError: If the file is missing and cannot be downloaded, or has the wrong content.
    """
    if not path.exists():
        if url is None:
            raise DataError(
                f"{path} is missing: put the file there, or name the folder that holds it in"
                " TARSPYRO_DATA."
            )
        _download(path, url, sha256, decode)
    advice = "put the right file there" if url is None else "delete it to download it again"
    return _decoded(read(path), sha256, decode, source=str(path), advice=advice)


def read(path: Path) -> bytes:
    """Returns the bytes of a file.

    Raises:
        DataError: If it cannot be read, or is not a regular file.
    """
    check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def check_file(path: Path, most: int | None = None) -> None:
    """Raises a ``DataError`` if a file is no regular one, or would fill the memory.

    Arguments:
        path: The file.
        most: The largest number of bytes that its content may have; half of the memory if it
            is not given.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        if not isinstance(error, FileNotFoundError):
            raise DataError(f"{path} cannot be read ({_line(error)}).") from error
        return  # the caller's attempt to read it raises the error
    if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device may never end
        raise DataError(f"{path} cannot be read (it is not a regular file).")
    check_size(path, found.st_size, most)
    held = getattr(found, "st_blocks", None)
    if held is not None and found.st_size > _LARGE and 512 * held < found.st_size // 20:
        raise DataError(f"{path} cannot be read (it consists of holes).")


def check_size(source: object, size: int, most: int | None = None) -> None:
    """Raises a ``DataError`` if a content has more bytes than half of the memory, or more than
    it may have.
    """
    limit = most or memory() // 2
    if size > limit:
        raise DataError(
            f"{source} cannot be read (it has {size} bytes, and {limit} are the most): read a"
            " part of it, or give a tarspyro.data.Stream."
        )


def memory() -> int:
    """Returns the bytes of this machine's memory; 8 GiB where the system does not give it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 33


def _decoded(
    encoded: bytes, sha256: str, decode: Decoder, *, source: str, advice: str
) -> bytes:
    try:
        content = decode(encoded)
    except Exception as error:  # decoders raise many kinds of errors on damaged bytes
        raise DataError(f"{source} cannot be decoded ({_line(error)}): {advice}.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(
            f"{source} does not hold the expected data (its SHA-256 differs): {advice}."
        )
    return content


def _download(path: Path, url: str, sha256: str, decode: Decoder) -> None:
    """Downloads a file, and keeps it only if it has the right content."""
    import pooch

    def download(url: str, output_file: str, _: object) -> None:
        encoded = _receive(url, path.name)
        advice = f"try again, or put the right file at {path}"
        _decoded(encoded, sha256, decode, source=url, advice=advice)
        Path(output_file).write_bytes(encoded)

    is_new = not path.parent.exists()
    try:
        downloads = pooch.create(
            path.parent,
            base_url="",
            registry={path.name: None},
            urls={path.name: url},
            retry_if_failed=RETRIES,
        )
        with _quiet(pooch.get_logger()):
            downloads.fetch(path.name, downloader=download)
        path.chmod(0o644)  # pooch's temporary files are for their owner alone
    except OSError as error:  # the errors of requests are among them
        if is_new:
            with contextlib.suppress(OSError):
                path.parent.rmdir()
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is missing and cannot be downloaded from {url} ({_line(error)}): put the"
            " file there, or name the folder that holds it in TARSPYRO_DATA."
        ) from error


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Lets a logger report nothing but warnings for a while."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _receive(url: str, name: str) -> bytes:
    """Returns the bytes at an address, with a progress bar."""
    import requests
    from tqdm.auto import tqdm

    # By default requests allows compression on the way, and would unpack a .gz file.
    headers = {"Accept-Encoding": "identity"}
    received = bytearray()
    end = time.monotonic() + SECONDS  # a server that drips would be waited for without end
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        with tqdm(total=total, unit="B", unit_scale=True, desc=name) as bar:
            for piece in response.iter_content(1 << 16):
                received += piece
                bar.update(len(piece))
                if len(received) > MAX_BYTES:
                    raise DataError(
                        f"{url} does not end after {MAX_BYTES >> 20} MB, more than any data"
                        " set has."
                    )
                if time.monotonic() > end:
                    raise DataError(f"{url} has not ended after {SECONDS} seconds.")
    return bytes(received)


def _line(error: Exception) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split()).rstrip(".")
