"""The launcher's files through Ray's own validation, and what they must say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError  # type: ignore[import-untyped]

from tests.cluster.files import LAUNCHERS, load

EACH = pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a file before it talks to anybody; raises what it raises."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    complete: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(complete)
    return complete


@EACH
def test_ray_accepts_the_file(path: Path) -> None:
    complete = prepared(load(path))
    workers = [kind for name, kind in complete["available_node_types"].items() if kind.get("min_workers")]
    assert [kind["min_workers"] for kind in workers] == [2]
    assert complete["max_workers"] >= 2


@EACH
def test_ray_refuses_a_field_that_it_does_not_know(path: Path) -> None:
    with pytest.raises(ValidationError, match="setup_comands"):
        prepared(load(path) | {"setup_comands": []})


@EACH
def test_the_token_is_brought_and_the_dashboard_stays_on_loopback(path: Path) -> None:
    config = load(path)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    (head,) = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--num-cpus=0" in head
    assert "-v /shared:/shared" in config["docker"]["run_options"]


def test_on_aws_no_group_is_made_that_opens_ssh_to_all() -> None:
    config = load(LAUNCHERS[0])
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"] == ["sg-CHANGE-ME"]
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    assert "security_group" not in config["provider"]
