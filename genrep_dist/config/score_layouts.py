"""How attribution tools store their score files: the file, the array's name in it, the direction and the sign.

Another tool is one :class:`ScoreLayout` and one registration: ``SCORE_LAYOUTS.register(name, layout)``, or an entry point of the group
``genrep_dist.score_layouts``. Experiments name it as ``external.<method>.layout``.
"""

from __future__ import annotations

from dataclasses import dataclass

from genrep_dist.registry import Registry


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


SCORE_LAYOUTS: Registry[ScoreLayout] = Registry("score layout", "genrep_dist.score_layouts", ScoreLayout, instances=True)
for _name, _value in {
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
}.items():
    SCORE_LAYOUTS.register(_name, _value)
