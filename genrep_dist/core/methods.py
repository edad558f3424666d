"""The names of attribution methods: what is multiplied with what. No torch here, so that names can be checked at once.

A name is ``{kernel}-{checkpoint}/{importance}``, for example ``ntk-final/tracking``, or one of the field's own.
A new kernel or importance is one entry in ``KERNELS`` or ``IMPORTANCES``; the grammar, the catalogue and the messages follow.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from genrep_dist.errors import MethodError

Cost = Literal["none", "one pass", "one pass per checkpoint", "gram"]

CHECKPOINTS = ("initial", "middle", "final")
_EPOCH = re.compile(r"epoch(0|[1-9][0-9]*)")
_PAPER = "Tsai et al. 2023"


@dataclass(frozen=True)
class Method:
    """A method by its parts; ``name`` is what the user wrote and what tables show.

    ``kernel``: "ntk", "last-layer", "influence", a kernel of the user's own, or "none" (random).
    ``checkpoint``: whose parameters the kernel takes, "initial", "middle", "final" or "epoch<k>"; "all" for TracInCP's sum, "none"
    for random.
    ``importance``: "target", "surrogate", "descent", "tracking" or "random"; the target derivative is always the explained (final)
    model's, except in TracInCP, where each checkpoint has its own.
    """

    name: str
    kernel: str
    checkpoint: str
    importance: str


@dataclass(frozen=True)
class Description:
    """A method for people: ``formula`` of phi(x_i -> x), ``source`` with its equation, what it ``needs`` and its ``cost`` class.

    Needs: "gradients" or "last linear layer" (features of every training sample), "checkpoints" (parameters saved while training),
    "tracking" (importances gathered while training), "gram" (the train-by-train kernel), "curvature" (of the loss; its own gram, or
    Hessian-vector products).
    Cost: "none", "one pass" over the training samples' features, "one pass per checkpoint", or "gram", quadratic in the samples or more.
    """

    name: str
    formula: str
    source: str
    needs: tuple[str, ...]
    cost: Cost


@dataclass(frozen=True)
class _Part:
    """A kernel or an importance: its formula, its source and what it needs."""

    formula: str
    source: str
    needs: tuple[str, ...]


KERNELS: dict[str, _Part] = {
    "ntk": _Part("<df/dtheta(x_i), df/dtheta(x)>", f"neural tangent kernel, Jacot et al. 2018; {_PAPER}, Eq. 13", ("gradients",)),
    "last-layer": _Part("<Phi(x_i), Phi(x)>", f"penultimate activations and a constant 1; {_PAPER}, Eq. 11", ("last linear layer",)),
    "influence": _Part(
        "df/dtheta(x_i)^T (H + delta I)^-1 df/dtheta(x)",
        f"influence function kernel, Koh and Liang 2017; {_PAPER}, Eq. 15",
        ("gradients", "curvature"),
    ),
}
SOLVED = ("surrogate", "descent")
"""Importances that are solved for on a kernel's gram; the others fall out of training."""
_FINAL_ONLY = "influence"
"""H is the curvature at the minimum; elsewhere it is not positive semi-definite and the kernel no kernel."""

IMPORTANCES: dict[str, _Part] = {
    "target": _Part("-dL/df(f(x_i), y_i)", f"target derivative, {_PAPER}, Eq. 7", ()),
    "surrogate": _Part("-(1/(n lambda)) dL/df(K alpha(x_i), f(x_i))", f"surrogate derivative, {_PAPER}, Eq. 5-6", ("gram",)),
    "descent": _Part("-sum_t eta_t/|B_t| dL/df(K alpha_t(x_i), f(x_i))", f"kernel gradient descent, {_PAPER}, Eq. 8-9", ("gram",)),
    "tracking": _Part("-sum_t eta_t/|B_t| dL/df(f_t(x_i), y_i)", f"tracking representers, {_PAPER}, Eq. 10", ("tracking",)),
}

NAMED_METHODS: dict[str, Method] = {
    "tracincp": Method("tracincp", "ntk", "all", "target"),
    "influence-function": Method("influence-function", "influence", "final", "target"),
    "representer-point": Method("representer-point", "last-layer", "final", "surrogate"),
    "random": Method("random", "none", "none", "random"),
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
    "random": ("standard normal draws, one order for each seed and test point", "baseline"),
}


def parse_method(name: str, own_kernels: Collection[str] = (), external: Collection[str] = ()) -> Method:
    """The method of that name. MethodError, with the nearest names, when there is none.

    ``own_kernels`` are kernels that the user has named, ``external`` the names of scores that come from elsewhere.
    """
    if name in external:
        return Method(name, "external", "none", "external")
    if name in NAMED_METHODS:
        return NAMED_METHODS[name]
    local, slash, importance = name.partition("/")
    kernel, dash, checkpoint = local.rpartition("-")
    known_checkpoint = checkpoint in CHECKPOINTS or _EPOCH.fullmatch(checkpoint) is not None
    if (
        slash
        and dash
        and kernel in {*KERNELS, *own_kernels}
        and known_checkpoint
        and importance in IMPORTANCES
        and _offered(kernel, checkpoint, importance)
    ):
        return Method(name, kernel, checkpoint, importance)
    names = _names()
    grammar = f"{{{'|'.join([*KERNELS, *own_kernels])}}}-{{{'|'.join(CHECKPOINTS)}|epoch<k>}}/{{{'|'.join(IMPORTANCES)}}}"
    nearest = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    raise MethodError(
        f"unknown method {name!r}",
        where="methods",
        expected=f"{grammar}, or {', '.join(NAMED_METHODS)}",
        got=repr(name),
        remedy=f"nearest: {', '.join(nearest)}" if nearest else "`genrep methods` lists them all",
    )


def describe(method: Method) -> Description:
    """What a method computes, where it comes from, what it needs and what it costs."""
    needs: tuple[str, ...] = ()
    if method.kernel != "none":
        needs += KERNELS[method.kernel].needs
        if method.checkpoint != "final":
            needs += ("checkpoints",)
        needs += IMPORTANCES[method.importance].needs
    cost: Cost = "one pass"
    if method.kernel == "none":
        cost = "none"
    elif "gram" in needs or "curvature" in needs:
        cost = "gram"
    elif method.checkpoint == "all":
        cost = "one pass per checkpoint"
    if method.name in _NAMED_TEXT:
        formula, source = _NAMED_TEXT[method.name]
    else:
        kernel, importance = KERNELS[method.kernel], IMPORTANCES[method.importance]
        formula = f"{importance.formula} {kernel.formula} at theta_{method.checkpoint}"
        source = f"{importance.source}; {kernel.source}"
    return Description(method.name, formula, source, needs, cost)


def catalogue() -> list[Description]:
    """Every method, the grid first; kernels at "epoch<k>" exist besides, for any saved epoch."""
    return [describe(parse_method(name)) for name in _names()]


def _names() -> list[str]:
    grid = [(kernel, checkpoint, importance) for kernel in KERNELS for checkpoint in CHECKPOINTS for importance in IMPORTANCES]
    return [
        *(f"{kernel}-{checkpoint}/{importance}" for kernel, checkpoint, importance in grid if _offered(kernel, checkpoint, importance)),
        *NAMED_METHODS,
    ]


def _offered(kernel: str, checkpoint: str, importance: str) -> bool:
    """The influence kernel exists at the final parameters; what is solved on a gram would need its own train-by-train gram."""
    return kernel != _FINAL_ONLY or (checkpoint == "final" and importance not in SOLVED)
