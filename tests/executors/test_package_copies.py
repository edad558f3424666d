"""A worker proves that its copy of the package is the driver's, before it reads anything else of the job."""

from __future__ import annotations

import pickle
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

import genrep_dist
from genrep_dist.errors import ConfigError, FailureKind
from genrep_dist.executors import ray_executor  # noqa: F401 - sends the functions of a worker by value
from genrep_dist.executors.package_copies import require_same_copy
from genrep_dist.executors.worker import Worker, package_copy, run_unit

PACKAGE = Path(genrep_dist.__file__).parent
ON_A_WORKER = """
import pickle, sys
run_unit, Worker = pickle.loads(bytes.fromhex(sys.argv[1]))
unreadable = ["a reference that nobody reads"]
differing = run_unit(sys.argv[2], None, unreadable, unreadable), Worker(sys.argv[2], None).ready()
assert not [name for name in sys.modules if name.startswith("genrep_dist")]
sys.stdout.buffer.write(pickle.dumps(differing))
"""


def by_value(functions: object) -> bytes:
    """As Ray sends them to a worker."""
    data: bytes = cloudpickle.dumps(functions)  # type: ignore[no-untyped-call]
    return data


def on_a_worker(folder: Path) -> list[Any]:
    """What a process returns that has the package of ``folder``, for the driver's digest: of a task, and of an actor."""
    arguments = [by_value((run_unit, Worker)).hex(), package_copy()["digest"]]
    # Isolated, so that the package of this environment is not found.
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path[:] = [{str(folder)!r}, *(p for p in sys.path if 'python3' in p)]\n{ON_A_WORKER}",
    ]
    done = subprocess.run([*command, *arguments], capture_output=True, check=True, cwd=folder, env={"PYTHONPATH": str(folder)})
    return list(pickle.loads(done.stdout))


def changed_value(folder: Path) -> None:
    """The same version, one number changed in one file."""
    shutil.copytree(PACKAGE, folder / "genrep_dist", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "genrep_dist/workflow/retrain.py"
    file.write_text(file.read_text().replace("output.double()", "output.double() * 1.05"))


def added_file(folder: Path) -> None:
    shutil.copytree(PACKAGE, folder / "genrep_dist", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "genrep_dist/core/kernels/another.py").write_text("")


def renamed_file(folder: Path) -> None:
    shutil.copytree(PACKAGE, folder / "genrep_dist", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "genrep_dist/core/kernels/ntk.py").rename(folder / "genrep_dist/core/kernels/ntk_kernel.py")


def much_older(folder: Path) -> None:
    """None of the modules that exist today."""
    (folder / "genrep_dist").mkdir()
    (folder / "genrep_dist/__init__.py").write_text('__version__ = "0.0.1"\n')


def fails_to_import(folder: Path) -> None:
    (folder / "genrep_dist").mkdir()
    (folder / "genrep_dist/__init__.py").write_text('__version__ = "9.0"\nraise ImportError("another Python")\n')


@pytest.mark.parametrize("make", [changed_value, added_file, renamed_file, much_older, fails_to_import])
def test_another_copy_is_refused_whatever_it_contains(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    for result in on_a_worker(tmp_path):
        with pytest.raises(ConfigError, match="another copy of this package") as caught:
            require_same_copy(package_copy(), result)
        error = caught.value
        assert error.failure_kind is FailureKind.FATAL
        assert f"genrep_dist {genrep_dist.__version__}, sources" in error.expected
        assert str(PACKAGE) in error.expected
        version = {"much_older": "0.0.1", "fails_to_import": "9.0"}.get(make.__name__, genrep_dist.__version__)
        assert f"genrep_dist {version}, sources" in error.got
        assert str(tmp_path) in error.got
        assert platform.node() in error.got
        assert platform.node() in error.where


def test_a_worker_without_the_package_is_refused(tmp_path: Path) -> None:
    for result in on_a_worker(tmp_path):
        with pytest.raises(ConfigError, match="not installed"):
            require_same_copy(package_copy(), result)


def test_the_digest_is_that_of_the_sources_and_not_of_the_place(tmp_path: Path) -> None:
    """Compiled files and data, which a wheel and a checkout do not share, are left out."""
    shutil.copytree(PACKAGE, tmp_path / "genrep_dist", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "genrep_dist/__pycache__").mkdir()
    (tmp_path / "genrep_dist/__pycache__/units.cpython-311.pyc").write_bytes(b"x")
    (tmp_path / "genrep_dist/experiments").mkdir(exist_ok=True)
    arguments = "import pickle, sys; copy = pickle.loads(bytes.fromhex(sys.argv[1])); print(copy()['digest'])"
    command = [sys.executable, "-c", arguments, by_value(package_copy).hex()]
    done = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, text=True)
    assert done.stdout.strip() == package_copy()["digest"]


def statistics(job: object, unit: object) -> dict[str, float]:
    assert (job, unit) == ("job", "unit")
    return {"models": 1.0}


def test_equal_copies_run_the_unit() -> None:
    payload, digest = ("job", statistics), package_copy()["digest"]
    read = {"payload": payload, "unit": "unit"}.__getitem__
    assert run_unit(digest, read, ["payload"], ["unit"]) == {"models": 1.0}
    worker = Worker(digest, read)
    assert worker.ready() == {}
    assert worker.run(["payload"], "unit") == worker.run(["payload"], "unit") == {"models": 1.0}
