"""Files under one URI, in a local folder or in a bucket. Every write is atomic."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore, ObjectStore

from genrep_dist.errors import CorruptError, DamagedFile, StoreError
from genrep_dist.filesystem import what_is_at
from genrep_dist.store import paths
from genrep_dist.store.damage_notes import noted
from genrep_dist.store.disk import atomic_write, create_file, create_root, free_space, sync_files, write_file
from genrep_dist.store.links import check_links_below, path_inside
from genrep_dist.store.retries import list_files, retried
from genrep_dist.store.sealed import seal_json, unseal_json
from genrep_dist.store.uris import open_bucket, parse_uri, translated_errors


class Objects:
    """Bytes by path. ``uri`` is a local path, ``file://...``, or ``s3://bucket/prefix``, ``gs://...``, ``az://...``.

    Raises StoreError if the address is invalid or its folder cannot be created; a bucket is first contacted when it is used
    (:meth:`check_access`). Every method raises StoreError if the disk, network or bucket fails,
    and if a link in a local folder leads out of it.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        if not isinstance(uri, str | os.PathLike):
            raise StoreError(
                "this is no address of a store", where="store", expected="a folder or a URL, as text or path", got=repr(uri)[:80]
            )
        place = parse_uri(os.fspath(uri))
        self.uri = str(place)
        self.root: Path | None = None
        if isinstance(place, Path):
            try:
                create_root(place)
            except OSError as error:
                raise StoreError(
                    "the store's folder cannot be created",
                    where=str(place),
                    expected="a folder, existing or new",
                    got=f"{what_is_at(place)} ({error})",
                    remedy="choose another --store",
                ) from error
            self.root = place
            self.backend: ObjectStore = LocalStore(place)
        else:
            self.backend = open_bucket(place)

    def check_access(self) -> None:
        """Verify with a few requests that files can be listed, written and deleted. Fails within seconds, with few retries."""
        marker = f"{paths.ACCESS_MARKER}{secrets.token_hex(8)}"
        if self.root is not None:
            self.put(marker, b"")
            self.delete(marker)
            return
        backend = open_bucket(self.uri, is_waited_for=True)
        with self.translated_errors():
            next(iter(obstore.list(backend, chunk_size=1)), None)
        with self.translated_errors(marker):
            obstore.put(backend, marker, b"")
            obstore.delete(backend, marker)

    def put(self, path: str, data: bytes) -> None:
        """Write or replace a file. Readers see the old bytes or the new ones. A local file is synced before this returns."""
        if self.root is None:
            with self.translated_errors(path):
                retried(lambda: obstore.put(self.backend, path, data))
            return
        with self.translated_os_errors(path):
            write_file(self._inside(path), data)

    @contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        """An open empty file, which becomes the one at ``path`` when the block ends, as :meth:`put`; for what does not fit into memory."""
        if self.root is not None:
            with self.translated_os_errors(path), atomic_write(self._inside(path)) as handle:
                with os.fdopen(handle, "w+b", closefd=False) as file:
                    yield file
                os.fsync(handle)
            return
        with self.translated_os_errors(path), tempfile.TemporaryFile() as file:
            yield file

            def upload() -> None:
                file.seek(0)
                obstore.put(self.backend, path, file)

            with self.translated_errors(path):
                retried(upload)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file if none exists; whether it was written. Of several concurrent calls one succeeds.

        After a lost connection the result may be False although the file was written: read it if that matters. In a local folder a
        concurrent reader may see a part of ``data``.
        """
        if self.root is not None:
            with self.translated_os_errors(path):
                return create_file(self._inside(path), data)
        with self.translated_errors(path):
            try:
                retried(lambda: obstore.put(self.backend, path, data, mode="create"))
            except AlreadyExistsError:
                return False
            return True

    def get(self, path: str) -> bytes:
        """The content of a file. FileNotFoundError if there is none."""
        self.require_inside(path)
        with self.translated_errors(path):
            return retried(lambda: bytes(obstore.get(self.backend, path).bytes()))

    def exists(self, path: str) -> bool:
        self.require_inside(path)
        if self.root is not None:
            # A request of obstore takes many times as long; it reports what else is wrong.
            try:
                return stat.S_ISREG(os.stat(self._inside(path)).st_mode)
            except FileNotFoundError:
                return False
            except OSError:
                pass
        try:
            with self.translated_errors(path):
                retried(lambda: obstore.head(self.backend, path))
        except FileNotFoundError:
            return False
        return True

    def modified(self, path: str) -> float:
        """When a file was written, in Unix seconds of the store's own clock. FileNotFoundError if there is none."""
        self.require_inside(path)
        with self.translated_errors(path):
            found = retried(lambda: obstore.head(self.backend, path))
        return found["last_modified"].timestamp()

    def now(self) -> float:
        """The time of the store's own clock, which is that of :meth:`modified`: of a file that is written and deleted here."""
        marker = f"{paths.ACCESS_MARKER}{secrets.token_hex(8)}"
        self.put(marker, b"")
        try:
            return self.modified(marker)
        finally:
            self.delete(marker)

    def list(self, prefix: str) -> list[str]:
        """All paths below the folder ``prefix``, sorted, without the temporary files of interrupted writes."""
        return sorted(path for path in self._list_all(prefix) if "#" not in path)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """The size in bytes of every file below the folder ``prefix``, by path, with the temporary files of interrupted writes."""
        return self._list_all(prefix)

    def delete(self, path: str) -> None:
        """Delete a file if it exists."""
        self.require_inside(path)
        with suppress(FileNotFoundError), self.translated_errors(path):
            retried(lambda: obstore.delete(self.backend, path))

    def move(self, path: str, to: str) -> None:
        """Rename a file. FileNotFoundError if there is none."""
        self.require_inside(path, to)
        with self.translated_errors(path):
            if self.root is not None:
                obstore.rename(self.backend, path, to)
                return
            # A second attempt at both together would not find what the first one has moved.
            retried(lambda: obstore.copy(self.backend, path, to))
        self.delete(path)

    def delete_folder(self, prefix: str) -> None:
        def delete_listed() -> None:
            found = self._list_all(prefix)
            if found:
                obstore.delete(self.backend, list(found))

        with self.translated_errors(prefix):
            retried(delete_listed)

    def delete_empty_folders(self, prefix: str) -> None:
        """Delete the folder ``prefix`` of a local store and folders below it that are empty. A bucket has no folders."""
        if self.root is not None:
            for folder, _, _ in os.walk(self._inside(prefix), topdown=False):
                with suppress(OSError):  # it is not empty
                    os.rmdir(folder)

    def put_json(self, path: str, value: Any) -> None:
        """Write JSON with sorted keys, so that equal values give equal bytes. An object gets a checksum (:mod:`.sealed`)."""
        self.put(path, seal_json(value))

    def get_json(self, path: str) -> Any:
        """Read JSON. FileNotFoundError if there is no file, CorruptError if it is not JSON or does not have the checksum that it states."""
        try:
            return unseal_json(self.get(path))
        except ValueError as error:  # includes UnicodeDecodeError
            raise noted(
                self,
                CorruptError(
                    "a record of the store is damaged",
                    where=f"{self.uri}/{path}",
                    got=str(error),
                    remedy="run the experiment again: the file is moved away and recreated",
                    damaged=DamagedFile(path),
                ),
            ) from error

    def subfolder(self, path: str) -> ObjectStore:
        """An obstore handle for the folder ``path``. For a bucket it opens its own connections, so reuse it.

        Writes through it are atomic but not synced: see :meth:`sync`. Wrap its use in :meth:`translated_errors`.
        """
        if self.root is not None:
            with self.translated_os_errors(path):
                return LocalStore(self._inside(path), mkdir=True)
        return open_bucket(f"{self.uri}/{path}")

    def sync(self, files: Iterable[str]) -> None:
        """Sync files that were written through :meth:`subfolder`, and the folders above them, to the disk. No-op for a bucket."""
        if self.root is not None:
            with self.translated_os_errors():
                sync_files([self._inside(path) for path in files], self.root)

    def translated_errors(self, path: str = "") -> AbstractContextManager[None]:
        """Turns obstore's exceptions into StoreError or FileNotFoundError. See :func:`genrep_dist.store.uris.translated_errors`."""
        return translated_errors(self.uri, path)

    def local_path(self, path: str) -> Path | None:
        """The file on this machine. None for a bucket."""
        return None if self.root is None else self._inside(path)

    def require_inside(self, *found: str) -> None:
        """Raise StoreError for paths that links lead out of a local store."""
        if self.root is not None:
            for path in found:
                path_inside(self.root, path)

    def _inside(self, path: str) -> Path:
        assert self.root is not None
        return path_inside(self.root, path)

    @contextmanager
    def translated_os_errors(self, path: str = "") -> Iterator[None]:
        """Turns an OSError of a write into StoreError."""
        try:
            yield
        except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
            raise StoreError(
                "a file of the store cannot be written: something else has its place",
                where=f"{self.uri}/{path}".rstrip("/"),
                expected="a file, or nothing, below folders",
                got=what_is_at(f"{self.uri}/{path}"),
                remedy="move it out of the store and run the same command again: only what is missing is computed",
            ) from error
        except OSError as error:
            raise StoreError(
                "a file cannot be written",
                where=f"{self.uri}/{path}".rstrip("/"),
                got=f"{error}; {free_space(self.root)}",
                remedy="check the disk, its free space and permissions, and run the same command again: only what is missing is computed",
            ) from error

    def _list_all(self, prefix: str) -> dict[str, int]:
        if self.root is not None:
            check_links_below(self.root, prefix)  # a link could lead to all that the machine has
        with self.translated_errors(prefix):
            return list_files(self.backend, prefix)
