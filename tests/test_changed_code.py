"""Runs over code and files that change between them: results that are no longer valid are recomputed, and none are mixed."""

from __future__ import annotations

import json
from typing import Any

import pytest

import genrep_dist as gr
from genrep_dist.errors import ProblemError
from genrep_dist.runner.progress import NoProgress
from genrep_dist.runner.publish import write_report
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
    assert "changed since the last run of toy: tensor a.weight; all its models and scores are computed again" in messages
    _, messages = run(folder, "store", fraction=0.4)
    assert messages.endswith("everything is done already: nothing was computed")
    assert "changed since" not in messages


def test_an_edited_helper_is_named_and_results_are_recomputed(folder: Folder) -> None:
    folder.write(HEAD + "from {m}_helper import scale\n" + NET.replace("self.a(x)", "scale(self.a(x))") + PROBLEM)
    found = []
    for factor in (1.0, 3.0):
        path = folder.write(f"def scale(x):\n    return x * {factor}\n", "{m}_helper")
        found.append(run(folder, "store"))
    (first, _), (second, messages) = found
    assert str(path) in messages
    assert first.training()["train_loss"].to_list() != second.training()["train_loss"].to_list()


def test_results_that_are_replaced_are_told_and_kept(folder: Folder) -> None:
    folder.write(HEAD + NET + PROBLEM)
    first, messages = run(folder, "store")
    assert "replaces" not in messages
    results, deletion = folder.path / "store/results/toy", first.deletion().collect()
    files = {path.name: path.read_bytes() for path in results.iterdir()}
    second, messages = run(folder, "store", fraction=0.4)
    place = results / "previous" / first.plan.keys.results[:12]
    assert f"this run replaces results of toy with other settings (deletion): they are kept in {place}" in messages
    assert {path.name: path.read_bytes() for path in place.iterdir()} == files
    assert not second.deletion().collect().equals(deletion)
    _, messages = run(folder, "store", fraction=0.4)
    assert messages.endswith("everything is done already: nothing was computed")
    assert "changed since" not in messages
    again, messages = run(folder, "store")
    assert second.plan.keys.results[:12] in messages
    assert again.deletion().collect().equals(deletion)
    assert sorted(path.name for path in place.parent.iterdir()) == sorted(one.plan.keys.results[:12] for one in (first, second))


def test_a_report_needs_no_code_and_a_changed_file_is_named(folder: Folder) -> None:
    folder.write(HEAD + NET + PROBLEM)
    run(folder, "store")
    path = folder.write(HEAD + NET.replace("4, 1", "4, 1, bias=True") + PROBLEM)
    folder.forget()
    opened = gr.open_run(str(folder.path / "store"), "toy")
    assert opened.attributions("random", 0).shape[0] == len(opened.train_ids(0))
    assert any(name.endswith("report.html") for name in write_report(opened, opened.judged()))
    with pytest.raises(ProblemError, match=f"^{path.name} changed since this run") as caught:
        opened.problem(0)
    assert "machines" not in str(caught.value)
    _, messages = run(folder, "store")
    assert f"changed since the last run of toy: {path}" in messages
    assert "all its models and scores are computed again" in messages
    assert "this run replaces results of toy with other code or data" in messages


def test_noise_of_the_default_generators_is_a_function_of_the_seed(folder: Folder) -> None:
    """In training, so that a model has the same numbers in whatever company and order it is trained."""
    noise = "float(np.random.rand()) * random.random()"
    folder.write(HEAD + NET.replace("self.a(x)", f"self.a(x) * (1 + {noise}) if self.training else self.a(x)") + PROBLEM)
    whole, _ = run(folder, "one")
    assert whole.plan.shape.pack_kind == "solo"
    run(folder, "two", fraction=0.1)
    in_parts, _ = run(folder, "two")
    assert whole.deletion().collect().equals(in_parts.deletion().collect())
