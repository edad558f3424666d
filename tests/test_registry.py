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
    with pytest.raises(ConfigError, match=r"two colours have the same name[\s\S]*string:ascii_lowercase"):
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


def test_a_value_that_cannot_be_loaded_is_refused() -> None:
    made = colours()
    made.register("nowhere", "tests.nowhere:Colour")
    with pytest.raises(ConfigError, match=r"cannot be loaded[\s\S]*nowhere = tests\.nowhere:Colour[\s\S]*ModuleNotFoundError"):
        made.get("nowhere")


def test_a_class_that_is_defined_again_replaces_the_earlier_one() -> None:
    made: Registry[type] = Registry("shape", "tests.shapes")
    first, second = (type("Circle", (), {"__module__": "tests.shapes"}) for _ in range(2))
    made.register("circle", first)
    made.register("circle", second)
    assert made.get("circle") is second
    with pytest.raises(ConfigError, match=r"two shapes have the same name[\s\S]*tests\.shapes:Circle"):
        made.register("circle", type("Square", (), {}))


def test_a_name_is_lower_case() -> None:
    with pytest.raises(ConfigError, match=r"name of a colour is not usable[\s\S]*'Dark Red'"):
        colours().register("Dark Red", "string:digits")


def test_values_are_made_once_and_checked() -> None:
    made: Registry[list[int]] = Registry("list", "tests.lists", make=lambda size: [0] * size)
    made.register("two", 2)
    assert made.get("two") == [0, 0]
    assert made.get("two") is made.get("two")
    made.register("none", None)
    with pytest.raises(ConfigError, match=r"the list 'none' cannot be loaded[\s\S]*TypeError"):
        made.get("none")
