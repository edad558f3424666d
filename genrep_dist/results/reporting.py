"""What the report of a finished run shows, read from its store."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import yaml

from genrep_dist.config import Experiment
from genrep_dist.config.metrics import measured_metrics
from genrep_dist.errors import ProblemError
from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.extension import require_returned
from genrep_dist.problems.protocol import Recipe, recorded_recipe
from genrep_dist.redaction import redact
from genrep_dist.report.build import data_files
from genrep_dist.report.examples import Example, RemovalExample, examples
from genrep_dist.report.glossary import method_terms
from genrep_dist.report.page import ReportData
from genrep_dist.report.sections import TimeUnit
from genrep_dist.report.tables import RANDOM
from genrep_dist.report.verdict import Verdict, best_method, verdict
from genrep_dist.results.run import Run
from genrep_dist.training.optimizers import make_optimizer

LIBRARIES = ("genrep-dist", "torch", "numpy", "ray", "zarr", "polars")
_WITHOUT_CODE = (
    "The problem's code could not be imported when this report was written: its texts, descriptions and class names are not shown."
)


def report_files(
    run: Run, tables: EvaluationTables, *, more_facts: Mapping[str, str] | None = None, origin: Mapping[str, str] | None = None
) -> dict[str, bytes]:
    """File name -> content of the whole report: table.md, table.tex, report.html and the curves as PNG.

    ``more_facts``: what was decided while the experiment ran (stopping, tuning), label to plain text. ``origin``: where the results came
    from (:func:`origin`); None: as their manifest says.
    """
    return data_files(report_data(run, tables, more_facts=more_facts, origin=origin))


def report_data(
    run: Run, tables: EvaluationTables, *, more_facts: Mapping[str, str] | None = None, origin: Mapping[str, str] | None = None
) -> ReportData:
    """Everything that the report of ``run`` shows: its tables, and from the store how they were measured."""
    experiment, target = run.plan.experiment, run.plan.experiment.make_target()
    best = best_method(tables)
    contrast = [name for name in dict.fromkeys((best, RANDOM)) if name in experiment.methods]
    shown, removal, without = _examples(run, tables, contrast)
    return ReportData(
        title=f"{run.name}: which attributions survive retraining",
        methods=experiment.methods,
        tables=tables,
        facts={label: redact(text) for label, text in facts(run, tables, more_facts).items()},
        warnings=(*run.plan.warnings, *_repeat_warnings(run), *_curvature_warnings(run), *without),
        config_yaml=config_text(run, experiment),
        examples=shown,
        blocks=experiment.blocks,
        baseline=experiment.baseline,
        simple=experiment.simple_methods,
        noun=target.noun,
        time_unit=time_unit(run),
        removal=removal,
        origin=_published_origin(run) if origin is None else origin,
        unit=_unit(run),
        target=experiment.target.description(run.plan.shape.num_outputs),
        glossary=method_terms(experiment.parsed_methods),
    )


def run_verdict(run: Run, tables: EvaluationTables) -> Verdict:
    """The opening sentences of the report of ``run``."""
    experiment = run.plan.experiment
    noun = _unit(run) or experiment.make_target().noun
    return verdict(tables, declared=experiment.baseline, simple=experiment.simple_methods, noun=noun)


def _unit(run: Run) -> str:
    """The unit of the explained number."""
    return "logit" if run.plan.experiment.target.kind == "logit" and run.loss_name in ("logistic", "softmax") else ""


def config_text(run: Run, experiment: Experiment) -> str:
    """``config.yaml``: the experiment with all fields, and as comments the values in force that it leaves to the problem or to the run.

    The text is read as ``experiment``: running it again computes nothing.
    """
    recipe = run.record["recipe"]
    used = {"optimizer", "epochs", "batch_size", "learning_rate", "schedule", *run.plan.keys.recipe_changes}
    force = {"recipe": {name: value for name, value in recipe.items() if name in used}}
    if not run.plan.shape.own_training:
        lines = ["# In force, from the experiment and the problem's own recipe:", *_commented(force)]
    else:
        lines = ["# The problem trains with a function of its own."]
    tune, stop = run.choices.get("tune"), run.choices.get("stop")
    if tune is not None:
        lines += ["# Tuned on seeds that are not reported:", *_commented({str(tune["parameter"]): tune["chosen"]})]
    if stop is not None:
        lines += ["# Seeds after the stopping rule:", *_commented({"seeds": list(run.plan.experiment.seeds)})]
    return experiment.to_yaml() + redact("\n".join(lines)) + "\n"


def _commented(data: Mapping[str, Any]) -> list[str]:
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=116)
    return [f"# {line}" for line in text.splitlines()]


def origin(
    ended: float | None, provenance: Mapping[str, str], command: str | None = None, tracking: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Date, commit, command and MLflow run of published results, label to text.

    ``ended`` in Unix milliseconds; ``provenance``, ``command`` and ``tracking`` as in the manifest.
    """
    found = {} if ended is None else {"Date": f"{datetime.fromtimestamp(ended / 1000, UTC):%Y-%m-%d %H:%M} UTC"}
    commit = provenance.get("git_commit", "unknown")
    if commit != "unknown":
        found["Commit"] = commit[:12] + ("-dirty (tracked files were changed)" if commit.endswith("-dirty") else "")
    if provenance.get("submission_id", "none") != "none":
        found["Ray job"] = provenance["submission_id"]
    found["To reproduce"] = (
        "genrep run config.yaml (the file is beside this report), in the folder of the problem's code and with the same --store"
    )
    if command:
        found["Started as"] = command
    if tracking is not None and tracking.get("hint", "none") != "none":
        found["MLflow"] = str(tracking["hint"])
    return found


def _published_origin(run: Run) -> dict[str, str]:
    manifest = run.manifest() or {}
    ended = manifest.get("times", {}).get("ended")
    return origin(ended, manifest.get("provenance", {}), manifest.get("command"), manifest.get("tracking"))


def _examples(run: Run, tables: EvaluationTables, methods: Sequence[str]) -> tuple[Sequence[Example], RemovalExample | None, list[str]]:
    """The report's examples, and a warning where they are shown without the problem's own words about its samples."""
    words = run.sample_words()
    without = [] if run.can_read_code() else [_WITHOUT_CODE]

    def made() -> tuple[Sequence[Example], RemovalExample | None]:
        # The examples show the predictions of a loaded model.
        points = examples(run, methods[:1], seed=run.plan.experiment.seeds[0], **words) if run.plan.shape.has_module else ()
        return points, run.removal_example(tables, methods, words)

    try:
        return *made(), without
    except ProblemError as error:
        if words["texts"] is None and words["describe"] is None:
            raise
        # All models are trained by now, and what was measured needs no words.
        words |= {"texts": None, "describe": None}
        without.append(f"Samples are shown without their texts and descriptions: {error.what}: {error.got}.")
        return *made(), without


def _repeat_warnings(run: Run) -> list[str]:
    """That training is not deterministic, with the size of the difference between two trainings."""
    found = run.choices.get("repeat")
    if found is None or found["difference"] == 0.0:
        return []
    return [
        f"Training is not deterministic: the original model of seed {found['seed']} was trained twice, and its test outputs differ by "
        f"up to {found['difference']:.3g}, with outputs up to {found['scale']:.3g}. Common random numbers (retrain: same) mean nothing "
        "then, and were treated as fresh: every difference contains the noise of two trainings. Several replicates (retrain: fresh, "
        "replicates: n) average it."
    ]


def _curvature_warnings(run: Run) -> list[str]:
    """Derived kernels whose curvature is zero on some training samples, each a sentence."""
    flat: dict[str, float] = {}
    for certificate in run.certificate_records():
        name = certificate["kernel"]
        flat[name] = max(flat.get(name, 0.0), certificate.get("flat_share", 0.0))
    return [
        f"The loss is linear in the outputs on {share:.0%} of the training samples (the largest share of all networks): they add "
        f"nothing to the curvature H of the {name} kernel, which is close to a kernel without curvature where this share is large."
        for name, share in flat.items()
        if share > 0
    ]


def time_unit(run: Run) -> TimeUnit:
    """The unit of the run's seconds, from the devices of its original models."""
    devices = {run.store.artifact("train", run.plan.keys.train(seed)).manifest()["device"] for seed in run.plan.experiment.seeds}
    return TimeUnit.for_devices(devices, run.plan.experiment.resources.num_gpus or 0.0)


def facts(run: Run, tables: EvaluationTables, more_facts: Mapping[str, str] | None = None) -> dict[str, str]:
    """How the numbers were measured, label to value, in the order shown."""
    plan, experiment = run.plan, run.plan.experiment
    shape, costs = plan.shape, run.costs()
    found = {
        "Problem": f"{experiment.problem.name} {experiment.problem.options or ''}".strip(),
        "Data": f"{shape.num_train:,} training samples, {shape.num_test:,} test samples",
        "Model": f"{f'{shape.num_parameters:,} parameters' if shape.has_module else 'no torch module'}, {shape.num_outputs} "
        f"output{'s' if shape.num_outputs > 1 else ''}",
        "Recipe": _own_training_text(run) if shape.own_training else _recipe_text(recorded_recipe(plan.keys.recipe)),
        "Explained number": experiment.target.description(shape.num_outputs),
        "Networks × test points": f"{len(experiment.seeds)} × {experiment.num_test_points}"
        + ("" if experiment.target.group is None else f", {experiment.num_explained} group{'s' if experiment.num_explained > 1 else ''}"),
    }
    for metric in measured_metrics(experiment):
        own = metric.facts(experiment, shape.num_train, tables)
        is_text = isinstance(own, dict) and all(isinstance(text, str) for text in (*own, *own.values()))
        require_returned(is_text, metric, "facts", "texts by label", own)
        found |= own
    found |= {
        "Models trained": f"{costs['originals']:,} originals, {costs['unique']:,} distinct retrainings for {costs['asked']:,} requests",
        "Training time": f"{costs['seconds']:,.0f} {time_unit(run).name} in total, {costs['seconds_per_model']:.2g} a model",
        **(more_facts or {}),
    }
    accuracy = run.training()["test_accuracy"].drop_nulls()
    if len(accuracy):
        found["Test accuracy of the originals"] = f"mean {100 * float(accuracy.mean()):.1f} %, lowest {100 * float(accuracy.min()):.1f} %"  # type: ignore[arg-type]
    certificates = run.certificate_records()
    for name in sorted({certificate["importance"] for certificate in certificates if certificate["importance"]}):
        found[name.capitalize()] = _solution_text(
            experiment.importance(name).description, [certificate for certificate in certificates if certificate["importance"] == name]
        )
    dampings = [float(certificate["damping"]) for certificate in certificates if "damping" in certificate]
    if dampings:
        tuned = str((run.choices.get("tune") or {}).get("parameter", ""))
        found["Damping of H"] = _damping_text(experiment, dampings, is_tuned="damping" in tuned)
    found["Versions"] = ", ".join(f"{name} {version(name)}" for name in LIBRARIES) + f", Python {platform.python_version()}"
    found["Experiment digest"] = plan.keys.results
    found["Data digest"] = plan.keys.data
    return found


def _solution_text(settings: str, certificates: Sequence[dict[str, Any]]) -> str:
    """The settings of a solved importance, and the worst of its certificates."""
    texts = [settings] if settings else []
    residuals = [certificate["residual"] for certificate in certificates if certificate.get("residual") is not None]
    if residuals:
        texts.append(f"largest residual {max(residuals):.1e}")
    gap = max(certificate["efficiency_gap"] for certificate in certificates)
    return "; ".join([*texts, f"largest efficiency gap max |f - K alpha| on the training set {gap:.3g}"])


def _damping_text(experiment: Experiment, dampings: Sequence[float], *, is_tuned: bool) -> str:
    """The damping, the absolute ones that it gave, and whether it was tuned."""
    influence = experiment.influence
    absolute = f"{min(dampings):.3g}" + (f" to {max(dampings):.3g}" if max(dampings) > min(dampings) else "")
    relative = f": {absolute}" if influence.damping_unit == "mean-eigenvalue" else ""
    return influence.damping_text + relative + ("" if is_tuned else "; not tuned")


def _recipe_text(recipe: Recipe) -> str:
    rounded = "" if recipe.precision == "full" else f", products in {recipe.precision}"
    warmup = "" if recipe.warmup is None else f", warm-up {recipe.warmup:g}"
    rate = f"learning rate {recipe.learning_rate:g} ({recipe.schedule}{warmup})"
    augmented = "" if recipe.augment is None else f", rows augmented by {recipe.augment}"
    batches = f"{'whole ' if recipe.drop_last else ''}batches of {recipe.batch_size}"
    return f"{recipe.epochs} epochs of {make_optimizer(recipe).description}, {batches}, {rate}{rounded}{augmented}"


def _own_training_text(run: Run) -> str:
    found = run.choices.get("repeat")
    same = "" if found is None or found["difference"] else "; trained twice, the first original model has the same outputs"
    return f"the problem's own training function{same}"
