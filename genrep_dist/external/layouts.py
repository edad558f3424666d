"""How other tools leave their scores: the file, the array's name in it, the direction, and the sign."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """One tool's habits.

    ``file`` is a pattern of the file that the tool writes into its output folder, for a ``path`` that is such a folder, or "" where
    it writes none; ``key`` the array's name in it, or None; ``transposed`` whether its matrix is (test x train). ``sign`` says in
    words when its positive scores raise the explained logit: a fact about the target that was chosen, so it stays declared
    (``positive_raises``). ``source`` is where in the tool's own code this was read.
    """

    file: str
    key: str | None
    transposed: bool
    sign: str
    source: str


LAYOUTS: Mapping[str, Layout] = {
    "plain": Layout("", None, False, "as declared", "docs/external-scores.md"),
    "captum": Layout(
        "",
        None,
        True,
        "test_loss_fn the logit itself: positive lowers it; the loss on both sides: positive lowers the test loss",
        "captum 0.9 influence/_core/tracincp.py, TracInCP._influence: (number of test examples, number of training examples)",
    ),
    "dattri": Layout(
        "",
        None,
        False,
        "target_func the logit: TracIn's and GradDot's positive scores lower it",
        "dattri 0.3 algorithm/tracin.py, TracInAttributor.attribute: (num_train_samples, num_test_samples)",
    ),
    "trak": Layout(
        "scores/*.mmap",
        None,
        False,
        "positive raises the model output function, a margin for the classification tasks",
        "traker 0.3 savers.py, MmapSaver.init_experiment: scores/{exp_name}.mmap in numpy's format, (train_set_size, num_targets)",
    ),
    "kronfluence": Layout(
        "pairwise_scores.safetensors",
        "all_modules",
        True,
        "the measurement the logit: positive lowers it; the measurement the loss: positive lowers the loss",
        "kronfluence 1.0 score/pairwise.py, pairwise_scores_save_path, and utils/constants.py, ALL_MODULE_NAME: (query x train)",
    ),
    "pydvl": Layout(
        "",
        None,
        True,
        "the loss on both sides: positive lowers the test loss",
        "pyDVL 0.10 influence/torch/influence_function_model.py, influences_from_factors: factors of test @ gradients of train",
    ),
    "quanda": Layout(
        "",
        None,
        True,
        "as the wrapped tool has it; the loss on both sides: positive lowers the test loss",
        "quanda 0.5 explainers/base.py, Explainer.explain: (test_samples, train_dataset_size)",
    ),
}
"""Layouts by the name under which an experiment declares them."""
