from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from genrep_dist import registry
from genrep_dist.errors import ConfigError
from genrep_dist.registry import Registry


def colours() -> Registry[str]:
    made: Registry[str] = Registry("colour", "tests.colours")
    made.register("red", "string:ascii_lowercase")
    return made


def test_a_value_as_text_is_imported_when_it_is_used() -> None:
    assert colours().get("red") == "abcdefghijklmnopqrstuvwxyz"


def test_names_come_in_the_order_of_registration_and_can_be_removed() -> None:
    made = colours()
    made.register("blue", "string:digits")
    assert list(made) == ["red", "blue"]
    made.unregister("red")
    made.unregister("red")
    assert list(made) == ["blue"]
    assert "red" not in made


def test_a_taken_name_is_refused_and_the_same_value_is_not() -> None:
    made = colours()
    made.register("red", "string:ascii_lowercase")
    with pytest.raises(ConfigError, match=r"two colours have the same name[\s\S]*red, which is taken"):
        made.register("red", "string:digits")


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"there is no colour 'rad'[\s\S]*did you mean red\?"):
        colours().get("rad")


def test_entry_points_are_found_by_name_and_in_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [EntryPoint("green", "string:digits", "tests.colours"), EntryPoint("red", "string:digits", "tests.colours")]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "tests.colours" else [])
    made = colours()
    assert "green" in made
    assert made.get("green") == "0123456789"
    assert made.get("red") == "abcdefghijklmnopqrstuvwxyz", "an entry point replaced what is registered"
    assert list(made) == ["red", "green"]
