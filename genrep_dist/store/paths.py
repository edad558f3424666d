"""The layout of a store. This is the only module of the package that builds or reads paths below a store's root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXPERIMENTS = "experiments"
ACCESS_MARKER = ".access-"
"""Prefix of the file that proves write access."""


@dataclass(frozen=True)
class ArtifactPaths:
    """The Zarr group of one artifact, its manifest and the records of its parts."""

    kind: str
    key: str

    @property
    def folder(self) -> str:
        return f"artifacts/{self.kind}/{self.key[:2]}/{self.key}"

    @property
    def manifest(self) -> str:
        return f"{self.folder}/manifest.json"

    @property
    def metadata(self) -> str:
        return f"{self.folder}/zarr.json"

    @property
    def records(self) -> str:
        """The folder of the part records."""
        return f"{self.folder}/parts"

    def record(self, part: str) -> str:
        return f"{self.records}/{part}.json"

    def part_name(self, record: str) -> str:
        return record.removeprefix(f"{self.records}/").removesuffix(".json")

    def array(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def array_metadata(self, name: str) -> str:
        return f"{self.folder}/{name}/zarr.json"

    def chunks(self, name: str) -> str:
        return f"{self.folder}/{name}/c"

    def chunk(self, name: str, index: Sequence[int]) -> str:
        return "/".join([self.chunks(name), *map(str, index)])


def is_chunk(key: str) -> bool:
    """Whether a key of a Zarr group is that of a chunk."""
    return "/c/" in key


@dataclass(frozen=True)
class LedgerPaths:
    """The parts of one ledger."""

    training: str

    @property
    def folder(self) -> str:
        return f"ledger/{self.training}"

    @property
    def damaged(self) -> str:
        """The folder of damaged parts."""
        return f"{self.folder}/refused"

    def damaged_part(self, part: str, digest: str) -> str:
        name = part.removeprefix(f"{self.folder}/").removesuffix(".parquet").replace("/", "-")
        return f"{self.damaged}/{name}-{digest}.parquet"

    def is_part(self, path: str) -> bool:
        return path.endswith(".parquet") and not path.startswith(f"{self.damaged}/")


def ledger_part(folder: str, digest: str) -> str:
    """A part of the ledger in ``folder``, named by the sha256 ``digest`` of its bytes."""
    return f"{folder}/part-{digest}.parquet"


@dataclass(frozen=True)
class ExperimentPaths:
    """What a store keeps about one experiment, by its name."""

    name: str

    @property
    def folder(self) -> str:
        return f"{EXPERIMENTS}/{self.name}"

    @property
    def record(self) -> str:
        return f"{self.folder}/record.json"

    @property
    def progress(self) -> str:
        return f"{self.folder}/progress.json"

    @property
    def quarantine(self) -> str:
        return f"{self.folder}/quarantine.json"

    @property
    def lease(self) -> str:
        return f"{self.folder}/lease"

    def requests(self, question: str) -> str:
        return f"{self.folder}/asked-{question}.parquet"


def experiment_name(path: str) -> str:
    """The experiment to which a path below EXPERIMENTS belongs."""
    return path.split("/")[1]


@dataclass(frozen=True)
class ResultPaths:
    """The published results of one experiment, by its name."""

    name: str

    @property
    def folder(self) -> str:
        return f"results/{self.name}"

    @property
    def manifest(self) -> str:
        return self.file("manifest.json")

    @property
    def config(self) -> str:
        return self.file("config.yaml")

    def table(self, name: str) -> str:
        return self.file(f"{name}.parquet")

    def file(self, name: str) -> str:
        return f"{self.folder}/{name}"


def data_table(digest: str, split: str) -> str:
    """The samples of ``split``, 'train' or 'test', of the data set with this digest."""
    return f"data/{digest}/{split}.parquet"


def damaged_copy(path: str, suffix: str) -> str:
    """Where a damaged file or folder is moved to."""
    return f"refused/{path}-{suffix}"


def lease_record(folder: str, number: int) -> str:
    return f"{folder}/{number:012d}.json"


def lease_number(path: str) -> int:
    return int(path.rpartition("/")[2].removesuffix(".json"))
