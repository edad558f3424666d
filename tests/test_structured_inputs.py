"""Inputs as dictionaries, tuples, dataclasses and data sets of other libraries: the numbers are those of the same inputs in one tensor."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import genrep_dist as gr
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.gradients.reference import one_by_one
from genrep_dist.core.inputs import in_dtype, pack_inputs, unpacked
from genrep_dist.diagnostics.run_checks import diagnose
from genrep_dist.errors import ProblemError
from genrep_dist.external import open_exported
from genrep_dist.problems.checks import load_datasets
from genrep_dist.problems.tables import data_digest, from_table, to_table
from genrep_dist.runner.export import export_problem
from genrep_dist.training.function_trainer import predict_with
from tests.experiments import METHODS, ROOT, experiment
from tests.structured_inputs import (
    AsDataclass,
    AsDict,
    AsTorchDataset,
    AsTuple,
    Joined,
    Masked,
    MaskedJoined,
    MaskedTokens,
    Tokens,
    WithLogits,
    rows,
)

ALL_METHODS = [*METHODS, "ntk-middle/target", "common-final/target", "nearest"]


def run(store: Path, problem: str, **fields: Any) -> gr.Run:
    store.parent.mkdir(exist_ok=True)
    scores = np.random.default_rng(0).standard_normal((22, 8))
    for seed in range(2):
        np.savez(store.parent / f"nearest-{seed}.npz", scores=scores, train_ids=np.arange(22), test_ids=np.arange(22, 30))
    defaults: dict[str, Any] = {
        "seeds": 1,
        "methods": ALL_METHODS,
        "kernels": {"common": {"class": "tests.structured_inputs:Common"}},
        "external": {"nearest": {"path": str(store.parent / "nearest-{seed}.npz"), "positive_raises": True, "unverified": True}},
        "deletion": {"fractions": [0.0, 0.1], "signs": ["negative"]},
    }
    declared = experiment(f"tests.structured_inputs:{problem}", **(defaults | fields))
    return gr.run(declared, store=str(store), serial=True, search_path=[str(ROOT)])


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> gr.Run:
    return run(tmp_path_factory.mktemp("joined") / "store", "Joined")


@pytest.fixture(scope="module")
def as_dict(tmp_path_factory: pytest.TempPathFactory) -> gr.Run:
    return run(tmp_path_factory.mktemp("dict") / "store", "AsDict")


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_dictionary_gives_the_numbers_of_one_tensor(joined: gr.Run, as_dict: gr.Run, method: str) -> None:
    expected, found = (one.attributions(method, 0) for one in (joined, as_dict))
    if method == "random":
        assert found.shape == expected.shape  # drawn by what the problem is
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


def test_training_is_the_same_and_so_are_the_retrained_models(joined: gr.Run, as_dict: gr.Run) -> None:
    assert joined.plan.shape.pack_kind == as_dict.plan.shape.pack_kind != "solo"
    for epoch in ("initial", "middle", "final"):
        assert all(map(torch.equal, joined.checkpoint(0, epoch).values(), as_dict.checkpoint(0, epoch).values()))
    deletions = [one.deletion().collect().filter(one.deletion().collect()["method"] == "ntk-final/target") for one in (joined, as_dict)]
    np.testing.assert_allclose(deletions[1]["delta"], deletions[0]["delta"], rtol=1e-6, atol=1e-9)


def test_the_doctor_finds_no_fault(as_dict: gr.Run) -> None:
    assert [found for found in diagnose(as_dict) if found.colour == "red"] == []


def test_other_points_are_explained_in_the_problems_form(as_dict: gr.Run) -> None:
    test: Any = as_dict.problem(0).test
    assert set(test.inputs) == {"input_ids", "attention_mask"}
    ids = as_dict.test_ids(0).tolist()
    at = [test.ids.tolist().index(sample) for sample in ids]
    given = {name: leaf[at].numpy() for name, leaf in test.inputs.items()}
    found = as_dict.explain("ntk-final/target", 0, inputs=given)
    np.testing.assert_allclose(found, as_dict.attributions("ntk-final/target", 0), rtol=1e-5, atol=1e-7)
    with pytest.raises(gr.GenRepError, match="form"):
        as_dict.explain("ntk-final/target", 0, inputs={"input_ids": given["input_ids"]})


def test_an_exported_problem_has_the_problems_form(as_dict: gr.Run, tmp_path: Path) -> None:
    list(export_problem(as_dict, tmp_path, [0]))
    with np.load(tmp_path / "data" / "train.npz") as arrays:
        assert np.array_equal(arrays["inputs.input_ids"], AsDict().train_data()[0]["input_ids"])
    exported: Any = open_exported(tmp_path, 0, [ROOT])
    outputs = exported.model(**exported.test_points.inputs)
    assert outputs.shape == (2, 1)
    outcome = AsDict().train_data()[0]
    assert all(torch.equal(exported.train.inputs[name], outcome[name]) for name in outcome)


@pytest.mark.parametrize("problem", ["AsTuple", "AsDataclass", "WithLogits", "AsTorchDataset", "OwnTraining"])
def test_other_forms_give_the_same_models_and_scores(joined: gr.Run, tmp_path: Path, problem: str) -> None:
    found = run(tmp_path / "store", problem, methods=["ntk-final/target", "ntk-final/tracking"], kernels={}, external={})
    for method in ("ntk-final/target", "ntk-final/tracking"):
        expected = joined.attributions(method, 0)
        np.testing.assert_allclose(found.attributions(method, 0), expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_augmentation_gets_a_row_in_the_problems_form(tmp_path: Path) -> None:
    found = [
        run(
            tmp_path / problem / "store",
            problem,
            methods=["last-layer-final/target"],
            kernels={},
            external={},
            recipe={"augment": "tests.structured_inputs:drop_a_token"},
        )
        for problem in ("Joined", "AsDict")
    ]
    assert all(map(torch.equal, found[0].checkpoint(0, "final").values(), found[1].checkpoint(0, "final").values()))


FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "dict": lambda ids, mask: {"input_ids": ids.short(), "attention_mask": mask.bool()},
    "tuple": lambda ids, mask: (ids, mask.double()),
    "list": lambda ids, mask: [ids.to(torch.uint8), mask.half()],
    "dataclass": Tokens,
    "nested": lambda ids, mask: {"a": {"b": ids, "c": (mask.to(torch.int8), ids[:, 0].float())}},
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_gathered_moved_stored_and_unpacked_bit_for_bit(form: str) -> None:
    ids, mask, targets, numbers = rows(0, 9)
    given = FORMS[form](ids, mask)
    packed = pack_inputs(given)
    chosen = torch.tensor([4, 0, 4])

    def leaves(inputs: Any) -> list[torch.Tensor]:
        return packed.form.leaves(inputs) if isinstance(inputs, torch.Tensor) else pack_inputs(inputs).form.leaves(pack_inputs(inputs))

    def same(found: Any, expected: list[torch.Tensor]) -> bool:
        return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(leaves(found), expected, strict=True))

    plain = leaves(packed)
    assert type(unpacked(packed)) is type(given)
    moved = [packed[chosen], packed[[4, 0, 4]], torch.stack([packed[4], packed[0], packed[4]]), packed.cpu()[chosen].clone()]
    moved += [torch.cat([packed[4:5], packed[:1], packed[4:5]]), copy.deepcopy(packed)[chosen], pickle.loads(pickle.dumps(packed))[chosen]]
    assert all(same(one, [leaf[chosen] for leaf in plain]) for one in moved)
    assert same(next(iter(packed)).unsqueeze(0).repeat(2, 1), [leaf[[0, 0]] for leaf in plain])
    assert all(leaf.dtype == torch.float64 for leaf in leaves(unpacked(in_dtype(packed, torch.float64))) if leaf.is_floating_point())
    dataset = gr.Dataset(packed, targets, numbers)
    read = from_table(to_table(dataset))
    assert same(read.inputs, plain)
    assert data_digest(read, read) == data_digest(dataset, dataset)
    assert type(packed == 0) is type(packed.double()) is torch.Tensor


def test_another_key_or_dtype_is_another_data_set() -> None:
    ids, mask, targets, numbers = rows(0, 9)
    forms = [(ids, mask), [ids, mask], {"a": ids, "b": mask}, {"a": ids, "c": mask}, Tokens(ids, mask)]
    digests = {data_digest(one, one) for one in (gr.Dataset(pack_inputs(form), targets, numbers) for form in forms)}
    assert len(digests) == len(forms)


@pytest.mark.parametrize(
    ("change", "place", "message"),
    [
        ({"attention_mask": None}, r"inputs\['attention_mask'\]", "something else than tensors"),
        ({"attention_mask": "text"}, r"inputs\['attention_mask'\]", "something else than tensors"),
        ({"attention_mask": torch.ones(5, 6)}, "attention_mask", "differ in length"),
        ({"position": torch.tensor(3)}, "position", "differ in length"),
        ({"value": torch.full((22, 2), torch.nan)}, "value", "NaN or Inf"),
        ({"value": torch.ones(22, 2, requires_grad=True)}, "value", "plain tensors"),
        ({"value": torch.ones(22, 2, dtype=torch.complex64)}, "value", "dtype"),
    ],
)
def test_what_is_no_row_is_refused_with_its_place(change: dict[str, Any], place: str, message: str) -> None:
    class Wrong(AsDict):
        def train_data(self) -> Any:
            inputs, targets, ids = super().train_data()
            return {**inputs, **change}, targets, ids

    with pytest.raises(gr.GenRepError, match=message) as caught:
        load_datasets(Wrong())
    assert re.search(place, f"{caught.value.where} {caught.value.got}")


def test_a_model_that_does_not_take_the_keys_is_answered_with_how_it_is_called() -> None:
    class Wrong(AsDict):
        build = MaskedTokens

    with pytest.raises(ProblemError, match=r"model\(\*\*inputs\)"):
        load_datasets(Wrong())


def test_test_inputs_of_another_form_are_refused() -> None:
    class Wrong(AsDict):
        def test_data(self) -> Any:
            inputs, targets, ids = super().test_data()
            return {name: leaf[:, :3] for name, leaf in inputs.items()}, targets, ids

    with pytest.raises(ProblemError, match="differ in form"):
        load_datasets(Wrong())


@pytest.mark.parametrize("problem", [AsDict, AsTuple, AsDataclass, WithLogits])
def test_gradients_are_those_of_one_tensor(problem: type[Joined]) -> None:
    torch.manual_seed(0)
    model, train = problem().model().double().eval(), load_datasets(problem())[0]
    torch.manual_seed(0)
    plain = MaskedJoined().double().eval()
    found = per_sample_gradients(model, train.inputs)
    torch.testing.assert_close(found, per_sample_gradients(plain, Joined().train_data()[0]))
    torch.testing.assert_close(found[3], one_by_one(model, train.inputs[3]))


def test_torch_func_and_loops_take_dictionaries_too() -> None:
    class Squared(Masked):
        """Uses a weight twice, so that no rule holds for it."""

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return super().forward(input_ids, attention_mask) + self.hidden.weight.square().sum() * attention_mask.sum(1, keepdim=True)

    class Branching(Masked):
        """Branches on its data, which torch.func cannot follow."""

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            factor = 2.0 if bool(attention_mask.sum() > 0) else 1.0
            return super().forward(input_ids, attention_mask) * factor * self.hidden.weight.sum()

    inputs = load_datasets(AsDict())[0].inputs
    for model in (Squared().double().eval(), Branching().double().eval()):
        found = per_sample_gradients(model, inputs)
        expected = torch.stack([one_by_one(model, row) for row in inputs])
        torch.testing.assert_close(found, expected)


def test_a_torch_data_set_is_read_with_its_collate() -> None:
    found, expected = load_datasets(AsTorchDataset())[0], load_datasets(AsDict())[0]
    assert all(map(torch.equal, found, expected))


def test_a_data_set_without_collate_is_stacked() -> None:
    class Stacked(AsDict):
        def train_data(self) -> Any:
            ids, mask, targets, _ = rows(0, 22)
            return [{"input_ids": a, "attention_mask": b, "labels": c} for a, b, c in zip(ids, mask, targets, strict=True)]

    class Held:
        def __init__(self, items: Any) -> None:
            self.items = items

        def __len__(self) -> int:
            return len(self.items)

        def __getitem__(self, row: int) -> Any:
            return self.items[row]

    class Indexed(Stacked):
        def train_data(self) -> Any:
            return Held(super().train_data())

        test_data = train_data

    train, _ = load_datasets(Indexed())
    assert train.ids.tolist() == list(range(22))
    assert torch.equal(unpacked(train.inputs)["input_ids"], rows(0, 22)[0])

    class Ragged(Stacked):
        def train_data(self) -> Any:
            return Held([{"input_ids": a[: 2 + row % 3], "label": 1} for row, a in enumerate(rows(0, 22)[0])])

    with pytest.raises(ProblemError, match="pad_rows"):
        load_datasets(Ragged())

    class Unlabelled(Stacked):
        def train_data(self) -> Any:
            return Held([{"input_ids": a} for a in rows(0, 22)[0]])

    with pytest.raises(ProblemError, match="no targets"):
        load_datasets(Unlabelled())


def test_ragged_rows_are_padded_with_a_mask() -> None:
    padded = gr.pad_rows([[3, 4], [5], []], value=9)
    assert padded.values.tolist() == [[3, 4], [5, 9], [9, 9]]
    assert padded.mask.tolist() == [[1, 1], [1, 0], [0, 0]]
    assert gr.pad_rows([torch.ones(2, 3), torch.ones(1, 3)], length=4).values.shape == (2, 4, 3)
    for wrong in ([[1, 2]], [torch.ones(1, 2), torch.ones(1, 3)], [torch.tensor(3)]):
        with pytest.raises(ProblemError, match="cannot be padded"):
            gr.pad_rows(wrong, length=1)


class Plain(torch.nn.Linear):
    """Logits of a linear model."""

    def __init__(self) -> None:
        super().__init__(3, 1)


class OwnLoss(Plain):
    """The logistic loss of each sample, in the forward pass."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.nn.functional.binary_cross_entropy_with_logits(super().forward(x).squeeze(1), y, reduction="none")


class WithLogits3:
    loss = "logistic"
    recipe = gr.Recipe(epochs=2, batch_size=8, learning_rate=0.3)

    def model(self) -> torch.nn.Module:
        return Plain()

    def data(self, start: int, stop: int) -> Any:
        x = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
        return x[start:stop], (x.sum(1) > 0).float()[start:stop], torch.arange(start, stop)

    def train_data(self) -> Any:
        return self.data(0, 22)

    def test_data(self) -> Any:
        return self.data(22, 30)


class WithOwnLoss(WithLogits3):
    loss = "model"

    def model(self) -> torch.nn.Module:
        return OwnLoss()

    def data(self, start: int, stop: int) -> Any:
        x, y, ids = super().data(start, stop)
        return {"x": x, "y": y}, torch.zeros(len(ids)), ids


def test_a_model_that_returns_its_loss_trains_as_one_with_this_loss_and_explains_it(tmp_path: Path) -> None:
    found = []
    for name in ("WithLogits3", "WithOwnLoss"):
        declared = experiment(
            f"tests.test_structured_inputs:{name}",
            seeds=1,
            methods=["ntk-final/target", "ntk-final/tracking", "influence-final/target", "ntk-final/surrogate"],
            influence={"curvature": "hessian", "damping": 0.1},
            deletion={"fractions": [0.0, 0.1]},
        )
        found.append(gr.run(declared, store=str(tmp_path / name), serial=True, search_path=[str(ROOT)]))
    plain, own = (one.checkpoint(0, "final") for one in found)
    assert all(torch.allclose(plain[name], own[name], atol=1e-6) for name in plain)
    problem: Any = found[1].problem(0)
    at = [problem.test.ids.tolist().index(sample) for sample in found[1].test_ids(0).tolist()]
    rows_ = [torch.cat([x, torch.ones(len(x), 1)], 1).double() for x in (problem.train.inputs["x"], problem.test.inputs["x"][at])]
    targets = [problem.train.inputs["y"].double(), problem.test.inputs["y"][at].double()]
    theta = torch.cat([own["weight"].flatten(), own["bias"]]).double()
    slopes = [x * (torch.sigmoid(x @ theta) - y)[:, None] for x, y in zip(rows_, targets, strict=True)]
    expected = -(slopes[0] @ slopes[1].T)
    np.testing.assert_allclose(found[1].attributions("ntk-final/target", 0), expected.numpy(), rtol=1e-4, atol=1e-6)


def test_predictions_of_a_model_that_is_no_module_get_the_problems_form() -> None:
    ids, mask, *_ = rows(0, 9)
    packed = pack_inputs({"input_ids": ids, "attention_mask": mask})
    seen = []

    def predict(model: Any, inputs: Any) -> Any:
        seen.append(sorted(inputs))
        return (inputs["input_ids"] * inputs["attention_mask"]).sum(1).double()

    found = predict_with(predict, None, packed, batch_size=4)
    assert seen == [["attention_mask", "input_ids"]] * 3
    assert torch.equal(found[:, 0], ids.sum(1).double())
