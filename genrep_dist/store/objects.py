"""Named bytes under one URI: a folder on this machine, or a bucket. Every put is whole or not there."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore, ObjectStore

from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.store.disk import create_file, free_text, sync_files, write_file
from genrep_dist.store.uris import IMPATIENT, explained, open_bucket, parse_uri


class Objects:
    """Bytes by path. ``uri`` is a local path, ``file://...``, or ``s3://bucket/prefix``, ``gs://...``, ``az://...``.

    Raises StoreError when the address cannot be one of a store or its folder cannot be made. A bucket is not asked for anything
    before it is used (:meth:`check_access`). Every method raises StoreError when the place fails or refuses.
    """

    def __init__(self, uri: str) -> None:
        place = parse_uri(uri)
        self.uri = str(place)
        self.root: Path | None = None
        if isinstance(place, Path):
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(
                    "the store's folder cannot be made", where=str(place), got=str(error), remedy="choose another --store"
                ) from error
            self.root = place
            self.backend: ObjectStore = LocalStore(place)
        else:
            self.backend = open_bucket(place)

    def check_access(self) -> None:
        """Prove, before work is planned, that this place can be listed, written and deleted from; takes a few requests.

        Raises StoreError, which names the bucket or folder and what to do, within seconds rather than after all retries.
        """
        marker = f".access-{secrets.token_hex(8)}"
        if self.root is not None:
            self.put(marker, b"")
            self.delete(marker)
            return
        backend = open_bucket(self.uri, IMPATIENT)
        with self.explained():
            next(iter(obstore.list(backend, chunk_size=1)), None)
        with self.explained(marker):
            obstore.put(backend, marker, b"")
            obstore.delete(backend, marker)

    def put(self, path: str, data: bytes) -> None:
        """Write all of ``data`` at ``path``, replacing what was there; a reader sees the old bytes or the new, never a part.

        What was put survives a power failure: in a folder it is synced to the disk before this returns.
        """
        if self.root is None:
            with self.explained(path):
                obstore.put(self.backend, path, data)
            return
        with self.writing(path):
            write_file(self.root / path, data)

    def create(self, path: str, data: bytes) -> bool:
        """Write ``data`` at ``path`` if nothing is there; whether it was done. Of several that try at once, one succeeds.

        After a connection that was lost just so, False may come although it was done: whoever must know looks at what is there. In
        a folder a reader may find less than all of ``data`` for a moment.
        """
        if self.root is not None:
            with self.writing(path):
                return create_file(self.root / path, data)
        with self.explained(path):
            try:
                obstore.put(self.backend, path, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def get(self, path: str) -> bytes:
        """The bytes at ``path``; FileNotFoundError when there are none."""
        with self.explained(path):
            return bytes(obstore.get(self.backend, path).bytes())

    def exists(self, path: str) -> bool:
        try:
            with self.explained(path):
                obstore.head(self.backend, path)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str) -> list[str]:
        """All paths below the folder ``prefix``, sorted; leftovers of interrupted writes are not among them."""
        return sorted(path for path in self._all(prefix) if "#" not in path)

    def delete(self, path: str) -> None:
        """Delete ``path``, if it is there."""
        with suppress(FileNotFoundError), self.explained(path):
            obstore.delete(self.backend, path)

    def move(self, path: str, to: str) -> None:
        """Move ``path`` to ``to``; FileNotFoundError when it is not there."""
        with self.explained(path):
            obstore.rename(self.backend, path, to)

    def delete_folder(self, prefix: str) -> None:
        paths = self._all(prefix)
        if paths:
            with self.explained(prefix):
                obstore.delete(self.backend, paths)

    def put_json(self, path: str, value: Any) -> None:
        """Write JSON with sorted keys: equal values are equal bytes."""
        self.put(path, (json.dumps(value, sort_keys=True, indent=1) + "\n").encode())

    def get_json(self, path: str) -> Any:
        try:
            return json.loads(self.get(path))
        except ValueError as error:  # not JSON, or not even text
            raise CorruptError(
                "a record of the store is not JSON",
                where=f"{self.uri}/{path}",
                got=str(error),
                remedy="run the experiment again: the file is put aside and made anew",
                damaged=path,
            ) from error

    def below(self, path: str) -> ObjectStore:
        """Obstore's own handle on the folder ``path``; with a bucket it has connections of its own, so keep it while it is used.

        What is written through it is whole or not there, but not synced: see :meth:`sync`. Wrap its use in :meth:`explained`.
        """
        if self.root is not None:
            return LocalStore(self.root / path, mkdir=True)
        return open_bucket(f"{self.uri}/{path}")

    def sync(self, paths: Iterable[str]) -> None:
        """Have files that were written through :meth:`below`, and the folders above them, on the disk. A bucket has them already."""
        if self.root is not None:
            with self.writing():
                sync_files([self.root / path for path in paths], self.root)

    def explained(self, path: str = "") -> AbstractContextManager[None]:
        """What obstore raises inside becomes StoreError, which says what to do and repeats no secret."""
        return explained(self.uri, path)

    def local_path(self, path: str) -> Path | None:
        """Where ``path`` lies on this machine, or None when the store is remote."""
        return None if self.root is None else self.root / path

    @contextmanager
    def writing(self, path: str = "") -> Iterator[None]:
        """What the system refuses inside becomes StoreError."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                "a file cannot be written",
                where=f"{self.uri}/{path}".rstrip("/"),
                got=f"{error}; {free_text(self.root)}",
                remedy="check the disk, its free space and permissions, and run the same command again: only what is missing is computed",
            ) from error

    def _all(self, prefix: str) -> Sequence[str]:
        with self.explained(prefix):
            return [str(item["path"]) for batch in obstore.list(self.backend, prefix) for item in batch]
