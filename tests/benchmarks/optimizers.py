"""Adam and AdamW in packs of 32 models, compared with their plain loops, relative to what packs do for plain SGD.

The network is the digits' SmallCNN on 8x8 images, the plain loop the usual PyTorch code with `torch.optim` (see
`tests/benchmarks/retraining.py`), on one core, in CPU time. Goal: the gain of Adam and AdamW is at least 0.8 times that of plain SGD.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import torch

from genrep_dist.core.losses import get_loss
from genrep_dist.training.loop import TrainingRun, train_models
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.randomness import Randomness
from tests.benchmarks import measured_on, publish, spread, table
from tests.benchmarks.retraining import TORCH, Case, cases, check_alike, parameters, plain_loop, seconds

MODELS = 32
RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}


def gains(case: Case, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of a model in the plain loop and in a pack, and their quotient, of each round."""
    device, loss = torch.device("cpu"), get_loss("logistic")
    plain, packed = [], []
    for number in range(rounds + 1):
        models = [Randomness(seed).build(case.factory) for seed in range(MODELS)]
        runs = [TrainingRun(Randomness(seed)) for seed in range(MODELS)]
        model = case.plain(Randomness(0).build(case.factory))
        alone = seconds(partial(plain_loop, case, model, Randomness(0)), device)
        together = seconds(partial(train_models, models, loss, case.recipe, case.data, runs, kind=StackedPack), device)
        check_alike(parameters(models[0]), parameters(model), parameters(Randomness(0).build(case.factory)), case)
        if number:  # the first round is a warm-up
            plain.append(1e3 * alone)
            packed.append(1e3 * together / MODELS)
    return plain, packed, [a / b for a, b in zip(plain, packed, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/optimizers.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = cases()[1]
    recipes = {name: replace(digits.recipe, optimizer=name, learning_rate=RATES[name], epochs=4) for name in TORCH}
    # Adam's first steps are signs, which a rounding turns where a gradient is nearly zero.
    measured = {name: gains(replace(digits, recipe=recipe, apart=0.05), options.rounds) for name, recipe in recipes.items()}
    of_sgd = sorted(measured["sgd"][2])[options.rounds // 2]
    rows = [
        (name, spread(plain, "{:.0f}"), spread(packed, "{:.1f}"), spread(gain, "{:.2f}"), spread([one / of_sgd for one in gain], "{:.2f}"))
        for name, (plain, packed, gain) in measured.items()
    ]
    columns = ("optimizer", "plain loop, ms per model", f"pack of {MODELS}, ms per model", "gain", "gain / gain of sgd")
    sections = [
        " ".join(str(__doc__).split()),
        measured_on("torch"),
        f"Medians of {options.rounds} rounds, quartiles in parentheses:",
        table(columns, rows),
    ]
    publish("optimizers", "Adam and AdamW in packs", sections, write=options.write)


if __name__ == "__main__":
    main()
