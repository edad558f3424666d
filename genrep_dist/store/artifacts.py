"""Artifacts: groups of Zarr arrays under a content address. They are written part by part, and a manifest commits them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import CorruptError, DamagedArtifact, DamagedFile, NonFiniteError, NotCommittedError, StoreError
from genrep_dist.store.chunks import checksum, chunk_index, first_non_finite, padded_chunk, stored_chunks
from genrep_dist.store.damage_notes import noted
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import ArtifactPaths
from genrep_dist.store.versions import refuse_newer

if TYPE_CHECKING:
    import zarr

    from genrep_dist.store.arrays import ArrayGroup

Array = npt.NDArray[Any]

SCHEMA_VERSION = 1
READ_THREADS = 16
"""Small files that are read at once, because a bucket answers each after tens of milliseconds."""


class Artifact:
    """One result, identified by ``kind`` and ``key``.

    Arrays are declared (:meth:`create`), parts are written and recorded (:meth:`write_part`; one part is one chunk, one file, written
    by one task), and the artifact is committed (:meth:`commit`). It can be read only after the commit. The fill value of float arrays is
    NaN, so that a chunk that was never written cannot be mistaken for numbers.
    """

    def __init__(self, objects: Objects, kind: str, key: str) -> None:
        self.kind = kind
        self.key = key
        self.paths = ArtifactPaths(kind, key)
        self.path = self.paths.folder
        self._objects = objects
        self._metadata_digests: dict[str, str] | None = None

    @cached_property
    def _group(self) -> ArrayGroup:
        # Zarr takes long to import, and whether an artifact is committed can be seen without it.
        from genrep_dist.store.arrays import ArrayGroup

        return ArrayGroup(self._objects, self.kind, self.key)

    # -- writing ---------------------------------------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        shape: Sequence[int],
        chunks: Sequence[int],
        dtype: str,
        dimension_names: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Declare an array and sync its metadata. The chunk grid is the grid of parts.

        An existing array with the same layout is kept. If the layout differs, the whole artifact is deleted first.
        """
        self._create(name, shape, chunks, dtype, dimension_names, attributes)
        self._objects.sync((self.paths.metadata, self.paths.array_metadata(name)))

    def _create(self, name: str, shape: Sequence[int], chunks: Sequence[int], dtype: str, *rest: Any) -> None:
        existing = self._group.open(name)
        if existing is not None:
            if (existing.shape, existing.chunks, str(existing.dtype)) == (tuple(shape), stored_chunks(chunks), dtype):
                self._group.restore_metadata(existing, name, shape, chunks, dtype, *rest)
                return
            # Records first: a record without its chunk would vouch for a chunk of the new grid.
            self._objects.delete_folder(self.paths.records)
            self._objects.delete_folder(self.path)
        self._group.create(name, shape, chunks, dtype, *rest)

    def write_part(self, part: str, name: str, starts: Sequence[int], values: Array, **statistics: Any) -> None:
        """Write ``values`` as the chunk of ``name`` that begins at index ``starts``, read it back, and record the part as done.

        Raises NonFiniteError for NaN or Inf, StoreError if ``values`` is not exactly one chunk, CorruptError if the bytes read back
        differ from those written.
        """
        array = self._require(name, mode="r+")
        self._check_chunk(array, name, starts, values)
        _check_finite(values, f"{self.paths.array(name)}{list(starts)}")
        # The chunk is synced before its record is written.
        crc = self._group.write_chunk(array, name, starts, values)
        self._objects.put_json(self.paths.record(part), {"array": name, "starts": list(starts), "crc32c": crc, **statistics})

    def write(
        self,
        name: str,
        values: Array,
        dimension_names: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
        *,
        require_finite: bool = True,
    ) -> None:
        """Declare and write a whole array as one chunk, for small results of one task. :meth:`commit` syncs it.

        Raises NonFiniteError for NaN or Inf, unless ``require_finite`` is false.
        """
        values = np.asarray(values)
        self._create(name, values.shape, values.shape, str(values.dtype), dimension_names, attributes)
        if require_finite:
            _check_finite(values, self.paths.array(name))
        self._group.write(self._require(name, mode="r+"), name, values)

    def write_rows(self, name: str, start: int, values: Array) -> None:
        """Write rows of a declared array of one task, whole chunks from row ``start`` on. :meth:`commit` syncs them.

        Raises NonFiniteError for NaN or Inf.
        """
        _check_finite(values, f"{self.paths.array(name)}[{start}]")
        array = self._require(name, mode="r+")
        self._group.write(array, name, values, slice(start, start + len(values)))

    def _check_chunk(self, array: zarr.Array[Any], name: str, starts: Sequence[int], values: Array) -> None:
        expected = tuple(min(chunk, size - start) for start, chunk, size in zip(starts, array.chunks, array.shape, strict=True))
        if values.shape != expected or any(start % chunk for start, chunk in zip(starts, array.chunks, strict=True)):
            raise StoreError(
                "a part is not one chunk of its array",
                where=f"{self._objects.uri}/{self.paths.array(name)}{list(starts)}",
                expected=f"{expected}, in chunks of {array.chunks}",
                got=f"{values.shape}",
                remedy="another run divides this array by another resources.memory_budget: use the same in both, and run this one again",
            )

    def parts_done(self) -> set[str]:
        """Names of the parts that are recorded as written and verified."""
        return {self.paths.part_name(path) for path in self._objects.list(self.paths.records)}

    def commit(self, manifest: Mapping[str, Any], parts: Sequence[str] = ()) -> None:
        """Write the manifest, last and atomically. NotCommittedError if one of ``parts`` is not recorded."""
        missing = sorted(set(parts) - self.parts_done()) if parts else []
        if missing:
            raise NotCommittedError(
                "an artifact cannot be committed before all its parts are written",
                where=self.path,
                expected=f"{len(parts)} parts",
                got=f"{len(missing)} missing, first {missing[0]}",
                remedy="run the same command again: only what is missing is computed",
            )
        files = self._objects.list(self.path)
        if not parts and self._objects.root is not None:
            self._objects.sync(files)
        metadata = [path for path in files if self.paths.is_metadata(path)]
        with ThreadPoolExecutor(READ_THREADS) as threads:
            digests = list(threads.map(lambda path: _digest(self._objects.get(path)), metadata))
        record = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "key": self.key,
            "num_parts": len(parts),
            "metadata_sha256": dict(zip(map(self.paths.relative, metadata), digests, strict=True)),
            **manifest,
        }
        self._objects.put_json(self.paths.manifest, record)

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def is_committed(self) -> bool:
        return self._objects.exists(self.paths.manifest)

    def is_intact(self) -> bool:
        """Whether the artifact is committed. Unlike :meth:`is_committed` it reads the manifest.

        CorruptError if that is damaged, StoreError if a newer version wrote it.
        """
        return self._read_manifest() is not None

    def manifest(self) -> dict[str, Any]:
        """The manifest; NotCommittedError if there is none. Else raises as :meth:`is_intact`."""
        record = self._read_manifest()
        if record is None:
            raise self._not_committed()
        return record

    def _read_manifest(self) -> dict[str, Any] | None:
        """The manifest, None if there is none. Raises as :meth:`is_intact`."""
        try:
            record = self._objects.get_json(self.paths.manifest)
        except FileNotFoundError:
            return None
        if isinstance(record, dict):
            refuse_newer("an artifact", record.get("schema_version"), SCHEMA_VERSION, f"{self._objects.uri}/{self.paths.manifest}")
        if not isinstance(record, dict) or (record.get("kind"), record.get("key")) != (self.kind, self.key):
            error = CorruptError(
                "a manifest belongs to another artifact",
                where=f"{self._objects.uri}/{self.paths.manifest}",
                expected=f"kind {self.kind}, key {self.key}",
                got=str(record)[:200],
                remedy="run the experiment again: the file is moved away and recreated",
                damaged=DamagedFile(self.paths.manifest),
            )
            raise noted(self._objects, error)
        return record

    def seconds(self) -> float:
        """Seconds of work recorded in the manifest and the part records, summed over workers."""
        records = (self.manifest(), *map(self._objects.get_json, self._objects.list(self.paths.records)))
        return sum(float(record.get("seconds", 0.0)) for record in records)

    def read(self, name: str, window: tuple[slice, ...] | None = None) -> Array:
        """An array, or a window of it. NotCommittedError before the commit, CorruptError for damaged bytes."""
        self._require_metadata(name)
        # Only a gram may lack chunks: its lower half is the transpose of the upper half.
        array = self._require(name, mode="r", require_chunks=self.kind != "gram")
        return self._group.read(array, name, window or (slice(None),) * len(array.shape))

    def reader(self, name: str) -> ArrayReader:
        """A reader for many windows of one array. The commit is checked once."""
        self._require_metadata(name)
        return ArrayReader(self._group, name, self._require(name, mode="r", require_chunks=True))

    def declared_chunks(self, name: str) -> tuple[int, ...]:
        """The chunk shape of an array, committed or not."""
        return tuple(self._require(name, mode="r").chunks)

    def attributes(self, name: str) -> dict[str, Any]:
        if self.is_committed():
            self._require_metadata(name)
        return dict(self._require(name, mode="r").attrs)

    def damaged_parts(self) -> dict[str, str]:
        """Recorded parts whose chunk is missing or damaged, and the path of each chunk. Reads every chunk.

        Includes parts written by the same task, whose names extend the part's name or are extended by it. CorruptError if the metadata
        of an array, or a record, is damaged.
        """
        chunks, damaged = {}, set()
        for part in sorted(self.parts_done()):
            record = self._objects.get_json(self.paths.record(part))
            name, starts = record["array"], record["starts"]
            array = self._require(name, mode="r", require_chunks=True)
            ends = [min(start + chunk, size) for start, chunk, size in zip(starts, array.chunks, array.shape, strict=True)]
            chunks[part] = self.paths.chunk(name, chunk_index(array, starts))
            try:
                values = self._group.read(array, name, tuple(map(slice, starts, ends)))
                intact = checksum(padded_chunk(array, values)) == record["crc32c"]
            except CorruptError:
                intact = False
            if not intact:
                damaged.add(part)
        related = {part for part in chunks for one in damaged if part.startswith(f"{one}-") or one.startswith(f"{part}-")}
        related |= {part for part in chunks for one in related if part.startswith(f"{one}-")}
        return {part: chunk for part, chunk in chunks.items() if part in damaged | related}

    def _require(self, name: str, mode: str, *, require_chunks: bool = False) -> zarr.Array[Any]:
        array = self._group.open(name, mode, require_chunks=require_chunks)
        if array is not None:
            return array
        where = f"{self._objects.uri}/{self.path}"
        if not self.is_committed():
            raise StoreError("no such array", where=where, expected=name, got="nothing")
        error = CorruptError(
            "an array of a finished artifact is gone",
            where=where,
            expected=name,
            got="nothing",
            remedy="run the experiment again: the artifact is moved away and recomputed",
            damaged=DamagedArtifact(self.kind, self.key),
        )
        raise noted(self._objects, error)

    def _require_metadata(self, name: str) -> None:
        """NotCommittedError before the commit, CorruptError if the metadata of array ``name`` are not those that were committed.

        Artifacts of earlier versions do not state the digests of their metadata, and none does for what is written after its commit.
        """
        if self._metadata_digests is None:
            self._metadata_digests = self.manifest().get("metadata_sha256", {})
        path = self.paths.array_metadata(name)
        expected = self._metadata_digests.get(self.paths.relative(path))
        try:
            intact = expected is None or _digest(self._objects.get(path)) == expected
        except FileNotFoundError:
            return  # the array is gone, which is found where it is opened
        if not intact:
            error = CorruptError(
                "the metadata of an array are damaged",
                where=f"{self._objects.uri}/{path}",
                expected=f"SHA-256 {str(expected)[:12]}...",
                got="other bytes",
                remedy="run the experiment again: the artifact is moved away and recomputed",
                damaged=DamagedArtifact(self.kind, self.key),
            )
            raise noted(self._objects, error)

    def _not_committed(self) -> NotCommittedError:
        return NotCommittedError(
            "this artifact is not finished",
            where=f"{self._objects.uri}/{self.path}",
            expected="a manifest",
            got=f"{len(self.parts_done())} recorded parts and no manifest",
            remedy="run the experiment again: only what is missing is computed",
        )


class ArrayReader:
    """Windows of one committed array."""

    def __init__(self, group: ArrayGroup, name: str, array: zarr.Array[Any]) -> None:
        self._group, self._name, self._array = group, name, array
        self.shape = tuple(array.shape)
        self.chunks = tuple(array.chunks)

    def read(self, *window: slice) -> Array:
        """The window, with all entries of the axes that are not given."""
        return self._group.read(self._array, self._name, window + (slice(None),) * (len(self.shape) - len(window)))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_finite(values: Array, where: str) -> None:
    first = first_non_finite(values) if values.dtype.kind == "f" else None
    if first is not None:
        raise NonFiniteError("NaN or Inf would be stored", where=where, expected="finite numbers", got=f"{values[first]} at {first}")
