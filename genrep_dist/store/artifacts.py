"""Artifacts: groups of Zarr arrays under a content address, written part by part and proved finished by a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.errors import ContainsArrayError
from zarr.storage import ObjectStore

from genrep_dist.errors import CorruptError, NonFiniteError, NotCommittedError, StoreError
from genrep_dist.store.chunks import checksum, first_non_finite, read_window, write_chunk
from genrep_dist.store.objects import Objects

SCHEMA_VERSION = 1

Array = npt.NDArray[Any]


class Artifact:
    """One result under ``artifacts/<kind>/<key>/``.

    Life: arrays are declared (``create``), parts are written (``write_part``; one part is one whole file of one array, written by
    one task and recorded), the whole is committed (``commit``). Only then may it be read. A float array is filled with NaN, so
    that what was never written cannot pass for a number, and every file carries a checksum that reading verifies.
    """

    def __init__(self, objects: Objects, kind: str, key: str) -> None:
        self.kind = kind
        self.key = key
        self.path = f"artifacts/{kind}/{key[:2]}/{key}"
        self._objects = objects
        self._opened: ObjectStore[Any] | None = None

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
        """Declare an array; its chunk grid is the grid of parts, one file each.

        Declaring it again with the same layout keeps what is written. With another layout nothing written before can be used,
        so the artifact starts anew.
        """
        self._create(name, shape, chunks, dtype, dimension_names, attributes)
        self._objects.sync((f"{self.path}/zarr.json", f"{self.path}/{name}/zarr.json"))

    def _create(
        self,
        name: str,
        shape: Sequence[int],
        chunks: Sequence[int],
        dtype: str,
        dimension_names: Sequence[str],
        attributes: Mapping[str, Any] | None,
    ) -> None:
        existing = self._open(name)
        if existing is not None:
            if (existing.shape, existing.chunks, str(existing.dtype)) == (tuple(shape), tuple(chunks), dtype):
                return
            # Records first: one that outlives its block would vouch for a block of another grid.
            self._objects.delete_folder(f"{self.path}/parts")
            self._objects.delete_folder(self.path)
        with self._objects.explained(f"{self.path}/{name}"), suppress(ContainsArrayError):  # another driver was faster, with equal bytes
            zarr.create_array(
                self._group(),
                name=name,
                shape=tuple(shape),
                chunks=tuple(max(1, c) for c in chunks),
                dtype=dtype,
                fill_value=float("nan") if np.dtype(dtype).kind == "f" else 0,
                compressors=[Crc32cCodec()],
                dimension_names=list(dimension_names),
                attributes=dict(attributes or {}),
                # A comparison of each chunk with the fill value costs more than writing it.
                config={"write_empty_chunks": True},
                # Never over another driver's array, whose blocks that would delete.
                overwrite=False,
            )

    def write_part(self, part: str, name: str, starts: Sequence[int], values: Array, **statistics: Any) -> None:
        """Write ``values`` as the chunk of ``name`` that begins at ``starts``, read it back, and record the part as done.

        Raises NonFiniteError for NaN or Inf (units check earlier, where sample ids are known), CorruptError when what was read
        back is not what was written.
        """
        array = self._require(name, mode="r+")
        self._check_block(array, name, starts, values)
        _refuse_non_finite(values, f"{self.path}/{name}{list(starts)}")
        chunk = _whole_chunk(array, values)
        path = self._chunk_path(name, [start // size for start, size in zip(starts, array.chunks, strict=True)])
        # A record on the disk whose block is not would vouch for nothing: the block is synced first.
        if path is not None:
            with self._objects.writing(f"{self.path}/{name}{list(starts)}"):
                crc = write_chunk(path, chunk)
        else:
            crc = self._write_remote(array, name, starts, values, chunk)
        self._objects.put_json(f"{self.path}/parts/{part}.json", {"array": name, "starts": list(starts), "crc32c": crc, **statistics})

    def _write_remote(self, array: zarr.Array[Any], name: str, starts: Sequence[int], values: Array, chunk: Array) -> int:
        """Write a part through Zarr, read it back; its checksum."""
        window = tuple(slice(start, start + size) for start, size in zip(starts, values.shape, strict=True))
        with self._objects.explained(f"{self.path}/{name}"):
            array[window] = values
        crc = checksum(chunk)
        if checksum(_whole_chunk(array, self._read_window(array, name, window))) != crc:
            raise CorruptError(
                "a part read back differs from what was written", where=f"{self.path}/{name}{list(starts)}", remedy="check the disk"
            )
        return crc

    def write(self, name: str, values: Array, dimension_names: Sequence[str], attributes: Mapping[str, Any] | None = None) -> None:
        """Declare and write a whole array as one file; for small results that one task makes. Synced by :meth:`commit`."""
        values = np.asarray(values)
        self._create(name, values.shape, values.shape, str(values.dtype), dimension_names, attributes)
        _refuse_non_finite(values, f"{self.path}/{name}")
        array = self._require(name, mode="r+")
        with self._objects.explained(f"{self.path}/{name}"):
            array[...] = values

    def _check_block(self, array: zarr.Array[Any], name: str, starts: Sequence[int], values: Array) -> None:
        """StoreError unless ``values`` are one whole block: part of one would be mixed with what another task writes beside it."""
        block = tuple(min(chunk, size - start) for start, chunk, size in zip(starts, array.chunks, array.shape, strict=True))
        if values.shape != block or any(start % chunk for start, chunk in zip(starts, array.chunks, strict=True)):
            raise StoreError(
                "a part is not one block of its array",
                where=f"{self._objects.uri}/{self.path}/{name}{list(starts)}",
                expected=f"{block}, of blocks of {array.chunks}",
                got=f"{values.shape}",
                remedy="another run has cut this array by another resources.memory_budget: give both the same, and run this one again",
            )

    def parts_done(self) -> set[str]:
        """Names of the parts that are recorded as written and verified."""
        prefix = f"{self.path}/parts/"
        return {path.removeprefix(prefix).removesuffix(".json") for path in self._objects.list(f"{self.path}/parts")}

    def commit(self, manifest: Mapping[str, Any], parts: Sequence[str] = ()) -> None:
        """Declare the artifact finished, once every one of ``parts`` is recorded. The manifest is written last and atomically."""
        missing = sorted(set(parts) - self.parts_done()) if parts else []
        if missing:
            raise NotCommittedError(
                "an artifact cannot be committed before all its parts are written",
                where=self.path,
                expected=f"{len(parts)} parts",
                got=f"{len(missing)} missing, first {missing[0]}",
                remedy="run the same command again: only what is missing is computed",
            )
        if not parts and self._objects.root is not None:
            self._objects.sync(self._objects.list(self.path))
        record = {"schema_version": SCHEMA_VERSION, "kind": self.kind, "key": self.key, "num_parts": len(parts), **manifest}
        self._objects.put_json(f"{self.path}/manifest.json", record)

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def is_committed(self) -> bool:
        return self._objects.exists(f"{self.path}/manifest.json")

    def is_intact(self) -> bool:
        """As :meth:`is_committed`, with the manifest read. CorruptError when it is damaged, or another artifact's."""
        path = f"{self.path}/manifest.json"
        try:
            record = self._objects.get_json(path)
        except FileNotFoundError:
            return False
        if not isinstance(record, dict) or (record.get("kind"), record.get("key")) != (self.kind, self.key):
            raise CorruptError(
                "a manifest is not that of its artifact",
                where=f"{self._objects.uri}/{path}",
                expected=f"kind {self.kind}, key {self.key}",
                got=str(record)[:200],
                remedy="run the experiment again: the file is put aside and made anew",
                damaged=path,
            )
        return True

    def manifest(self) -> dict[str, Any]:
        """The manifest; NotCommittedError when there is none."""
        try:
            return cast("dict[str, Any]", self._objects.get_json(f"{self.path}/manifest.json"))
        except FileNotFoundError:
            raise self._not_committed() from None

    def seconds(self) -> float:
        """Seconds of one worker that went into the artifact, as its manifest and its parts say; 0 where nothing was recorded."""
        parts = [path for path in self._objects.list(f"{self.path}/parts") if path.endswith(".json")]
        return sum(float(record.get("seconds", 0.0)) for record in (self.manifest(), *map(self._objects.get_json, parts)))

    def read(self, name: str, window: tuple[slice, ...] | None = None) -> Array:
        """``name``, or a window of it, as a numpy array. NotCommittedError before the commit, CorruptError for damaged bytes."""
        if not self.is_committed():
            raise self._not_committed()
        # The lower half of a gram is the transpose of the upper one, and nowhere else may a block be missing.
        array = self._require(name, mode="r", whole=self.kind != "gram")
        return self._read_window(array, name, window or (slice(None),) * len(array.shape))

    def reader(self, name: str) -> ArrayReader:
        """Many windows of one array, with the commit checked once."""
        if not self.is_committed():
            raise self._not_committed()
        return ArrayReader(self, name, self._require(name, mode="r", whole=True))

    def declared_chunks(self, name: str) -> tuple[int, ...]:
        """The chunk grid of an array, committed or not."""
        return tuple(self._require(name, mode="r").chunks)

    def attributes(self, name: str) -> dict[str, Any]:
        return dict(self._require(name, mode="r").attrs)

    def damaged_parts(self) -> dict[str, str]:
        """Of the recorded parts those whose block is gone, cannot be read, or is not what was written: part to the path of its block.

        With them those that one task made together with them, whose names go on from theirs or theirs from it. Reads everything.
        CorruptError when an array itself, or a record, is damaged.
        """
        blocks, bad = {}, set()
        for part in sorted(self.parts_done()):
            record = self._objects.get_json(f"{self.path}/parts/{part}.json")
            name, starts = record["array"], record["starts"]
            array = self._require(name, mode="r", whole=True)
            ends = [min(start + chunk, size) for start, chunk, size in zip(starts, array.chunks, array.shape, strict=True)]
            blocks[part] = f"{self.path}/{name}/c/" + "/".join(str(at // chunk) for at, chunk in zip(starts, array.chunks, strict=True))
            try:
                values = self._read_window(array, name, tuple(map(slice, starts, ends)))
                sound = checksum(_whole_chunk(array, values)) == record["crc32c"]
            except CorruptError:
                sound = False
            if not sound:
                bad.add(part)
        together = {part for part in blocks for one in bad if part.startswith(f"{one}-") or one.startswith(f"{part}-")}
        # And what these were made with: the rest of the same task's parts.
        together |= {part for part in blocks for one in together if part.startswith(f"{one}-")}
        return {part: block for part, block in blocks.items() if part in bad | together}

    def _read_window(self, array: zarr.Array[Any], name: str, window: tuple[slice, ...]) -> Array:
        try:
            with self._objects.explained(f"{self.path}/{name}"):
                folder = self._objects.local_path(f"{self.path}/{name}/c")
                if folder is None or array.ndim == 0:
                    return np.asarray(array[window])
                fill = None if isinstance(array.store, _Whole) else array.fill_value
                return read_window(folder, array.shape, array.chunks, array.dtype, fill, window)
        except OSError as error:
            raise StoreError(
                "a file of the store cannot be read",
                where=f"{self._objects.uri}/{self.path}/{name}, window {window}",
                got=str(error),
                remedy="check the disk and permissions",
            ) from error
        except ValueError as error:
            raise CorruptError(
                "a file of the store is damaged",
                where=f"{self._objects.uri}/{self.path}/{name}, window {window}",
                got=str(error),
                remedy="run the experiment again: what is damaged is put aside and computed anew",
                damaged=self.path,
            ) from error

    def _chunk_path(self, name: str, block: Sequence[int]) -> Path | None:
        """Where a chunk's file lies on this machine; None in a bucket."""
        return self._objects.local_path(f"{self.path}/{name}/c/{'/'.join(map(str, block))}")

    def _open(self, name: str, mode: str = "r", *, whole: bool = False) -> zarr.Array[Any] | None:
        """The array, None where there is none. ``whole``: reading a block that is not there raises, and is not the fill value."""
        try:
            with self._objects.explained(f"{self.path}/{name}"):
                group = _Whole(self._group().store) if whole else self._group()
                return zarr.open_array(group, path=name, mode=cast("Any", mode), zarr_format=3)
        except FileNotFoundError:
            return None
        # What damage to zarr.json comes to depends on where it is.
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(
                "the description of an array is damaged",
                where=f"{self._objects.uri}/{self.path}/{name}/zarr.json",
                got=str(error),
                remedy="run the experiment again: the array is put aside and computed anew",
                damaged=self.path,
            ) from error

    def _group(self) -> ObjectStore[Any]:
        """The artifact's own folder, which is one Zarr group; opened once, since a bucket's handle has its own connections."""
        if self._opened is None:
            self._opened = ObjectStore(self._objects.below(self.path))
        return self._opened

    def _require(self, name: str, mode: str, *, whole: bool = False) -> zarr.Array[Any]:
        array = self._open(name, mode, whole=whole)
        if array is None:
            where = f"{self._objects.uri}/{self.path}"
            if self.is_committed():
                raise CorruptError(
                    "an array of a finished artifact is gone",
                    where=where,
                    expected=name,
                    got="nothing",
                    remedy="run the experiment again: the artifact is put aside and computed anew",
                    damaged=self.path,
                )
            raise StoreError("no such array", where=where, expected=name, got="nothing")
        return array

    def _not_committed(self) -> NotCommittedError:
        return NotCommittedError(
            "this artifact is not finished",
            where=f"{self._objects.uri}/{self.path}",
            expected="a manifest",
            got=f"{len(self.parts_done())} recorded parts and no manifest",
            remedy="run the experiment again: only what is missing is computed",
        )


class _Whole(ObjectStore[Any]):
    """A folder of which every block of every array must be there. (Zarr takes a missing block for one of fill values.)"""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None and "/c/" in key:
            raise ValueError(f"the file {key} is not there")
        return found


class ArrayReader:
    """Windows of one committed array."""

    def __init__(self, artifact: Artifact, name: str, array: zarr.Array[Any]) -> None:
        self._artifact = artifact
        self._name = name
        self._array = array
        self.shape = tuple(array.shape)
        self.chunks = tuple(array.chunks)

    def read(self, *window: slice) -> Array:
        full = window + (slice(None),) * (len(self.shape) - len(window))
        return self._artifact._read_window(self._array, self._name, full)


def _whole_chunk(array: zarr.Array[Any], values: Array) -> Array:
    """``values`` as the bytes of their chunk: contiguous, little-endian; at the array's edge the rest is the fill value."""
    values = values.astype(array.dtype.newbyteorder("<"), copy=False)
    if values.shape == tuple(array.chunks):
        return np.ascontiguousarray(values)
    chunk = np.full(array.chunks, array.fill_value, dtype=values.dtype)
    chunk[tuple(map(slice, values.shape))] = values
    return chunk


def _refuse_non_finite(values: Array, where: str) -> None:
    first = first_non_finite(values) if values.dtype.kind == "f" else None
    if first is not None:
        raise NonFiniteError("NaN or Inf would be stored", where=where, expected="finite numbers", got=f"{values[first]} at {first}")
