"""Named bytes under one URI: a folder on this machine, or a bucket. Every put is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import obstore
from obstore.store import LocalStore, ObjectStore, from_url

from genrep_dist.errors import CorruptError, StoreError


class Objects:
    """Bytes by path. ``uri`` is a local path, ``file://...`` or a URL that obstore knows (``s3://bucket/prefix``, ...).

    Raises StoreError when the place cannot be used.
    """

    def __init__(self, uri: str) -> None:
        self.root: Path | None = None
        if "://" not in uri or uri.startswith("file://"):
            root = Path(uri.removeprefix("file://")).expanduser().resolve()
            try:
                root.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(
                    "the store's folder cannot be made", where=str(root), got=str(error), remedy="choose another --store"
                ) from error
            self.root = root
            self.backend: ObjectStore = LocalStore(root)
            self.uri = str(root)
        else:
            self.uri = uri
            self.backend = from_url(uri)

    def put(self, path: str, data: bytes) -> None:
        """Write all of ``data`` at ``path``, replacing what was there; a reader sees the old bytes or the new, never a part."""
        obstore.put(self.backend, path, data)

    def get(self, path: str) -> bytes:
        """The bytes at ``path``; FileNotFoundError when there are none."""
        return bytes(obstore.get(self.backend, path).bytes())

    def exists(self, path: str) -> bool:
        try:
            obstore.head(self.backend, path)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str) -> list[str]:
        """All paths below the folder ``prefix``, sorted; leftovers of interrupted writes are not among them."""
        found = [str(item["path"]) for batch in obstore.list(self.backend, prefix) for item in batch]
        return sorted(path for path in found if "#" not in path)

    def delete(self, path: str) -> None:
        if self.exists(path):
            obstore.delete(self.backend, path)

    def delete_folder(self, prefix: str) -> None:
        paths = [str(item["path"]) for batch in obstore.list(self.backend, prefix) for item in batch]
        if paths:
            obstore.delete(self.backend, paths)

    def put_json(self, path: str, value: Any) -> None:
        """Write JSON with sorted keys: equal values are equal bytes."""
        self.put(path, (json.dumps(value, sort_keys=True, indent=1) + "\n").encode())

    def get_json(self, path: str) -> Any:
        try:
            return json.loads(self.get(path))
        except json.JSONDecodeError as error:
            raise CorruptError(
                "a record of the store is not JSON", where=f"{self.uri}/{path}", got=str(error), remedy="delete that file and run again"
            ) from error

    def below(self, path: str) -> ObjectStore:
        """Obstore's own handle on the folder ``path``."""
        if self.root is not None:
            return LocalStore(self.root / path, mkdir=True)
        return from_url(f"{self.uri.rstrip('/')}/{path}")

    def local_path(self, path: str) -> Path | None:
        """Where ``path`` lies on this machine, or None when the store is remote."""
        return None if self.root is None else self.root / path
