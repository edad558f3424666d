"""The Zarr arrays of one artifact. Local chunks are read and written by :mod:`genrep_dist.store.chunks`, all else by Zarr."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.errors import ContainsArrayError
from zarr.storage import MemoryStore, ObjectStore

from genrep_dist.errors import CorruptError, DamagedArtifact, StoreError
from genrep_dist.limits import require_fits
from genrep_dist.store.chunks import checksum, chunk_index, padded_chunk, read_window, stored_chunks, write_chunk
from genrep_dist.store.damage_notes import noted
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import ArtifactPaths, is_chunk
from genrep_dist.store.retries import retried_async

Array = npt.NDArray[Any]

_CONFIG: Any = {"write_empty_chunks": True}
"""Zarr would omit a chunk of fill values, which is indistinguishable from one that was never written."""


class ArrayGroup:
    """Arrays by name, as one Zarr group. One chunk is one file, with a CRC32C checksum at its end."""

    def __init__(self, objects: Objects, kind: str, key: str) -> None:
        self._objects, self._paths, self._damaged = objects, ArtifactPaths(kind, key), DamagedArtifact(kind, key)
        self._opened: ObjectStore[Any] | None = None

    def create(
        self,
        name: str,
        shape: Sequence[int],
        chunks: Sequence[int],
        dtype: str,
        dimension_names: Sequence[str],
        attributes: Mapping[str, Any] | None,
    ) -> None:
        """Write the metadata of an array. An array that another driver creates at the same time is kept."""
        self._require_inside(name)
        with self._objects.translated_errors(self._paths.array(name)), suppress(ContainsArrayError):
            _create(self._store(), name, shape, chunks, dtype, dimension_names, attributes)

    def restore_metadata(self, array: zarr.Array[Any], name: str, *declared: Any) -> None:
        """Write the metadata of an existing array again if they are not those that :meth:`create` writes, as when a bit has flipped."""
        expected = _create(MemoryStore(), name, *declared).metadata
        if _plain(array.metadata.to_dict()) != _plain(expected.to_dict()):
            (data,) = expected.to_buffer_dict(default_buffer_prototype()).values()
            self._objects.put(self._paths.array_metadata(name), data.to_bytes())

    def open(self, name: str, mode: str = "r", *, require_chunks: bool = False) -> zarr.Array[Any] | None:
        """The array, or None. With ``require_chunks``, reading a missing chunk raises instead of returning the fill value."""
        self._require_inside(name)
        try:
            with self._objects.translated_errors(self._paths.array(name)):
                store = _CompleteStore(self._store().store) if require_chunks else self._store()
                return zarr.open_array(store, path=name, mode=cast("Any", mode), zarr_format=3).with_config(_CONFIG)
        except FileNotFoundError:
            return None
        # The exceptions that Zarr raises for damaged metadata.
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise self._corrupt("the metadata of an array is damaged", self._paths.array_metadata(name), error) from error

    def read(self, array: zarr.Array[Any], name: str, window: tuple[slice, ...]) -> Array:
        """A window of an opened array, with the checksums verified. CorruptError if a chunk is damaged or required and missing."""
        where = f"{self._paths.array(name)}, window {window}"
        try:
            spans = (len(range(*part.indices(size))) for part, size in zip(window, array.shape, strict=True))
            require_fits(math.prod(spans) * array.dtype.itemsize, "what is read of this array")
            require_fits(math.prod(array.chunks) * array.dtype.itemsize, "a chunk of this array")
            with self._objects.translated_errors(self._paths.array(name)):
                folder = self._objects.local_path(self._paths.chunks(name))
                if folder is None or array.ndim == 0:
                    return np.asarray(array[window])
                fill_value = None if isinstance(array.store, _CompleteStore) else array.fill_value
                return read_window(folder, array.shape, array.chunks, array.dtype, fill_value, window)
        except OSError as error:
            raise StoreError(
                "a file of the store cannot be read",
                where=f"{self._objects.uri}/{where}",
                got=str(error),
                remedy="check the disk and permissions",
            ) from error
        except ValueError as error:
            raise self._corrupt("a file of the store is damaged", where, error) from error

    def write_chunk(self, array: zarr.Array[Any], name: str, starts: Sequence[int], values: Array) -> int:
        """Write one chunk durably and read it back; its CRC32C. CorruptError if the bytes read differ from those written."""
        chunk = padded_chunk(array, values)
        path = self._objects.local_path(self._paths.chunk(name, chunk_index(array, starts)))
        if path is not None:
            with self._objects.translated_os_errors(self._paths.array(name)):
                return write_chunk(path, chunk)
        window = tuple(slice(start, start + size) for start, size in zip(starts, values.shape, strict=True))
        self.write(array, name, values, window)
        crc = checksum(chunk)
        if checksum(padded_chunk(array, self.read(array, name, window))) != crc:
            raise CorruptError("a part read back differs from what was written", where=self._paths.array(name), remedy="check the disk")
        return crc

    def write(self, array: zarr.Array[Any], name: str, values: Array, window: Any = ...) -> None:
        """Write through Zarr, not synced."""
        # An array that is written whole is one chunk.
        self._objects.require_inside(self._paths.chunk(name, [0] * array.ndim))
        with self._objects.translated_errors(self._paths.array(name)):
            array[window] = values

    def _require_inside(self, name: str) -> None:
        """Zarr follows links: refuse those that lead out of the store."""
        self._objects.require_inside(self._paths.metadata, self._paths.array_metadata(name), self._paths.chunks(name))

    def _store(self) -> ObjectStore[Any]:
        """The artifact's folder. It is opened once, because a handle for a bucket has its own connections."""
        if self._opened is None:
            self._opened = _RetryingStore(self._objects.subfolder(self._paths.folder))
        return self._opened

    def _corrupt(self, what: str, where: str, error: Exception) -> CorruptError:
        found = CorruptError(
            what,
            where=f"{self._objects.uri}/{where}",
            got=str(error),
            remedy="run the experiment again: damaged files are moved away and recomputed",
            damaged=self._damaged,
        )
        return noted(self._objects, found)


class _RetryingStore(ObjectStore[Any]):
    """A store whose reads and writes are retried while a bucket is busy or the network fails."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return await retried_async(lambda: super(_RetryingStore, self).get(key, prototype, byte_range))

    async def set(self, key: str, value: Buffer) -> None:
        await retried_async(lambda: super(_RetryingStore, self).set(key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        await retried_async(lambda: super(_RetryingStore, self).set_if_not_exists(key, value))

    async def exists(self, key: str) -> bool:
        return await retried_async(lambda: super(_RetryingStore, self).exists(key))


class _CompleteStore(_RetryingStore):
    """A store in which every chunk must exist. (Zarr reads a missing chunk as fill values.)"""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None and is_chunk(key):
            raise ValueError(f"the file {key} does not exist")
        return found


def _create(
    store: ObjectStore[Any] | MemoryStore,
    name: str,
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: str,
    dimension_names: Sequence[str],
    attributes: Mapping[str, Any] | None = None,
) -> zarr.Array[Any]:
    return zarr.create_array(
        store,
        name=name,
        shape=tuple(shape),
        chunks=stored_chunks(chunks),
        dtype=dtype,
        fill_value=float("nan") if np.dtype(dtype).kind == "f" else 0,
        compressors=[Crc32cCodec()],
        dimension_names=list(dimension_names),
        attributes=dict(attributes or {}),
        config=_CONFIG,
        # Overwriting would delete the chunks that another driver has written.
        overwrite=False,
    )


def _plain(metadata: Any) -> Any:
    """Metadata as they are read from JSON, with lists for tuples."""
    return json.loads(json.dumps(metadata))
