"""An error in the code of another package's class names the class, the method and the line; what it returns is checked where it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import field_validator
from torch import Tensor

import genrep_dist as gr
from genrep_dist.config.metrics import METRICS
from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.importances.base import SolvedImportance
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.kernels.base import KernelSizes
from genrep_dist.core.targets import TARGETS
from genrep_dist.errors import ConfigError, ExtensionError, GenRepError, NonFiniteError, ProblemError
from genrep_dist.evaluation.metrics.base import MetricInfo, MetricTables, RetrainRequest, TableSpec, register
from genrep_dist.evaluation.tables import STATISTICS
from genrep_dist.plan import StagePlan
from genrep_dist.store import Store
from genrep_dist.training.optimizers import OPTIMIZERS
from genrep_dist.training.optimizers.sgd import SGD
from genrep_dist.workflow.stages import STAGES
from tests.experiments import experiment
from tests.outside_metrics import SelfRemoval, SelfRemovalSection
from tests.test_extensions import Doubled, InputKernel, NormStage, RunnerUp, SignImportance, registered, run


def fail(*_arguments: Any, **_keywords: Any) -> Any:
    raise KeyError("their mistake")


def fail_later(*_arguments: Any, **_keywords: Any) -> Iterator[Any]:
    yield from ()
    raise KeyError("their mistake")


def changed(parent: type, /, **methods: Any) -> Any:
    """A subclass of an extension as a user would write it."""
    return type("Theirs", (parent,), {"__module__": __name__, **methods})


class Solved(SolvedImportance):
    """Half of the outputs."""

    name = "half"
    formula, source, advice = "f / 2", "this test", "nothing"

    def solve(self, gram: Any, inputs: Any) -> tuple[Tensor, dict[str, Any]]:
        alpha = inputs.outputs / 2
        return alpha, {"efficiency_gap": float((inputs.outputs - gram.matvec(alpha)).abs().max())}

    def gram_products(self, epochs: int) -> int:
        return 1


KERNEL: dict[str, Any] = {"methods": ["inputs-final/target", "random"]}
METRIC: dict[str, Any] = {"methods": ["ntk-final/tracking", "random"], "metrics": {"self_removal": {"count": 3}}}
OWN: dict[str, Any] = {
    "kernels": (KERNELS, InputKernel, "inputs", KERNEL),
    "derived": (KERNELS, Doubled, "doubled", {"methods": ["doubled-final/target", "random"]}),
    "importances": (IMPORTANCES, SignImportance, "sign", {"methods": ["ntk-final/sign", "random"]}),
    "solved": (IMPORTANCES, Solved, "half", {"methods": ["ntk-final/half", "random"]}),
    "targets": (TARGETS, RunnerUp, "runner-up", {"options": {"num_classes": 3}, "methods": ["random"], "target": {"kind": "runner-up"}}),
    "stages": (STAGES, NormStage, "norms", {"methods": ["random"]}),
    "optimizers": (OPTIMIZERS, SGD, "theirs", {"methods": ["random"], "recipe": {"optimizer": "theirs"}}),
    "metrics": (METRICS, SelfRemoval, "self_removal", METRIC),
}


def run_changed(folder: Path, kind: str, methods: Mapping[str, Any]) -> gr.Run:
    """A run of one seed with a changed extension of this kind; ``methods`` replaces some of its methods."""
    registry, base, name, fields = OWN[kind]
    with ExitStack() as stack:
        if kind == "derived":
            stack.enter_context(registered(KERNELS, "inputs", InputKernel))
        stack.enter_context(registered(registry, name, changed(base, **methods)))
        return run(folder, **{"seeds": 1, "resources": {"retries": 0}, "deletion": {"fractions": [0.0, 0.1]}, **fields})


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *(("kernels", method) for method in ("__init__", "sizes", "features", "block")),
        *(("derived", method) for method in ("columns", "peak_bytes", "summary")),
        ("importances", "compute"),
        ("solved", "solve"),
        ("solved", "extra_bytes"),
        *(("targets", method) for method in ("choose", "check")),
        *(("stages", method) for method in ("artifacts", "run", "plan")),
        *(("optimizers", method) for method in ("__init__", "update", "state_shapes", "identity_gap_reasons", "is_elementwise")),
        *(("metrics", method) for method in ("count_requests", "method_requests", "evaluate", "curves", "facts", "warnings", "measured")),
    ],
)
def test_an_error_names_class_method_and_line(tmp_path: Path, kind: str, method: str) -> None:
    raising = property(fail) if method == "is_elementwise" else fail
    if method == "__init__":
        with pytest.raises(GenRepError) as raised:
            run_changed(tmp_path, kind, {method: raising})
    else:
        with pytest.raises(ExtensionError) as raised:
            run_changed(tmp_path, kind, {method: raising})
    text = str(raised.value)
    assert f"{__name__}:Theirs.{method}" in text
    assert "KeyError: 'their mistake'" in text
    assert f"{__file__}, line {fail.__code__.co_firstlineno + 1}" in text


def test_errors_in_an_iterator_and_in_validation_are_told_too(tmp_path: Path) -> None:
    with pytest.raises(ExtensionError, match=r"Theirs\.method_requests[\s\S]*KeyError"):
        run_changed(tmp_path, "metrics", {"method_requests": fail_later})

    class Fussy(SelfRemovalSection):
        @field_validator("count")
        @classmethod
        def _fail(cls, value: int) -> int:
            raise KeyError("their mistake")

    with pytest.raises(ExtensionError, match=r"Fussy\.model_validate[\s\S]*test_extension_errors\.py, line"):
        run_changed(tmp_path, "metrics", {"section": Fussy})


def test_an_error_after_the_retrainings_loses_none_of_them(tmp_path: Path) -> None:
    with pytest.raises(ExtensionError):
        run_changed(tmp_path, "metrics", {"evaluate": fail})
    (keys,) = (path for path in (tmp_path / "ledger").iterdir() if path.is_dir())
    ledger = Store(str(tmp_path)).ledger(keys.name)
    before = ledger.keys()
    assert len(before) > 1
    run_changed(tmp_path, "metrics", {})
    assert ledger.keys() == before


def test_errors_of_this_package_and_the_want_of_memory_pass(tmp_path: Path) -> None:
    def refuse(*_arguments: Any) -> Any:
        raise ProblemError("theirs, and said so")

    with pytest.raises(ProblemError, match="theirs, and said so"):
        run_changed(tmp_path, "importances", {"compute": refuse})

    def grow(*_arguments: Any) -> Any:
        raise MemoryError("no room")

    with pytest.raises(GenRepError, match="MemoryError: no room"):
        run_changed(tmp_path, "importances", {"compute": grow})


def test_methods_of_a_mix_in_are_guarded() -> None:
    mixin = type("Mixin", (), {"__module__": __name__, "compute": fail})
    theirs = type("Mixed", (mixin, SignImportance), {"__module__": __name__})
    with pytest.raises(ExtensionError, match=r"Mixed\.compute"):
        theirs().compute(None, None, None)


def constant(value: Any) -> Any:
    return lambda *_arguments, **_keywords: value


def of_rows(make: Any) -> Any:
    return lambda self, model, inputs, outputs=None: make(len(inputs))


REQUEST = RetrainRequest(np.array([1003, 1006]))
POINTS = {"metric": "mean_drop", "method": "random", "seed": 0, "test_id": None, "value": 1.0}


@pytest.mark.parametrize(
    ("kind", "methods", "says"),
    [
        ("kernels", {"features": of_rows(lambda rows: torch.zeros(rows, 5).double())}, r"Theirs\.features[\s\S]*float32[\s\S]*float64"),
        ("kernels", {"features": of_rows(lambda rows: torch.zeros(rows + 1, 5))}, r"Theirs\.features[\s\S]*\(2, features\)"),
        ("kernels", {"features": of_rows(lambda rows: torch.zeros(rows, 7))}, r"features[\s\S]*5 numbers a sample[\s\S]*\(2, 7\)"),
        ("kernels", {"features": of_rows(lambda rows: None)}, r"Theirs\.features[\s\S]*NoneType"),
        ("kernels", {"block": constant(torch.zeros(3))}, r"Theirs\.block[\s\S]*\(2, 1, 2\)[\s\S]*\(3,\)"),
        ("kernels", {"diagonal": constant(torch.zeros(3))}, r"Theirs\.diagonal[\s\S]*\(2, 1\)"),
        ("kernels", {"sizes": constant(KernelSizes(held=6))}, r"Theirs\.features[\s\S]*6 numbers a sample"),
        ("kernels", {"sizes": constant(5)}, r"Theirs\.sizes[\s\S]*KernelSizes"),
        ("derived", {"columns": constant((torch.zeros(2), {"residual": 0.0}))}, r"columns[\s\S]*\(40, 1, 2\)[\s\S]*\(2,\)"),
        ("derived", {"columns": constant((torch.zeros(40, 1, 2), {}))}, r"columns[\s\S]*'residual'"),
        ("derived", {"columns": constant(torch.zeros(40, 1, 2))}, r"columns[\s\S]*certificate"),
        ("derived", {"base": "nothing"}, "there is no kernel 'nothing'"),
        ("derived", {"base": "doubled"}, r"Theirs\.base[\s\S]*feature kernel"),
        ("importances", {"compute": constant(torch.zeros(40))}, r"Theirs\.compute[\s\S]*\(40, 1\)[\s\S]*\(40,\)"),
        ("solved", {"solve": constant((torch.zeros(40, 1), {"residual": 0.0}))}, r"Theirs\.solve[\s\S]*efficiency_gap"),
        ("solved", {"solve": constant((torch.zeros(40, 1), {"efficiency_gap": 0.0, "more": {1}}))}, r"Theirs\.solve[\s\S]*plain"),
        ("targets", {"choose": lambda _, outputs: np.full(len(outputs), 3)}, r"Theirs\.choose[\s\S]*0 to 2[\s\S]*\[3, 3\]"),
        ("targets", {"choose": lambda _, outputs: np.zeros(len(outputs))}, r"Theirs\.choose[\s\S]*float64"),
        ("targets", {"choose": lambda _, outputs: np.zeros(1, np.int64)}, r"Theirs\.choose[\s\S]*\(2,\)"),
        ("stages", {"run": constant(None)}, r"Theirs\.run[\s\S]*NoneType"),
        ("stages", {"plan": constant(StagePlan("other", "", 1, 1, 1))}, r"Theirs\.plan[\s\S]*norms"),
        ("stages", {"artifacts": constant([1])}, r"Theirs\.artifacts[\s\S]*ArtifactSpec"),
        ("optimizers", {"identity_gap_reasons": constant("no")}, r"Theirs\.identity_gap_reasons[\s\S]*list"),
        ("optimizers", {"state_shapes": constant({"m": 3})}, r"Theirs\.state_shapes[\s\S]*tuples"),
        ("importances", {"settings": ("nothing",)}, r"Theirs\.settings[\s\S]*nothing"),
        ("importances", {"settings": ("descent",)}, r"Theirs\.__init__[\s\S]*takes no arguments"),
        ("kernels", {"settings": ("nothing",)}, r"Theirs\.settings[\s\S]*nothing"),
        ("metrics", {"measured": constant(("other",))}, r"Theirs\.measured[\s\S]*mean_drop"),
        ("metrics", {"count_requests": constant(3)}, r"Theirs\.count_requests[\s\S]*RequestCount"),
        ("metrics", {"shared_requests": constant([REQUEST.removed])}, r"Theirs\.shared_requests"),
        ("metrics", {"method_requests": constant([RetrainRequest([1003])])}, r"Theirs\.method_requests"),  # type: ignore[arg-type]
        ("metrics", {"evaluate": constant(None)}, r"Theirs\.evaluate[\s\S]*MetricTables"),
        ("metrics", {"evaluate": constant(MetricTables(pl.DataFrame({"value": [1.0]})))}, r"table points[\s\S]*columns[\s\S]*test_id"),
        ("metrics", {"evaluate": constant(MetricTables(pl.DataFrame([{**POINTS, "method": "no"}])))}, r"whose method is one of"),
        ("metrics", {"evaluate": constant(MetricTables(pl.DataFrame([{**POINTS, "metric": "lds"}])))}, r"whose metric is one of"),
        ("metrics", {"evaluate": constant(MetricTables(pl.DataFrame([POINTS]), {"more": pl.DataFrame()}))}, r"declared tables[\s\S]*more"),
        ("metrics", {"facts": constant({"a": 1})}, r"Theirs\.facts"),
        ("metrics", {"curves": constant([1])}, r"Theirs\.curves"),
    ],
)
def test_what_does_not_fit_is_refused_by_class_and_method(tmp_path: Path, kind: str, methods: dict[str, Any], says: str) -> None:
    with pytest.raises(GenRepError, match=says):
        run_changed(tmp_path, kind, methods)


def test_nan_of_a_kernel_names_it(tmp_path: Path) -> None:
    for kind, methods in (
        ("kernels", {"block": constant(torch.full((2, 1, 2), torch.nan))}),
        ("derived", {"columns": constant((torch.full((40, 1, 2), torch.nan), {"residual": 0.0}))}),
        ("importances", {"compute": constant(torch.full((40, 1), torch.inf))}),
    ):
        with pytest.raises(NonFiniteError, match=r"test_extension_errors:Theirs\.(block|columns|compute)"):
            run_changed(tmp_path, kind, methods)


@pytest.mark.parametrize("table", [*STATISTICS, "summary", "deletion", "Table", "a/b", "../up", "a.b", ""])
def test_names_of_tables_that_are_taken_or_no_names_of_files_are_refused(table: str) -> None:
    with pytest.raises(ConfigError, match=r"(publish tables of one name|names of tables are not usable)[\s\S]*rename the tables"):
        register(changed(SelfRemoval, tables={table: TableSpec({"seed": pl.Int64})}))
    assert "self_removal" not in METRICS


@pytest.mark.parametrize(
    "attributes",
    [{"numbers": ()}, {"numbers": ("drop",)}, {"tables": {"own": 3}}, {"numbers": (MetricInfo("a b", "", "larger", ""),)}, {"name": "Bad"}],
)
def test_a_metric_that_is_not_described_is_refused(attributes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        register(changed(SelfRemoval, **attributes))


def test_a_broken_metric_of_a_package_stops_only_those_who_use_it(tmp_path: Path) -> None:
    """One that cannot be imported, one whose code fails, and one whose names are taken."""
    with (
        registered(METRICS, "gone", "their_package:Gone"),
        registered(METRICS, "self_removal", changed(SelfRemoval, measured=fail)),
        registered(METRICS, "shadow", changed(SelfRemoval, name="shadow", numbers=(MetricInfo("lds", "", "larger", ""),))),
    ):
        done = run(tmp_path, methods=["random"], seeds=1)
        assert done.plan.experiment.metric_names == ("auc_del_negative", "auc_del_positive")
        told = [str(fault) for fault in METRICS.faults()]
        assert len(told) == 2
        assert "their_package:Gone" in told[0]
        for name in ("gone", "self_removal", "shadow"):
            with pytest.raises((GenRepError, ValueError)):
                assert experiment(metrics={name: {}}).metric_names
