from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

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


def declare(monkeypatch: pytest.MonkeyPatch, *found: tuple[str, str]) -> None:
    """Entry points of the colours: (name, path)."""
    points = [EntryPoint(name, path, "tests.colours") for name, path in found]
    for number, point in enumerate(points):
        vars(point)["dist"] = SimpleNamespace(name=f"paints-{number}")
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "tests.colours" else [])


def test_entry_points_are_found_by_name_and_in_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, ("green", "string:digits"), ("red", "string:ascii_lowercase"))
    made = colours()
    assert "green" in made
    assert made.get("green") == "0123456789"
    assert list(made) == ["red", "green"]


def test_entry_points_that_cannot_be_added_are_told_and_the_others_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, ("red", "string:digits"), ("Dark Red", "string:digits"), ("green", "string:digits"), ("green", "string:hexdigits"))
    made = colours()
    with pytest.warns(UserWarning, match="colour") as told:
        assert list(made) == ["red", "green"]
    first, second, third = (str(one.message) for one in told)
    assert "taken by string:ascii_lowercase" in first
    assert "string:digits of package paints-0" in first
    assert "not usable" in second
    assert "package paints-1" in second
    assert "taken by string:digits of package paints-2" in third
    assert "string:hexdigits of package paints-3" in third
    assert made.get("red") == "abcdefghijklmnopqrstuvwxyz", "an entry point replaced what is registered"
    assert "blue" not in made  # read again, and not told again
    assert [str(fault) for fault in made.faults()] == [first, second, third]


def test_what_cannot_be_loaded_stops_only_those_who_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, ("grey", "tests.nowhere:Grey"), ("green", "string:digits"))
    made = colours()
    assert made.usable() == ["abcdefghijklmnopqrstuvwxyz", "0123456789"]
    (fault,) = made.faults()
    assert "grey = tests.nowhere:Grey of package paints-0" in str(fault)
    with pytest.raises(ConfigError, match="'grey' cannot be loaded"):
        made.get("grey")
    with pytest.raises(ConfigError, match="'grey' cannot be loaded"):
        made.values()


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


class Shape(ABC):
    name: str
    corners: int

    @abstractmethod
    def area(self) -> float: ...


def square(**attributes: Any) -> type:
    return type("Square", (Shape,), {"name": "square", "corners": 4, "area": lambda self: 1.0, **attributes})


def test_values_are_made_once_and_checked() -> None:
    made: Registry[Shape] = Registry("shape", "tests.solids", Shape, instances=True)
    made.register("square", square())
    assert made.get("square").area() == 1.0
    assert made.get("square") is made.get("square")
    made.register("ready", square(name="ready")())
    assert made.get("ready").corners == 4


@pytest.mark.parametrize(
    ("value", "says"),
    [(None, "not a subclass of Shape"), (3, "not a subclass"), (square(name="circle"), "'square' is not the shape's own name, circle")],
)
def test_values_of_another_kind_are_refused(value: Any, says: str) -> None:
    made: Registry[Shape] = Registry("shape", "tests.solids", Shape, instances=True)
    made.register("square", value)
    with pytest.raises(ConfigError, match=rf"the shape 'square' cannot be loaded[\s\S]*TypeError: [\s\S]*{says}"):
        made.get("square")


def test_a_value_that_is_not_usable_is_taken_back() -> None:
    made: Registry[str] = Registry("colour", "tests.colours", check=str.encode)
    made.register("red", "string:digits")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        made.register_loaded("blue", "string:nothing")
    assert list(made) == ["red"]
    assert made.register_loaded("blue", "string:hexdigits") == "0123456789abcdefABCDEF"
