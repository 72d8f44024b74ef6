"""Folders behind a URL (`s3://`, `gs://`, ...), by fsspec: whole files in and out, no directories."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import DataError, PdepotError


def is_url(location: str | Path) -> bool:
    """Whether a location is a URL, not a path."""
    return "://" in str(location)


def as_location(text: str) -> Path | str:
    """A URL as it is (a path would make one slash of its two), anything else as a path; so is a file:// URL."""
    text = text.removeprefix("file://")
    return text if is_url(text) else Path(text)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of an object store or of any other file system that fsspec knows. Names are relative to it.

    All methods raise DataError, which names the URL, when the protocol is unknown, its package is not installed, or
    the store fails. The clients retry what may pass by itself, and send checksums along that the store verifies.
    """

    url: str

    def __truediv__(self, name: str) -> "RemoteFolder":
        return RemoteFolder(self.url_of(name))

    def __str__(self) -> str:
        return self.url

    def url_of(self, name: str) -> str:
        """URL of a file."""
        return f"{self.url.rstrip('/')}/{name}"

    def read_bytes(self, name: str) -> bytes:
        """A whole small file. Raises DataError when it is missing."""
        with self._errors(name) as (system, path):
            content: bytes = system.cat_file(path)
        return content

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Whole small files, many at a time."""
        if not names:
            return {}
        with self._errors() as (system, folder):
            found = system.cat([f"{folder}/{name}" for name in names])
            if isinstance(found, bytes):  # fsspec gives the bytes themselves when there is one file
                return {names[0]: found}
            return {_below(folder, path): content for path, content in found.items()}

    def download(self, name: str, local: Path) -> None:
        """Copy a file to the local path `local`, whose folder exists. Raises DataError when it is missing."""
        with self._errors(name) as (system, path):
            system.get_file(path, str(local))

    def upload(self, local: Path, name: str) -> None:
        """Copy a local file into the folder; it appears there at once and whole, or not at all."""
        size = local.stat().st_size
        with self._errors(name) as (system, path):
            system.put_file(str(local), path)
            found = int(system.info(path)["size"])
        if found != size:
            raise DataError("a file was cut on its way", file=self.url_of(name), found=found, expected=size)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file; it appears at once and whole."""
        with self._errors(name) as (system, path):
            system.pipe_file(path, content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a small file unless there is one; returns whether it was written."""
        with self._errors(name) as (system, path):
            try:
                system.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
        return True

    def size(self, name: str) -> int | None:
        """Bytes of a file, None when there is none."""
        with self._errors(name) as (system, path):
            try:
                return int(system.info(path)["size"])
            except FileNotFoundError:
                return None

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below the folder."""
        with self._errors() as (system, folder):
            found = system.find(folder, detail=True)
            return {_below(folder, path): int(entry["size"]) for path, entry in found.items()}

    def remove(self, names: Sequence[str]) -> None:
        """Delete files that are there."""
        if names:
            with self._errors() as (system, folder):
                system.rm([f"{folder}/{name}" for name in names])

    @contextmanager
    def _errors(self, name: str = "") -> Iterator[tuple[Any, str]]:
        """The file system and the path in it of a file; what goes wrong becomes a DataError that names the URL."""
        import fsspec

        url = self.url_of(name).rstrip("/")
        try:
            # Another process may have written meanwhile, so listings are not kept.
            system, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
            yield system, path.rstrip("/")
        except PdepotError:
            raise
        except FileNotFoundError:
            raise DataError("no such file, folder or bucket", file=url) from None
        except (ImportError, ValueError) as error:
            remedy = "in the checkout: pip install -e '.[s3]' or '.[gcs]'"
            raise DataError("no file system for this URL", file=url, found=error, remedy=remedy) from None
        except Exception as error:  # each store's client has errors of its own, not all of them OSError
            remedy = "check the URL, the network and your credentials, then run the same command again"
            raise DataError("the object store failed", file=url, found=error, remedy=remedy) from error


def _below(folder: str, path: str) -> str:
    return path.removeprefix(folder).lstrip("/")
