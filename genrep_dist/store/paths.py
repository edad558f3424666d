"""The layout of a store. This is the only module of the package that builds or reads paths below a store's root."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

EXPERIMENTS = "experiments"
RESULTS = "results"
ARTIFACTS = "artifacts"
LEDGERS = "ledger"
DATA = "data"
REFUSED = "refused"
"""What was damaged and moved away."""
ORIGINALS = ".originals"
"""Suffix of the name of a run that only trains the models of an experiment, for `genrep export problem`."""
DAMAGE_NOTES = "damaged"
"""Notes of damaged files that were found outside of a run."""
ACCESS_MARKER = ".access-"
"""Prefix of the file that proves write access."""


class ArtifactPaths:
    """The Zarr group of one artifact, its manifest and the ``records`` of its parts."""

    def __init__(self, kind: str, key: str) -> None:
        self.folder = f"{ARTIFACTS}/{kind}/{key[:2]}/{key}"
        self.manifest = f"{self.folder}/manifest.json"
        self.metadata = f"{self.folder}/zarr.json"
        self.records = f"{self.folder}/parts"

    @classmethod
    def of_folder(cls, folder: str) -> ArtifactPaths:
        """The artifact whose folder this is."""
        _, kind, _, key = folder.split("/")
        return cls(kind, key)

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
        self.folder = f"{LEDGERS}/{training}"
        self.damaged = f"{self.folder}/refused"
        self.compaction_lease = f"{self.folder}/lease"

    def damaged_part(self, part: str, digest: str) -> str:
        name = part.removeprefix(f"{self.folder}/").removesuffix(".parquet").replace("/", "-")
        return f"{self.damaged}/{name}-{digest}.parquet"

    def unfinished(self, name: str) -> str:
        """The state of an unfinished training that is called ``name``."""
        return f"{self.folder}/unfinished/{name}.state"

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
    """The experiment to which a path below EXPERIMENTS or RESULTS belongs."""
    return path.split("/")[1]


def recorded_names(paths: Iterable[str]) -> list[str]:
    """The experiments that have a record among the ``paths`` below EXPERIMENTS, sorted; others were removed, or never began."""
    return sorted({experiment_name(path) for path in paths if path == ExperimentPaths(experiment_name(path)).record})


def artifact_folder(path: str) -> str:
    """The folder of the artifact to which a path below ARTIFACTS belongs; empty for a file of no artifact."""
    parts = path.split("/")
    return "/".join(parts[:4]) if len(parts) > 4 and parts[0] == ARTIFACTS else ""


def is_artifact(folder: str) -> bool:
    """Whether a folder is that of an artifact."""
    return folder.startswith(f"{ARTIFACTS}/") and folder.count("/") == 3


def store_part(path: str) -> str:
    """The part of a store to which a path belongs: its top folder, or the artifacts of one kind."""
    top, *below = path.split("/")
    return f"{ARTIFACTS}/{below[0]}" if top == ARTIFACTS and below else top


def entry_folder(path: str) -> str:
    """``top/name`` of a path below a folder with an entry for each name: a ledger, a data set, a folder of results."""
    return "/".join(path.split("/")[:2])


class ResultPaths:
    """The published results of the experiment ``name``, or results of it that are in another ``folder``."""

    def __init__(self, name: str, folder: str | None = None) -> None:
        self.name = name
        self.folder = folder or f"{RESULTS}/{name}"
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
    return f"{DATA}/{digest}/{split}.parquet"


def damage_note(digest: str) -> str:
    """The note about a damaged file or artifact whose path has this digest."""
    return f"{DAMAGE_NOTES}/{digest}.json"


def data_folder(digest: str) -> str:
    return f"{DATA}/{digest}"


def damaged_copy(path: str, suffix: str) -> str:
    """Where a damaged file or folder is moved to."""
    return f"{REFUSED}/{path}-{suffix}"


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
