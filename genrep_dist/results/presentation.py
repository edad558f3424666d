"""How a run shows itself: as text, in a notebook, and as matplotlib figures."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from genrep_dist.errors import GenRepError, MethodError, ProblemError
from genrep_dist.evaluation.metrics.base import CurvePlot
from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.report.class_names import checked_class_names, shipped_class_names
from genrep_dist.report.styles import INK
from genrep_dist.report.tables import MINUS, RANDOM, Table, result_tables
from genrep_dist.report.verdict import Verdict, best_method, verdict
from genrep_dist.results.arrays import Arrays
from genrep_dist.results.base import Array
from genrep_dist.results.tables import Tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from genrep_dist.report.examples import Removal, RemovalExample, Sample

MAX_LABEL = 18
"""Characters of a label over a picture of :meth:`Presentation.plot_examples`."""

# matplotlib is imported where something is drawn: a run is opened without it.


class Presentation(Tables, Arrays):
    """Tables and figures of a finished run need no code of a user; the sentences, values and class names of its samples do."""

    def texts(self) -> Callable[[Tensor], Sequence[str]] | None:
        """The problem's function from ids of samples to their texts.

        None for a problem without one, and whose code may not be imported, or cannot, as it is not that of the run any more.
        """
        found: Callable[[Tensor], Sequence[str]] | None = self._of_problem("texts")
        return found

    def describe(self) -> Callable[[Tensor], Sequence[Mapping[str, object]]] | None:
        """The problem's function from ids of samples to their values by name; None as for :meth:`texts`."""
        found: Callable[[Tensor], Sequence[Mapping[str, object]]] | None = self._of_problem("describe")
        return found

    def class_names(self) -> tuple[str, ...]:
        """The names of the classes: those of a shipped problem, or the problem's attribute ``class_names``; empty as for :meth:`texts`."""
        declared = self.plan.experiment.problem
        found = shipped_class_names(declared.name, declared.options)
        return found or checked_class_names(self._of_problem("class_names"))

    def _of_problem(self, name: str) -> Any:
        return getattr(self.context.problem, name, None) if self.can_read_code() else None

    def can_read_code(self) -> bool:
        """Whether the problem's code may be imported, can be, and is that of the run."""
        with suppress(ProblemError):
            return self.has_code and self.context.problem is not None
        return False

    def sample_words(self) -> dict[str, Any]:
        """What the problem says of its samples: :meth:`texts`, :meth:`describe`, :meth:`class_names`."""
        return {"texts": self.texts(), "describe": self.describe(), "class_names": self.class_names()}

    def removal_example(
        self,
        tables: EvaluationTables | None = None,
        methods: Sequence[str] | None = None,
        words: Mapping[str, Any] | None = None,
    ) -> RemovalExample | None:
        """The first example of the report: a test point, and what really happened without the training samples that ``methods`` select.

        ``methods``: the method with the best mean, and random removal. ``tables``: the published ones. ``words``: :meth:`sample_words`.
        None where nothing was removed,
        where means of groups are explained, and for models that are no torch modules.
        """
        from genrep_dist.report.examples import removal_example

        if self.plan.experiment.target.group is not None or not self.plan.shape.has_module:
            return None
        judged = self.judged() if tables is None else tables
        chosen = self._contrast(judged) if methods is None else methods
        replicates, said = self.plan.experiment.deletion.replicates, self.sample_words() if words is None else words
        return removal_example(self, judged["deletion"], chosen, random=RANDOM, replicates=replicates, **said)

    def plot_curves(self, curve: str | None = None, *, axes: Axes | None = None, methods: Sequence[str] | None = None) -> Axes:
        """Draw the deletion curves, or the ``curve`` of that name ("curves_positive", "inspection"), and return the axes.

        The best method, the declared baseline and random removal have 95% bands, others are thin lines; all of the given ``methods`` are
        thick. New axes are made by pyplot. MethodError for a curve or a method that was not measured.
        """
        from genrep_dist.report.canvas import figure_style
        from genrep_dist.report.figures import draw_curves

        judged = self.judged()
        plot = self._curve(judged, curve)
        measured = set(plot.frame["method"])
        unknown = [name for name in methods or () if name not in measured]
        if unknown:
            known = ", ".join(sorted(measured))
            raise MethodError("no such method was measured", where=f"{self.name}, {plot.name}", expected=known, got=unknown[0])
        strong = self._emphasised(judged) if methods is None else methods
        shown = [name for name in self._method_names if methods is None or name in methods]
        with figure_style():
            if axes is None:
                from matplotlib import pyplot

                _, axes = pyplot.subplots(figsize=(7.4, 4.0), layout="constrained")
            draw_curves(axes, plot, methods=shown, emphasised=strong)
        return axes

    def plot_examples(self, methods: Sequence[str] | None = None) -> Array:
        """Draw the first example of the report, and return the axes (R, 1 + n): a row a removal, the test sample first.

        ``methods``: the method with the best mean, and random removal. MethodError where nothing was removed.
        """
        from matplotlib import pyplot

        from genrep_dist.report.canvas import figure_style

        found = self.removal_example(methods=methods)
        if found is None:
            expected = "a run that removes training samples, and its methods"
            raise MethodError("there is no removal to show", where=self.name, expected=expected, got=str(methods or "none was made"))
        columns = 1 + max(len(removal.samples) for removal in found.removals)
        with figure_style():
            size = (1.35 * columns + 0.6, 1.9 * len(found.removals) + 0.3)
            _, axes = pyplot.subplots(len(found.removals), columns, figsize=size, squeeze=False, layout="constrained")
            for row, removal in zip(axes, found.removals, strict=True):
                _draw_sample(row[0], found.point, f"test sample {found.point.id}\n{_label_line(found.point)}")
                row[0].set_ylabel(_outcome(removal), fontsize=8)
                for place in range(1, columns):
                    if place <= len(removal.samples):
                        sample = removal.samples[place - 1]
                        _draw_sample(row[place], sample, f"id {sample.id}\n{_label_line(sample)}")
                    else:
                        row[place].set_axis_off()
        result: Array = axes
        return result

    def __repr__(self) -> str:
        """The name, the state, and the best mean; never an error."""
        try:
            judged = self.judged()
            best = best_method(judged)
            row = judged.metrics.filter(metric=judged.measured[0], method=best).row(0, named=True)
            title = self._result_tables(judged)[0].numbers[0].title
            design = f"{row['num_seeds']} networks × {row['num_points']} test points"
            return f"<Run {self.name}: {len(self._method_names)} methods, {design}; best mean: {best}, {title} {row['mean']:.3f}>"
        except GenRepError as error:
            return f"<Run {self.name} in {self.store.uri}: {error.what}>"

    def _repr_html_(self) -> str:
        """The verdict, the first table and the first curves."""
        from genrep_dist.report.figures import curve_figure

        try:
            judged = self.judged()
            parts = [Markup("<p><b>{}</b>: {}</p>").format(self.name, self._verdict(judged).headline)]
            parts += [_html_table(table) for table in self._result_tables(judged)[:1]]
            for plot in judged.curves[:1]:
                image = curve_figure(plot, methods=self._method_names, emphasised=self._emphasised(judged))
                source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
                parts.append(Markup('<img src="{}" alt="{}" style="max-width:48rem;width:100%">').format(source, plot.alt_text))
            return str(Markup("").join(parts))
        except GenRepError:
            return str(Markup("<p>{}</p>").format(repr(self)))

    @property
    def _method_names(self) -> tuple[str, ...]:
        # Of the record: they are known where the run's own kernels are not.
        return tuple(self.record["experiment"]["methods"])

    @property
    def _baseline(self) -> str | None:
        found: str | None = self.record["experiment"].get("baseline")
        return found

    def _verdict(self, judged: EvaluationTables) -> Verdict:
        return verdict(judged, declared=self._baseline)

    def _contrast(self, judged: EvaluationTables) -> list[str]:
        return [name for name in dict.fromkeys((best_method(judged), RANDOM)) if name in self._method_names]

    def _emphasised(self, judged: EvaluationTables) -> list[str]:
        return [name for name in (best_method(judged), self._baseline, RANDOM) if name is not None]

    def _result_tables(self, judged: EvaluationTables) -> list[Table]:
        blocks = self.record["experiment"].get("blocks") or None
        return result_tables(judged, self._method_names, blocks=blocks, baseline=self._baseline, minus=MINUS)

    def _curve(self, judged: EvaluationTables, name: str | None) -> CurvePlot:
        curves = {plot.name: plot for plot in judged.curves}
        if not curves or (name is not None and name not in curves):
            raise MethodError(
                "no such curve was measured", where=self.name, expected=", ".join(curves) or "a metric with curves", got=str(name)
            )
        return curves[name] if name is not None else next(iter(curves.values()))


def _outcome(removal: Removal) -> str:
    from genrep_dist.report.canvas import drawable

    before, after = (f"{value:.3g}".replace("-", MINUS) for value in (removal.before, removal.after))
    which = "at random" if removal.is_random else drawable(removal.method)
    return f"{which}\n{removal.num_removed} left out\n{before} → {after}"


def _label_line(sample: Sample) -> str:
    """The label in a line as wide as a picture: of several targets those that fit."""
    text = f"label {sample.label}"
    if len(text) <= MAX_LABEL:
        return text
    kept = sample.label[: MAX_LABEL - 2].rpartition(",")[0] or sample.label[: MAX_LABEL - 2]
    return f"{kept}, …" if "," in sample.label else f"{kept}…"


def _draw_sample(axes: Axes, sample: Sample, title: str) -> None:
    from matplotlib.image import imread

    from genrep_dist.report.canvas import drawable

    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_title("\n".join(drawable(line) for line in title.split("\n")), fontsize=8)
    if sample.picture is not None:
        axes.imshow(np.asarray(imread(io.BytesIO(sample.picture), format="png")), interpolation="nearest")
        return
    lines = textwrap.wrap(sample.text, 24) if sample.text is not None else [f"{name}: {value}" for name, value in sample.features]
    axes.text(0.04, 0.96, "\n".join(map(drawable, lines[:9])), transform=axes.transAxes, va="top", fontsize=5.5, color=INK)


def _html_table(table: Table) -> Markup:
    """A table of a report as an HTML table for a notebook."""
    heads = Markup("").join(Markup("<th>{}</th>").format(heading) for heading in table.headings)
    rows = []
    for _, block in table.blocks:
        for row in block:
            texts = [text for cell in row.cells for text in (cell.mean + cell.marks, *table.texts(cell))]
            cells = Markup("").join(Markup("<td>{}</td>").format(text) for text in (row.method, *texts, row.design))
            rows.append(Markup("<tr>{}</tr>").format(cells))
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(heads, Markup("").join(rows))
