"""What docs/security.md promises of the sources, by looking through them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cluster.files import CLUSTER
from tests.cluster.scans import dangers, secrets_in
from tests.experiments import ROOT

SOURCES = sorted([*(ROOT / "genrep_dist").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])
FOLDERS = ("cluster", "docs", "genrep_dist", "jobs", "tests", ".ci")
READABLE = {".py", ".md", ".yaml", ".json", ".toml", ".txt", ".sbatch", ".html", ".css", ".dockerignore", ""}


def written() -> list[Path]:
    """All text that the project consists of."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return sorted(path for path in [*inside, *ROOT.glob("*")] if path.is_file() and path.suffix in READABLE)


def test_nothing_is_unpickled_evaluated_or_unpacked() -> None:
    found = {str(path.relative_to(ROOT)): dangers(path.read_text()) for path in SOURCES}
    assert len(found) > 50
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import cloudpickle",
        "import pickle as p",
        "from pickle import loads",
        "import pickle\npickle.load(file)",
        "import pickle\nload = pickle.Unpickler",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=trusted)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "tar.extractall(folder)",
        "pd.read_pickle(path)",
        "jinja2.Environment(autoescape=False)",
    ],
)
def test_the_scan_finds(line: str) -> None:
    assert dangers(line)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle\ntry:\n    read()\nexcept pickle.UnpicklingError:\n    pass",
        "torch.load(path, map_location='cpu', weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "yaml.safe_load(text)",
        "model.eval()",
        "pl.element().eval()",
        "tar.extractfile(member)",
    ],
)
def test_the_scan_lets_pass(line: str) -> None:
    assert dangers(line) == []


def test_no_key_token_or_password_stands_anywhere() -> None:
    assert len(written()) > 150
    found = {str(path.relative_to(ROOT)): secrets_in(path.read_text()) for path in written()}
    assert {name: values for name, values in found.items() if values} == {}


@pytest.mark.parametrize(
    "parts",
    [
        ("-----BEGIN RSA ", "PRIVATE KEY-----"),
        ("AKIA", "ABCDEFGHIJKLMNOP"),
        ("hf_", "a" * 34),
        ("RAY_AUTH_", "TOKEN=" + "0123456789abcdef" * 4),
        ("auth_", 'token: "3f2a9c' + "b" * 20 + '"'),
        ("aws_secret_", "access_key = ", "'wJalrXUtnFEMI/K7MDENG'"),
        ("postgresql://", "user:hunter2@db:5432/mlflow"),
    ],
)
def test_the_scan_finds_secrets(parts: tuple[str, ...]) -> None:
    assert secrets_in("".join(parts))


@pytest.mark.parametrize(
    "text",
    [
        "RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')",
        "secretRef: {name: genrep-credentials, optional: true}",
        "RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}",
        "http://user:secret@tracking.test",
        "automountServiceAccountToken: false",
        "http://127.0.0.1:8265",
    ],
)
def test_the_scan_lets_references_pass(text: str) -> None:
    assert secrets_in(text) == []


def test_cluster_files_send_nobody_to_another_host() -> None:
    """Images, indices and charts come from where the user says, so only the reader's own machine and documents are addressed."""
    for path in sorted(path for path in CLUSTER.rglob("*") if path.is_file()):
        hosts = set(re.findall(r"[a-z+]+://([A-Za-z0-9.-]+)", path.read_text()))
        assert hosts <= {"127.0.0.1", "docs.ray.io", "mlflow"}, path.name  # mlflow: a service of the reader's own cluster
