"""The names of attribution methods. No torch here, so that names can be checked at once.

A name is ``{kernel}-{checkpoint}/{importance}``, for example ``ntk-final/tracking``, or one of the field's own names. Kernels and
importances come from their registries; the grammar, the catalogue and the messages follow.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.importances.base import Importance
from genrep_dist.core.kernels import KERNELS
from genrep_dist.core.kernels.base import Kernel
from genrep_dist.core.scorers import SCORERS
from genrep_dist.core.scorers.base import Scorer
from genrep_dist.errors import MethodError

Cost = Literal["none", "one pass", "one pass per checkpoint", "gram"]

CHECKPOINTS = ("initial", "middle", "final")
_EPOCH = re.compile(r"epoch(0|[1-9][0-9]*)")
_PAPER = "Tsai et al. 2023"
_NONE, _ALL, _EXTERNAL, _RANDOM = "none", "all", "external", "random"


@dataclass(frozen=True)
class Method:
    """A method by its parts; ``name`` is what the user wrote and what tables show.

    ``kernel``: a registered kernel, one of the user's own, or "none" and "external" for scores without one.
    ``checkpoint``: the parameters at which the kernel is taken, "initial", "middle", "final" or "epoch<k>"; "all" for a sum over
    checkpoints; "none" for scores without a kernel. ``importance``: a registered importance or scorer, "random" or "external".
    """

    name: str
    kernel: str
    checkpoint: str
    importance: str
    networks: int = 1
    """How many models its scores are the mean of: the explained one and, for an ensemble, others."""
    over: str = "seeds"
    """What the models of an ensemble differ in: "seeds", "checkpoints" of one network, or "dropout", masks of one network."""

    @property
    def has_other_models(self) -> bool:
        """Whether scores are computed of other models than the explained network and its checkpoints."""
        return self.networks > 1 and self.over != "checkpoints"

    @property
    def averages_masks(self) -> bool:
        """Whether scores are the mean over dropout masks, so that those of the network as a whole are not among them."""
        return self.networks > 1 and self.over == "dropout"

    @property
    def averages_checkpoints(self) -> bool:
        """Whether scores are the mean over checkpoints of the explained network."""
        return self.networks > 1 and self.over == "checkpoints"

    @property
    def has_kernel(self) -> bool:
        """Whether scores are products of importances and a kernel: all but those of scorers, random and external ones."""
        return self.checkpoint != _NONE

    @property
    def is_random(self) -> bool:
        return self.importance == _RANDOM

    @property
    def is_external(self) -> bool:
        """Whether the scores were computed by another tool."""
        return self.importance == _EXTERNAL

    @property
    def scorer_class(self) -> type[Scorer] | None:
        """The class of a method whose scores are not an importance times a kernel; None for all others."""
        return None if self.has_kernel or self.is_random or self.is_external else SCORERS.get(self.importance)

    @property
    def is_simple(self) -> bool:
        """Whether it is a simple baseline that others should beat; random scores are not among them."""
        scorer = self.scorer_class
        return scorer.is_baseline if scorer is not None else self.kernel in KERNELS and KERNELS.get(self.kernel).is_baseline

    @property
    def sums_checkpoints(self) -> bool:
        """Whether scores are a sum over checkpoints, each with its own importance and kernel: TracInCP, and means over checkpoints."""
        return self.checkpoint == _ALL

    @property
    def importance_class(self) -> type[Importance]:
        """The class of its importance; for methods that have a kernel."""
        return IMPORTANCES.get(self.importance)

    @property
    def needs_gram(self) -> bool:
        """Whether its importance is solved for on the kernel's gram."""
        return self.has_kernel and self.importance_class.kind == "solved"

    @property
    def follows_labels(self) -> bool:
        """Whether its importances are a function of outputs and labels, so that those of other labels are known."""
        return self.networks == 1 and self.has_kernel and self.importance_class.kind == "outputs"

    @property
    def follows_training(self) -> bool:
        """Whether the scores account for what plain SGD did."""
        weighted_sum = self.sums_checkpoints and not self.averages_checkpoints
        return weighted_sum or (self.has_kernel and self.importance_class.follows_training)

    def averaged(self, name: str, over: str, size: int) -> Method:
        """The ensemble ``name`` of this method's scores. Over checkpoints it is taken at all of them instead of one."""
        return replace(self, name=name, networks=size, over=over, checkpoint=_ALL if over == "checkpoints" else self.checkpoint)


@dataclass(frozen=True)
class Description:
    """A method for people: ``formula`` of phi(x_i -> x), ``source`` with its equation, what it ``needs`` and its ``cost`` class.

    Needs: "gradients" or "last linear layer" (features of every training sample), "checkpoints" (parameters saved while training),
    "tracking" (importances gathered while training), "gram" (the train-by-train kernel), "curvature" (of the loss; its own gram, or
    Hessian-vector products), "layer inputs" (with the gradients of layers' outputs).
    Cost: "none", "one pass" (or a few) over the training samples' features, "one pass per checkpoint", or "gram", quadratic in the samples
    or more.
    """

    name: str
    formula: str
    source: str
    needs: tuple[str, ...]
    cost: Cost


NAMED_METHODS: dict[str, Method] = {
    "tracincp": Method("tracincp", "ntk", _ALL, "target"),
    "influence-function": Method("influence-function", "influence", "final", "target"),
    "representer-point": Method("representer-point", "last-layer", "final", "surrogate"),
    "graddot": Method("graddot", "ntk", "final", "target"),
    "trak": Method("trak", "trak", "final", "target"),
    "ekfac": Method("ekfac", "ekfac", "final", "target"),
    "datainf": Method("datainf", "datainf", "final", "target"),
    "relatif": Method("relatif", "relatif", "final", "target"),
    "random": Method("random", _NONE, _NONE, _RANDOM),
}

# Where the field's own name says more than its parts: the formula and the source.
_NAMED_TEXT: dict[str, tuple[str, str]] = {
    "tracincp": (
        "-sum_t eta_t dL/df(f_t(x_i), y_i) <df_t/dtheta(x_i), df_t/dtheta(x)>",
        f"TracInCP, Pruthi et al. 2020; {_PAPER}, Eq. 14",
    ),
    "influence-function": (
        "-dL/df(f(x_i), y_i) df/dtheta(x_i)^T (H + delta I)^-1 df/dtheta(x)",
        f"influence functions, Koh and Liang 2017; {_PAPER}, Eq. 16",
    ),
    "representer-point": (
        "-(1/(n lambda)) dL/df(K alpha(x_i), f(x_i)) <Phi(x_i), Phi(x)>",
        f"representer point selection, Yeh et al. 2018; {_PAPER}, Corollary 12",
    ),
    "graddot": (
        "-<dL/dtheta(f(x_i), y_i), df/dtheta(x)>",
        "Grad-Dot: the product of gradients at the final parameters; Charpiat et al. 2019",
    ),
    "trak": (
        "-dL/df(f(x_i), y_i) df/dtheta(x_i)^T (G + delta I)^-1 df/dtheta(x), G = sum of the margins' gradient products",
        "TRAK of one model, Park et al. 2023",
    ),
    "ekfac": (
        "-dL/df(f(x_i), y_i) df/dtheta(x_i)^T (H_ek + delta)^-1 df/dtheta(x), H_ek the EK-FAC curvature",
        "influence functions with EK-FAC, Grosse et al. 2023; George et al. 2018",
    ),
    "datainf": (
        "-dL/df(f(x_i), y_i) df/dtheta(x_i)^T S df/dtheta(x), S = (1/N) sum_j (g_j g_j^T + delta I)^-1 by layers",
        "DataInf, Kwon et al. 2024",
    ),
    "relatif": (
        "influence-function / sqrt(g_i^T (H + delta I)^-1 g_i), g_i = dL/dtheta(f(x_i), y_i)",
        "l-RelatIF, Barshan et al. 2020",
    ),
    "random": ("standard normal draws, one order for each seed and test point", "baseline"),
}


def parse_method(name: str, own_kernels: Collection[str] = (), external: Collection[str] = ()) -> Method:
    """The method of that name. MethodError, with the nearest names, when there is none.

    ``own_kernels`` are kernels that the user has named, ``external`` the names of scores that come from other tools.
    """
    if name in external:
        return Method(name, _EXTERNAL, _NONE, _EXTERNAL)
    if name in NAMED_METHODS:
        return NAMED_METHODS[name]
    # Not for every name of the grid: a registry reads the entry points again before it says that a name is not there.
    if "/" not in name and name in SCORERS:
        return Method(name, _NONE, _NONE, name)
    local, slash, importance = name.partition("/")
    kernel, dash, checkpoint = local.rpartition("-")
    known_checkpoint = checkpoint in CHECKPOINTS or _EPOCH.fullmatch(checkpoint) is not None
    if slash and dash and known_checkpoint and importance in IMPORTANCES:
        supported = kernel in KERNELS and _supports(KERNELS.get(kernel), checkpoint, IMPORTANCES.get(importance))
        if supported or kernel in own_kernels:
            return Method(name, kernel, checkpoint, importance)
        if kernel in KERNELS:
            raise _unsupported(name, kernel, checkpoint, importance)
    names = [method.name for method in _all_methods()]
    grammar = f"{{{'|'.join([*KERNELS, *own_kernels])}}}-{{{'|'.join(CHECKPOINTS)}|epoch<k>}}/{{{'|'.join(IMPORTANCES)}}}"
    nearest = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    raise MethodError(
        f"unknown method {name!r}",
        where="methods",
        expected=f"{grammar}, or {', '.join([*NAMED_METHODS, *SCORERS])}",
        got=repr(name),
        remedy=f"nearest: {', '.join(nearest)}" if nearest else "`genrep methods` lists them all",
    )


def _unsupported(name: str, kernel: str, checkpoint: str, importance: str) -> MethodError:
    """The error for a method whose kernel does not have its checkpoint, or not its importance, with the reason."""
    found, solved = KERNELS.get(kernel), IMPORTANCES.get(importance).kind == "solved"
    checkpoints = [one for one in CHECKPOINTS if found.supports(one, needs_gram=False)]
    if checkpoint not in checkpoints:
        reason = f"the kernel {kernel} is defined at {' and '.join(checkpoints)} only"
        nearest = [f"{kernel}-{one}/{importance}" for one in checkpoints if found.supports(one, needs_gram=solved)]
    else:
        reason = f"{importance} is solved for on a kernel of all pairs of training samples, which {kernel} is not computed for"
        others = [one.name for one in IMPORTANCES.usable() if one.kind != "solved"]
        nearest = [f"{kernel}-{checkpoint}/{one}" for one in others]
        nearest += [f"{one.name}-{checkpoint}/{importance}" for one in KERNELS.usable() if one.supports(checkpoint, needs_gram=True)]
    return MethodError(
        f"unknown method {name!r}: {reason}",
        where="methods",
        expected="a method that `genrep methods` lists",
        got=repr(name),
        remedy=f"nearest: {', '.join(nearest)}" if nearest else "`genrep methods` lists them all",
    )


def describe(method: Method) -> Description:
    """What a method computes, where it comes from, what it needs and what it costs."""
    if method.networks > 1:
        if method.averages_checkpoints:
            one = describe(replace(method, networks=1, checkpoint="final"))
            formula = f"mean over {method.networks} checkpoints of {one.formula.replace('theta_final', 'theta_t')}"
            return replace(one, formula=formula, source=f"{one.source}; ensemble", cost="one pass per checkpoint")
        one = describe(replace(method, networks=1))
        models = "dropout masks" if method.averages_masks else "networks"
        return replace(one, formula=f"mean over {method.networks} {models} of {one.formula}", source=f"{one.source}; ensemble")
    scorer = method.scorer_class
    if scorer is not None:
        return Description(method.name, scorer.formula, scorer.source, scorer.needs, "none" if scorer.base is None else "one pass")
    if not method.has_kernel:
        return Description(method.name, *_NAMED_TEXT.get(method.name, ("scores of another tool", method.name)), (), "none")
    kernel, importance = KERNELS.get(method.kernel), method.importance_class
    needs = (*kernel.needs, *(("checkpoints",) if method.checkpoint != "final" else ()), *importance.needs)
    cost: Cost = "one pass per checkpoint" if method.sums_checkpoints else "one pass"
    if "gram" in needs or "curvature" in needs:
        cost = "gram"
    grid = f"{importance.formula} {kernel.formula} at theta_{method.checkpoint}", f"{importance.source}; {kernel.source}"
    return Description(method.name, *_NAMED_TEXT.get(method.name, grid), needs, cost)


def catalogue() -> list[Description]:
    """Every method, the grid first; kernels at "epoch<k>" exist besides, for any saved epoch."""
    return [describe(method) for method in _all_methods()]


def _all_methods() -> Iterator[Method]:
    for kernel in KERNELS.usable():
        for checkpoint in CHECKPOINTS:
            for importance in IMPORTANCES.usable():
                if _supports(kernel, checkpoint, importance):
                    yield Method(f"{kernel.name}-{checkpoint}/{importance.name}", kernel.name, checkpoint, importance.name)
    yield from NAMED_METHODS.values()
    yield from (Method(scorer.name, _NONE, _NONE, scorer.name) for scorer in SCORERS.usable())


def _supports(kernel: type[Kernel], checkpoint: str, importance: type[Importance]) -> bool:
    return kernel.supports(checkpoint, needs_gram=importance.kind == "solved")
