"""The tests on a GPU run where only torch, numpy and pytest are installed: here on a CPU, with all other packages out of reach."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.experiments import ROOT

WITHOUT_OTHERS = """
import sys
import pytest

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "zarr", "polars", "pydantic", "mlflow", "pyarrow", "cachetools", "yaml", "typer", "rich"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
options = ["-c", "tests/gpu/pytest.ini", "--confcutdir", "tests/gpu", "tests/gpu", "-q", "-p", "no:xdist", "-p", "no:hypothesispytest"]
sys.exit(pytest.main([*options, "-k", "(cnn and sgd) or (text and same) or systems or gradients or company and regression"]))
"""


def test_it_needs_torch_numpy_and_pytest_alone() -> None:
    environment = {**os.environ, "GENREP_TEST_DEVICE": "cpu", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_OTHERS], cwd=ROOT, check=False, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
