"""The layout of a store. This is the only module of the package that builds or reads paths below a store's root."""

from __future__ import annotations

from collections.abc import Sequence

EXPERIMENTS = "experiments"
DAMAGE_NOTES = "damaged"
"""Notes of damaged files that were found outside of a run."""
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

    def is_metadata(self, path: str) -> bool:
        """Whether ``path`` holds the metadata of the group or of one of its arrays."""
        return path.endswith("/zarr.json")

    def relative(self, path: str) -> str:
        return path.removeprefix(f"{self.folder}/")

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
        self.publications = f"{self.folder}/publications"

    def requests(self, results: str) -> str:
        return f"{self.folder}/requests-{results}.parquet"


def experiment_name(path: str) -> str:
    """The experiment to which a path below EXPERIMENTS belongs."""
    return path.split("/")[1]


class ResultPaths:
    """The published results of the experiment ``name``, or results of it that are in another ``folder``."""

    def __init__(self, name: str, folder: str | None = None) -> None:
        self.name = name
        self.folder = folder or f"results/{name}"
        self.manifest = f"{self.folder}/manifest.json"
        self.config = f"{self.folder}/config.yaml"

    def table(self, name: str) -> str:
        return f"{self.folder}/{name}.parquet"

    def file(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def previous(self, digest: str) -> ResultPaths:
        """Where results of this name are kept that others have replaced; ``digest`` of their experiment."""
        return ResultPaths(self.name, f"{self.folder}/previous/{digest[:12]}")


def data_table(digest: str, split: str) -> str:
    """The samples of ``split``, 'train' or 'test', of the data set with this digest."""
    return f"data/{digest}/{split}.parquet"


def damage_note(digest: str) -> str:
    """The note about a damaged file or artifact whose path has this digest."""
    return f"{DAMAGE_NOTES}/{digest}.json"


def data_folder(digest: str) -> str:
    return f"data/{digest}"


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


def publication_record(folder: str, number: int) -> str:
    return f"{folder}/{number:012d}.json"


def staging_folder(folder: str, number: int, token: str) -> str:
    return f"{folder}/{number:012d}-{token}"


def publication_number(path: str) -> int:
    """The number of a publication's record; 0 for any other file in the folder of publications."""
    name = path.rpartition("/publications/")[2]
    return int(name[:12]) if name[12:] == ".json" and name[:12].isdigit() else 0


def staged_number(path: str) -> float:
    """The number of the publication to which a staged file belongs; infinite for a record."""
    name = path.rpartition("/publications/")[2]
    return int(name[:12]) if name[12:13] == "-" and name[:12].isdigit() else float("inf")


def lease_record(folder: str, number: int) -> str:
    return f"{folder}/{number:012d}.json"


def lease_number(path: str) -> int:
    """The number of a lease's record; 0 for a file of something else."""
    number = path.rpartition("/")[2].removesuffix(".json")
    return int(number) if number.isdigit() else 0
