"""The damping of the influence kernel where an experiment declares none: relative to the mean eigenvalue of H."""

from __future__ import annotations

DAMPING = ("damping", "damping_unit")


def with_default_damping(data: object) -> object:
    """The ``data`` of an experiment, with a relative damping where it declares neither a damping nor its unit, nor tunes one of them.

    A damping that is declared keeps its meaning, and the content addresses of such an experiment are what they were: the default is
    entered here, as if it were declared, and the fields' own defaults stay. An indefinite or zero H has no useful mean eigenvalue:
    for the true Hessian, and with `allow_zero_curvature`, the default is absolute.
    """
    if not isinstance(data, dict):
        return data
    influence = data.get("influence", {})
    if not isinstance(influence, dict) or any(name in influence for name in DAMPING):
        return data
    if influence.get("curvature") == "hessian" or influence.get("allow_zero_curvature") or _is_tuned(data.get("tune")):
        return data
    return {**data, "influence": {**influence, "damping_unit": "mean-eigenvalue"}}


def _is_tuned(tune: object) -> bool:
    if not isinstance(tune, dict):
        return False
    grid = tune.get("grid")
    names = [tune.get("parameter"), *(grid if isinstance(grid, dict) else ())]
    return any(str(name).removeprefix("influence.") in DAMPING for name in names)
