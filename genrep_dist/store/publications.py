"""Publications of an experiment's results, fenced by the number of the lease under which they were made.

A publication is first written to a folder of its own. One write makes it visible: that of its record, ``<number>.json``. **The record
with the highest number is the one that counts**, so a driver that slept through its lease, and wakes up, changes nothing that is visible:
another driver has a higher number. Then the files are moved to the results' folder, where people and other programs read them; every file
is found in one of the two places, with the digest that the record states.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from genrep_dist.errors import CorruptError, DamagedFile, StoreError
from genrep_dist.store.damage_notes import noted
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import (
    ExperimentPaths,
    ResultPaths,
    publication_number,
    publication_record,
    staged_number,
    staging_folder,
)

NUMBERS_KEPT = 2
"""Records that are kept: the one that counts, and the one before for those who have just read that it does."""
TRIES = 3
"""Of reading the record that counts, while others are published."""


FIELD_TYPES: Mapping[str, type] = {"question": str, "tables": dict, "files": dict, "record": dict, "number": int, "staged": str}
"""Of a manifest; earlier versions wrote the first two."""


def _is_manifest(found: object) -> bool:
    return (
        isinstance(found, dict)
        and "question" in found
        and all(isinstance(found[name], kind) for name, kind in FIELD_TYPES.items() if name in found)
    )


class Publications:
    """The publications of the experiment ``name``. Methods raise StoreError if the store fails, CorruptError for a damaged record."""

    def __init__(self, objects: Objects, name: str) -> None:
        self._objects = objects
        self._folder = ExperimentPaths(name).publications
        self._token = secrets.token_hex(4)
        self.results = ResultPaths(name)

    def staged(self, number: int) -> ResultPaths:
        """Where this object's files of publication ``number`` are written before it is visible: nobody else writes there."""
        return ResultPaths(self.results.name, staging_folder(self._folder, number, self._token))

    def highest(self) -> int:
        """The number of the visible publication; 0 if there is none, or if it was made by a version without numbers."""
        return max(self._numbers(), default=0)

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the visible publication; None if there is none, or if its manifest was deleted from the results' folder."""
        if not self._objects.exists(self.results.manifest):
            return None
        for _ in range(TRIES):
            number = self.highest()
            path = publication_record(self._folder, number) if number else self.results.manifest
            with suppress(FileNotFoundError):  # a newer one was published meanwhile, and this one deleted
                found = self._objects.get_json(path)
                if _is_manifest(found):
                    return dict(found)
                error = CorruptError(
                    "this is not the manifest of results",
                    where=f"{self._objects.uri}/{path}",
                    got=str(found)[:200],
                    remedy="run the experiment again: the file is moved away and recreated",
                    damaged=DamagedFile(path),
                )
                raise noted(self._objects, error)
        return None

    def publish(
        self,
        number: int,
        manifest: Mapping[str, Any],
        files: Sequence[str],
        confirm: Callable[[], object],
        *,
        tables: Sequence[str] = (),
    ) -> None:
        """Make publication ``number``, whose ``files`` are staged, visible, and move them to the results' folder.

        Of the ``tables``, those that are not among the files were published by an earlier experiment under this name and are removed.
        ``confirm`` raises if this process does not hold the lease any more. StoreError if a publication with a higher number was made
        meanwhile: then that one stays visible.
        """
        confirm()
        self._require_highest(number)
        staged = self.staged(number)
        digests = {name: self._digest(staged.file(name)) for name in files}
        record = {
            **manifest,
            "number": number,
            "staged": staged.folder,
            "tables": {name: digest for name, digest in digests.items() if name.endswith(".parquet")},
            "files": {name: digest for name, digest in digests.items() if not name.endswith(".parquet")},
        }
        self._objects.put_json(publication_record(self._folder, number), record)
        for name in files:
            self._require_highest(number)
            with suppress(FileNotFoundError):  # moved away by a driver that has passed this one, which is told below
                self._objects.move(staged.file(name), self.results.file(name))
        for name in tables:
            if name not in files and self._objects.exists(self.results.file(name)):
                self._require_highest(number)
                self._objects.delete(self.results.file(name))
        self._require_highest(number)
        self._objects.put_json(self.results.manifest, record)
        latest = self.highest()
        if latest > number:
            # This driver slept between the check and the write. Programs that read the file alone find the visible publication again.
            self._objects.put_json(self.results.manifest, self._objects.get_json(publication_record(self._folder, latest)))
        self._require_highest(number)
        for old in sorted(self._numbers())[:-NUMBERS_KEPT]:
            self._objects.delete(publication_record(self._folder, old))
        for path in self._objects.list(self._folder):
            if staged_number(path) < number:  # of a publication that was not finished
                self._objects.delete(path)

    def keep_previous(self, question: str) -> str | None:
        """Copy the visible publication, which is to be replaced, unless it is of ``question``; the folder below the store.

        Its manifest is written last: a folder with a manifest is complete. None if there is nothing to keep.
        """
        found = self.manifest()
        if found is None or found["question"] == question:
            return None
        kept = self.results.previous(found["question"])
        if self._objects.exists(kept.manifest) and self._objects.get_json(kept.manifest) == found:
            return kept.folder
        for name in (*found.get("tables", {}), *found.get("files", {})):
            with suppress(FileNotFoundError):  # damage that was moved away
                self._objects.put(kept.file(name), self._objects.get(self.find(found, name)))
        self._objects.put_json(kept.manifest, found)
        return kept.folder

    def update(self, changes: Mapping[str, Any]) -> None:
        """Change fields of the visible manifest, such as an address."""
        found = self.manifest()
        if found is None:
            return
        changed = {**found, **changes}
        if found.get("number"):
            self._objects.put_json(publication_record(self._folder, found["number"]), changed)
        self._objects.put_json(self.results.manifest, changed)

    def find(self, manifest: Mapping[str, Any], name: str) -> str:
        """The path of a file of the visible publication: while it is moved it is in one of two places."""
        staged = ResultPaths(self.results.name, manifest["staged"]).file(name) if "staged" in manifest else ""
        return staged if staged.startswith(f"{self._folder}/") and self._objects.exists(staged) else self.results.file(name)

    def faults(self, manifest: Mapping[str, Any]) -> list[str]:
        """Paths of files in the results' folder that are not what ``manifest``, the visible one, says; the manifest there among them."""
        digests = {**manifest.get("tables", {}), **manifest.get("files", {})}
        wrong = [self.results.file(name) for name, digest in digests.items() if self._digest(self.results.file(name)) != digest]
        try:
            same = self._objects.get_json(self.results.manifest) == manifest
        except (CorruptError, FileNotFoundError):
            same = False
        return wrong if same else [*wrong, self.results.manifest]

    def _digest(self, path: str) -> str:
        try:
            return hashlib.sha256(self._objects.get(path)).hexdigest()
        except FileNotFoundError:
            return ""

    def _numbers(self) -> list[int]:
        return [number for number in map(publication_number, self._objects.list(self._folder)) if number]

    def _require_highest(self, number: int) -> None:
        highest = self.highest()
        if highest > number:
            raise StoreError(
                "another driver has published results under this name",
                where=f"{self._objects.uri}/{self.results.folder}",
                expected=f"no publication after number {number}, that of this driver's lease",
                got=f"publication {highest}",
                remedy="run the same command again: nothing that is computed is lost",
            )
