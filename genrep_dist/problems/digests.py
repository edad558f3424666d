"""Digests of the code that defines a problem or a kernel."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.errors import ProblemError
from genrep_dist.problems.checks import build_model, is_shipped
from genrep_dist.problems.protocol import Problem

_NOT_THE_USERS_OWN = {"abc", "builtins", "collections", "dataclasses", "enum", "torch", "typing"}
_EVERY_MODULE_HAS = frozenset(nn.Module().__dict__)


def source_digest(problem: Problem, options: Mapping[str, Any] | None = None) -> str:
    """sha256 of what defines a problem's model and loss. Equal in every process, folder and machine.

    It covers the source files of the problem's class, of the model's classes and of a user's loss; the model's printed form, names,
    shapes and dtypes of its parameters and buffers, and other attributes of its modules; the loss's name and state; and ``options``.
    Left out: options that are file locations (the problem's ``path_options``) and, for shipped problems, options with their default
    value, so that experiments with and without them share models. Data and recipe have separate digests.

    Not covered: functions that a model calls from other files, and constants in buffers, unless they depend on ``options``.
    ProblemError if a class has no source file.
    """
    model = build_model(problem)
    loss = get_loss(problem.loss)
    classes = [type(problem), *(type(module) for module in model.modules())]
    if not is_shipped(loss):
        classes.append(type(loss))
    hidden = set(getattr(problem, "path_options", ()))
    parts = {
        "sources": sorted({(kind.__qualname__, _file_digest(kind)) for start in classes for kind in start.__mro__ if _is_own(kind)}),
        "model": _plain(model),
        "tensors": [(name, _plain(tensor), tensor.requires_grad) for name, tensor in (*model.named_parameters(), *model.named_buffers())],
        "attributes": [(name, _attributes(module)) for name, module in model.named_modules()],
        "loss": [loss.name, None if is_shipped(loss) else _attributes(loss)],
        "options": {
            key: text
            for key, value in (options or {}).items()
            if key not in hidden and (text := _plain(value)) != _defaults(problem).get(key)
        },
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _defaults(problem: Problem) -> dict[str, str]:
    """The default options of a shipped problem. Empty for a user's problem, which may be built by a function with other defaults."""
    if type(problem).__module__.partition(".")[0] != "genrep_dist":
        return {}
    return {name: _plain(option.default) for name, option in inspect.signature(type(problem)).parameters.items()}


def object_digest(built: object, options: Mapping[str, Any] | None = None) -> str:
    """sha256 of the source files of an object's class and of its options."""
    sources = sorted({(kind.__qualname__, _file_digest(kind)) for kind in type(built).__mro__ if _is_own(kind)})
    parts = {"sources": sources, "options": {key: _plain(value) for key, value in (options or {}).items()}}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def class_digest(kind: type) -> str:
    """sha256 of the source files of a class and of its bases. ProblemError if one has no source file."""
    sources = sorted({(base.__qualname__, _file_digest(base)) for base in kind.__mro__ if _is_own(base)})
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def _is_own(kind: type) -> bool:
    """Whether a class may come from the user or one of their libraries."""
    return kind.__module__.partition(".")[0] not in _NOT_THE_USERS_OWN


def _file_digest(kind: type) -> str:
    try:
        text = Path(inspect.getsourcefile(kind) or "").read_bytes()
    except (TypeError, OSError) as error:
        raise ProblemError(
            "a class has no source file, so results cannot be tied to its code",
            where=f"{kind.__module__}:{kind.__qualname__}",
            expected="a class in a file",
            got=f"{type(error).__name__}: {error}",
            remedy="move the class into a .py file and name it module:Class",
        ) from error
    return hashlib.sha256(text.replace(b"\r\n", b"\n")).hexdigest()


def _attributes(owner: object) -> list[tuple[str, str]]:
    """Attributes of an object other than those of all modules: a scale, an activation, a flag."""
    own = getattr(owner, "__dict__", {})
    return sorted((name, _plain(value)) for name, value in own.items() if name not in _EVERY_MODULE_HAS)


def _plain(value: object) -> str:
    """A printed form that is equal in all processes: without memory addresses, sets sorted, tensors by dtype and shape only."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_plain(key)}: {_plain(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_plain(item) for item in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(_plain(item) for item in value))}}}"
    return re.sub(r"\bat 0x[0-9a-fA-F]+", "", repr(value))
