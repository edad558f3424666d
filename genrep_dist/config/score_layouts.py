"""How attribution tools store their score files: the file, the array's name in it, the direction and the sign.

Another tool is one :class:`ScoreLayout` and one registration: :func:`register_score_layout` from Python, or an entry point of the
group ``genrep_dist.score_layouts`` whose name is the layout's and whose object is a :class:`ScoreLayout`.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from importlib.metadata import entry_points

from genrep_dist.errors import ConfigError

ENTRY_POINT_GROUP = "genrep_dist.score_layouts"


@dataclass(frozen=True)
class ScoreLayout:
    """The conventions of one tool's score files.

    ``file``: glob pattern of the score file inside the tool's output folder, for a ``path`` that is such a folder; "" if the tool
    writes no files. ``key``: the array's name in the file, or None. ``transposed``: whether the matrix is (test x train).
    ``sign``: when a positive score raises the explained logit, in words. The sign depends on the target that was scored, so
    experiments declare it (``positive_raises``). ``source``: where in the tool's code these facts were read.
    """

    file: str = ""
    key: str | None = None
    transposed: bool = False
    sign: str = ""
    source: str = ""


_LAYOUTS: dict[str, ScoreLayout] = {
    "plain": ScoreLayout(sign="as declared", source="docs/external-scores.md"),
    "captum": ScoreLayout(
        transposed=True,
        sign="test_loss_fn is the logit: positive lowers it; the loss on both sides: positive lowers the test loss",
        source="captum 0.9 influence/_core/tracincp.py, TracInCP._influence: (number of test examples, number of training examples)",
    ),
    "dattri": ScoreLayout(
        sign="target_func is the logit: positive scores of TracIn and GradDot lower it",
        source="dattri 0.3 algorithm/tracin.py, TracInAttributor.attribute: (num_train_samples, num_test_samples)",
    ),
    "trak": ScoreLayout(
        file="scores/*.mmap",
        sign="positive raises the model output function, which is a margin for the classification tasks",
        source="traker 0.3 savers.py, MmapSaver.init_experiment: scores/{exp_name}.mmap in numpy's format, (train_set_size, num_targets)",
    ),
    "kronfluence": ScoreLayout(
        file="pairwise_scores.safetensors",
        key="all_modules",
        transposed=True,
        sign="the measurement is the logit: positive lowers it; the measurement is the loss: positive lowers the loss",
        source="kronfluence 1.0 score/pairwise.py, pairwise_scores_save_path, and utils/constants.py, ALL_MODULE_NAME: (query x train)",
    ),
    "pydvl": ScoreLayout(
        transposed=True,
        sign="the loss on both sides: positive lowers the test loss",
        source="pyDVL 0.10 influence/torch/influence_function_model.py, influences_from_factors: factors of test @ gradients of train",
    ),
    "quanda": ScoreLayout(
        transposed=True,
        sign="as in the wrapped tool; the loss on both sides: positive lowers the test loss",
        source="quanda 0.5 explainers/base.py, Explainer.explain: (test_samples, train_dataset_size)",
    ),
}


def register_score_layout(name: str, layout: ScoreLayout) -> None:
    """Make ``layout`` available as ``external.<method>.layout: name`` in this process.

    ConfigError for a name that is taken by another layout or is not lower-case letters, digits, ``-`` and ``_``.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise ConfigError(
            "a score layout's name is not usable",
            where="register_score_layout",
            expected="lower-case letters, digits, - and _",
            got=repr(name),
            remedy="choose another name",
        )
    if _LAYOUTS.setdefault(name, layout) != layout:
        raise ConfigError(
            f"there is already a score layout {name!r}",
            where="register_score_layout",
            expected="a new name",
            got=repr(name),
            remedy="choose another name",
        )


def score_layout(name: str) -> ScoreLayout:
    """The layout of that name. ConfigError, with the nearest names, if none is registered."""
    if name not in _LAYOUTS:
        _load_entry_points()
    if name not in _LAYOUTS:
        near = difflib.get_close_matches(name, _LAYOUTS, n=2)
        raise ConfigError(
            f"there is no score layout {name!r}",
            where="external: layout",
            expected=f"one of {', '.join(sorted(_LAYOUTS))}",
            got=repr(name),
            remedy=f"did you mean {' or '.join(near)}?" if near else "install or import the package that registers it",
        )
    return _LAYOUTS[name]


def score_layout_names() -> tuple[str, ...]:
    """Names of all registered layouts."""
    _load_entry_points()
    return tuple(_LAYOUTS)


def _load_entry_points() -> None:
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in _LAYOUTS:
            continue
        cause: Exception | None = None
        try:
            layout = point.load()
        except Exception as error:
            got, cause = f"{type(error).__name__}: {error}", error
        else:
            if isinstance(layout, ScoreLayout):
                register_score_layout(point.name, layout)
                continue
            got = type(layout).__name__
        raise ConfigError(
            "an entry point does not give a score layout",
            where=f"{point.name} = {point.value} of the entry point group {ENTRY_POINT_GROUP}",
            expected="a ScoreLayout",
            got=got,
            remedy="correct or uninstall the package that declares it",
        ) from cause
