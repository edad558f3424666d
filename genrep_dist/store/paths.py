"""The layout of a store. This is the only module of the package that builds or reads paths below a store's root."""

from __future__ import annotations

from collections.abc import Sequence

EXPERIMENTS = "experiments"
ACCESS_MARKER = ".access-"
"""Prefix of the file that proves write access."""


class ArtifactPaths:
    """The Zarr group of one artifact, its manifest and the ``records`` of its parts."""

    def __init__(self, kind: str, key: str) -> None:
        self.folder = f"artifacts/{kind}/{key[:2]}/{key}"
        self.manifest = f"{self.folder}/manifest.json"
        self.metadata = f"{self.folder}/zarr.json"
        self.records = f"{self.folder}/parts"

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


class LedgerPaths:
    """One ledger: its folder of parts and, below it, the folder of ``damaged`` parts."""

    def __init__(self, training: str) -> None:
        self.folder = f"ledger/{training}"
        self.damaged = f"{self.folder}/refused"
        self.compaction_lease = f"{self.folder}/lease"

    def damaged_part(self, part: str, digest: str) -> str:
        name = part.removeprefix(f"{self.folder}/").removesuffix(".parquet").replace("/", "-")
        return f"{self.damaged}/{name}-{digest}.parquet"

    def is_part(self, path: str) -> bool:
        return path.endswith(".parquet") and not path.startswith(f"{self.damaged}/")


def ledger_part(folder: str, digest: str) -> str:
    """A part of the ledger in ``folder``, named by the sha256 ``digest`` of its bytes."""
    return f"{folder}/part-{digest}.parquet"


class ExperimentPaths:
    """What a store keeps about the experiment ``name``."""

    def __init__(self, name: str) -> None:
        self.folder = f"{EXPERIMENTS}/{name}"
        self.record = f"{self.folder}/record.json"
        self.progress = f"{self.folder}/progress.json"
        self.quarantine = f"{self.folder}/quarantine.json"
        self.lease = f"{self.folder}/lease"
        self.doctor = f"{self.folder}/doctor.json"
        self.repeat = f"{self.folder}/repeat.json"

    def requests(self, results: str) -> str:
        return f"{self.folder}/requests-{results}.parquet"


def experiment_name(path: str) -> str:
    """The experiment to which a path below EXPERIMENTS belongs."""
    return path.split("/")[1]


class ResultPaths:
    """The published results of the experiment ``name``."""

    def __init__(self, name: str) -> None:
        self.folder = f"results/{name}"
        self.manifest = f"{self.folder}/manifest.json"
        self.config = f"{self.folder}/config.yaml"

    def table(self, name: str) -> str:
        return f"{self.folder}/{name}.parquet"

    def file(self, name: str) -> str:
        return f"{self.folder}/{name}"


def data_table(digest: str, split: str) -> str:
    """The samples of ``split``, 'train' or 'test', of the data set with this digest."""
    return f"data/{digest}/{split}.parquet"


def damaged_copy(path: str, suffix: str) -> str:
    """Where a damaged file or folder is moved to."""
    return f"refused/{path}-{suffix}"


CLAIMS = "claims"
"""The folder of what running drivers train, so that no other one trains it too."""
CLAIMS_LEASE = f"{CLAIMS}/lease"


def claim_record(token: str) -> str:
    """The claim of one driver."""
    return f"{CLAIMS}/{token}.json"


def claimed_names(token: str) -> str:
    """The names of what it has claimed."""
    return f"{CLAIMS}/{token}.names"


def is_claim(path: str) -> bool:
    return path.endswith(".json") and not path.startswith(f"{CLAIMS_LEASE}/")


def lease_record(folder: str, number: int) -> str:
    return f"{folder}/{number:012d}.json"


def lease_number(path: str) -> int:
    return int(path.rpartition("/")[2].removesuffix(".json"))
