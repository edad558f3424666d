"""Looks through source text for what must not stand in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

FOREIGN_OBJECTS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
"""Modules that run code which their input brings."""

HARMLESS = {"pickle.UnpicklingError", "pickle.PickleError", "pickle.PicklingError"}

FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"}

FORBIDDEN_METHODS = {"extractall", "read_pickle", "to_pickle", "unpack_archive"}

UNSAFE_ARGUMENTS = {"allow_pickle": True, "shell": True, "weights_only": False, "autoescape": False, "verify": False}

SECRETS = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    r"\bAKIA[0-9A-Z]{16}\b",
    r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    r"\bhf_[A-Za-z0-9]{30,}",
    r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.",
    r"(?i)\b[\w-]*(?:token|secret|password|passwd|api_?key|access_?key)[\w-]*[\"']?\s*[:=]\s*[\"']?(?=[A-Za-z+/_-]*[0-9])[A-Za-z0-9+/_-]{16,}",
    r"://[^/\s:@{}$<>]+:(?=[^/\s@]*[0-9])[^/\s@{}$<>]{6,}@",
)
"""Keys, tokens and passwords as they look; the last two: values with a digit, under a name or at a place that says what they are."""


def dangers(source: str) -> list[str]:
    """Lines of Python that unpickle, run text as code, start a shell, or unpack an archive: ``line: what``."""
    tree = ast.parse(source)
    return [f"{line}: {what}" for line, what in sorted(set(_dangers(tree)))]


def _dangers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    modules = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in FOREIGN_OBJECTS and (alias.name != "pickle" or alias.asname):
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            top = (node.module or "").partition(".")[0]
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if top in FOREIGN_OBJECTS and name not in HARMLESS:
                    yield node.lineno, f"from {node.module} import {alias.name}"
                elif name in FORBIDDEN_CALLS or name == "torch.load":
                    yield node.lineno, f"{name} under a name of its own"
        elif isinstance(node, ast.Attribute) and "pickle" in modules:
            if isinstance(node.value, ast.Name) and node.value.id == "pickle" and f"pickle.{node.attr}" not in HARMLESS:
                yield node.lineno, f"pickle.{node.attr}"
        elif isinstance(node, ast.Call):
            yield from _dangerous_call(node)


def _dangerous_call(call: ast.Call) -> Iterator[tuple[int, str]]:
    name = ast.unparse(call.func)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in FORBIDDEN_CALLS or name.rpartition(".")[2] in FORBIDDEN_METHODS:
        yield call.lineno, name
    if name in {"torch.load", "torch.jit.load"} and not _is(given.get("weights_only"), True):
        yield call.lineno, f"{name} without weights_only=True"
    for argument, value in UNSAFE_ARGUMENTS.items():
        if argument in given and not _is(given[argument], not value):
            yield call.lineno, f"{argument}={ast.unparse(given[argument])}"


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def secrets_in(text: str) -> list[str]:
    """What looks like a key, a token or a password, the first characters of each."""
    return [match.group()[:24] for pattern in SECRETS for match in re.finditer(pattern, text)]
