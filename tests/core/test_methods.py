"""Method names: the grammar, the catalogue and the messages."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.methods import CHECKPOINTS, NAMED_METHODS, Method, catalogue, describe, parse_method
from genrep_dist.core.scorers import SCORERS
from genrep_dist.errors import MethodError


@given(
    st.sampled_from(sorted(set(KERNELS) - {"influence", "trak", "ekfac", "datainf", "relatif", "ntk-adam"})),
    st.one_of(st.sampled_from(CHECKPOINTS), st.integers(0, 10**6).map("epoch{}".format)),
    st.sampled_from(sorted(IMPORTANCES)),
)
def test_names_of_the_grid_make_the_round_trip(kernel: str, checkpoint: str, importance: str) -> None:
    name = f"{kernel}-{checkpoint}/{importance}"
    method = parse_method(name)
    assert method == Method(name, kernel, checkpoint, importance)
    assert f"{method.kernel}-{method.checkpoint}/{method.importance}" == name


def test_the_kernel_in_the_optimizers_metric_is_not_one_of_the_initial_parameters() -> None:
    assert parse_method("ntk-adam-middle/tracking") == Method("ntk-adam-middle/tracking", "ntk-adam", "middle", "tracking")
    for checkpoint in ("initial", "epoch0"):
        with pytest.raises(MethodError):
            parse_method(f"ntk-adam-{checkpoint}/tracking")


@pytest.mark.parametrize("importance", ["target", "tracking"])
def test_the_influence_kernel_is_one_of_the_final_parameters(importance: str) -> None:
    name = f"influence-final/{importance}"
    assert parse_method(name) == Method(name, "influence", "final", importance)
    for other in (
        f"influence-initial/{importance}",
        f"influence-epoch3/{importance}",
        "influence-final/surrogate",
        "influence-final/descent",
    ):
        with pytest.raises(MethodError):
            parse_method(other)


def test_the_fields_own_names() -> None:
    assert parse_method("tracincp") == Method("tracincp", "ntk", "all", "target")
    assert parse_method("random") == Method("random", "none", "none", "random")
    assert parse_method("influence-function") == Method("influence-function", "influence", "final", "target")
    assert parse_method("representer-point") == Method("representer-point", "last-layer", "final", "surrogate")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ntk-final/trackin", "ntk-final/tracking"),
        ("NTK-final/tracking", "ntk-final/tracking"),
        ("tracin", "tracincp"),
        ("last_layer-final/surrogate", "last-layer-final/surrogate"),
        ("representer_point", "representer-point"),
    ],
)
def test_an_unknown_method_is_told_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(MethodError) as caught:
        parse_method(name)
    assert nearest in caught.value.remedy
    assert repr(name) in str(caught.value)
    assert "last-layer" in caught.value.expected


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "ntk",
        "ntk-final",
        "ntk-final/",
        "-final/tracking",
        "ntk-final/tracking/",
        "ntk-final/tracking ",
        "ntk-all/target",
        "none-none/random",
        "ntk-epoch/target",
        "ntk-epoch007/target",
        "ntk-epoch-1/target",
        "ntk-epoch٣/target",
        "ntk-final/random",
        "TRACINCP",
        "zzzzzz",
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(MethodError):
        parse_method(name)


def test_the_catalogue_describes_every_method_once() -> None:
    entries = catalogue()
    names = [entry.name for entry in entries]
    # Four kernels at all checkpoints, ntk-adam not at the initial one, trak at all, influence and its
    # relatives at the final one for three importances, names, scorers.
    grid = (4 * len(CHECKPOINTS) + len(CHECKPOINTS) - 1) * len(list(IMPORTANCES)) + (4 + len(CHECKPOINTS)) * 3
    assert len(names) == len(set(names)) == grid + len(NAMED_METHODS) + len(list(SCORERS))
    for entry in entries:
        assert describe(parse_method(entry.name)) == entry
        assert entry.formula
        assert re.search(r"Eq\.|Corollary|20\d\d|baseline", entry.source)


def test_needs_and_cost_say_what_must_be_computed() -> None:
    def of(name: str) -> tuple[tuple[str, ...], str]:
        description = describe(parse_method(name))
        return description.needs, description.cost

    assert of("ntk-final/target") == (("gradients",), "one pass")
    assert of("ntk-middle/tracking") == (("gradients", "checkpoints", "tracking"), "one pass")
    assert of("ntk-epoch3/surrogate") == (("gradients", "checkpoints", "gram"), "gram")
    assert of("representer-point") == (("last linear layer", "gram"), "gram")
    assert of("influence-final/tracking") == (("gradients", "curvature", "tracking"), "gram")
    assert of("tracincp") == (("gradients", "checkpoints"), "one pass per checkpoint")
    assert of("gradcos") == (("gradients",), "one pass")
    assert of("own-loss") == (("classes",), "none")
    assert of("trak") == (("gradients", "curvature"), "gram")
    assert of("ekfac") == (("gradients", "layer inputs"), "one pass")
    assert of("datainf") == (("gradients",), "one pass")
    assert of("relatif") == (("gradients", "curvature"), "gram")
    assert of("random") == ((), "none")


def test_names_are_checked_without_importing_torch() -> None:
    code = "import sys, genrep_dist.core.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
