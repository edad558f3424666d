"""Runs over code and files that change between them: results that are no longer valid are recomputed, and none are mixed."""

from __future__ import annotations

import json
from typing import Any

import genrep_dist as gr
from genrep_dist.runner.progress import NoProgress
from tests.experiments import experiment
from tests.problems.user_files import HEAD, NET, PROBLEM, Folder, folder

__all__ = ["folder"]


class Messages(NoProgress):
    """Keeps the messages of a run."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def run(folder: Folder, store: str, *, fraction: float = 0.2, **fields: Any) -> tuple[gr.Run, str]:
    """A run as a new process would do it, and its messages."""
    folder.forget()
    messages = Messages()
    asked = experiment(
        f"{folder.name}:Problem", seeds=1, methods=["ntk-final/tracking", "random"], deletion={"fractions": [0.0, fraction]}, **fields
    )
    done = gr.run(asked, store=str(folder.path / store), serial=True, search_path=[str(folder.path)], progress=messages)
    return done, "\n".join(messages.texts)


READS = NET.replace(
    "nn.Linear(4, 1)", "nn.Linear(4, 1)\n        self.a.weight.data[0] = torch.tensor(json.loads(pathlib.Path('w').read_text()))"
)


def test_other_start_weights_are_never_mixed_with_earlier_results(folder: Folder) -> None:
    folder.write(HEAD + READS + PROBLEM)
    (folder.path / "w").write_text(json.dumps([1.0, 2.0, 3.0, 4.0]))
    run(folder, "store")
    (folder.path / "w").write_text(json.dumps([-1.0, 2.0, -3.0, 4.0]))
    mixed, messages = run(folder, "store", fraction=0.4)
    fresh, _ = run(folder, "fresh", fraction=0.4)
    assert mixed.deletion().collect().equals(fresh.deletion().collect())
    assert "changed since the last run of toy: tensor a.weight; what depends on them is recomputed" in messages
    _, messages = run(folder, "store", fraction=0.4)
    assert messages == "everything is done already: nothing was computed"


def test_an_edited_helper_is_named_and_results_are_recomputed(folder: Folder) -> None:
    folder.write(HEAD + "from {m}_helper import scale\n" + NET.replace("self.a(x)", "scale(self.a(x))") + PROBLEM)
    found = []
    for factor in (1.0, 3.0):
        path = folder.write(f"def scale(x):\n    return x * {factor}\n", "{m}_helper")
        found.append(run(folder, "store"))
    (first, _), (second, messages) = found
    assert str(path) in messages
    assert first.training()["train_loss"].to_list() != second.training()["train_loss"].to_list()


def test_noise_of_the_default_generators_is_a_function_of_the_seed(folder: Folder) -> None:
    """In training, so that a model has the same numbers in whatever company and order it is trained."""
    noise = "float(np.random.rand()) * random.random()"
    folder.write(HEAD + NET.replace("self.a(x)", f"self.a(x) * (1 + {noise}) if self.training else self.a(x)") + PROBLEM)
    whole, _ = run(folder, "one")
    assert whole.plan.shape.pack_kind == "solo"
    run(folder, "two", fraction=0.1)
    in_parts, _ = run(folder, "two")
    assert whole.deletion().collect().equals(in_parts.deletion().collect())
