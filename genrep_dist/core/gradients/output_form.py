"""Which tensor of what a model returns is its output, and the remedy that fits where none is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor


def model_output(raw: object) -> object:
    """The tensor that stands for a model's output: ``logits`` of an object or dictionary, else the first entry of a tuple or list.

    What is none of these is returned as it is.
    """
    if isinstance(raw, Tensor):
        return raw
    named = raw.get("logits") if isinstance(raw, Mapping) else getattr(raw, "logits", None)
    if isinstance(named, Tensor):
        return named
    first = raw[0] if isinstance(raw, tuple | list) and raw else None
    # Of (loss, logits) the first is a number, not an output of each row.
    return first if isinstance(first, Tensor) and first.dim() else raw


def describe_output(raw: object) -> str:
    """What a model returned, with the shapes of the tensors in it."""
    if isinstance(raw, Tensor):
        return f"a tensor of shape {tuple(raw.shape)}"
    parts = _parts(raw)
    if not parts:
        return type(raw).__name__
    texts = [f"{access}: {tuple(part.shape)}" if isinstance(part, Tensor) else f"{access}: {type(part).__name__}" for access, part in parts]
    return f"{type(raw).__name__} of {', '.join(texts[:6])}" + (", ..." if len(texts) > 6 else "")


def output_remedy(raw: object, num_rows: int, model_name: str = "YourModel") -> str:
    """How to make a model return a tensor (``num_rows``, C)."""
    if not isinstance(raw, Tensor):
        access = _logits(_parts(raw), num_rows)
        if not access:
            return "let forward() return the logits: one tensor, with a row for each input"
        return (
            "wrap the model so that it returns the logits alone, and return the wrapped one from model():\n"
            f"    class Logits({model_name}):\n"
            f"        def forward(self, *args): return super().forward(*args){access}"
        )
    if raw.dim() >= 3:
        return (
            "return one row of logits for each input: take one position or the mean over the other dimensions, or flatten them with "
            "outputs.flatten(1)"
        )
    if raw.dim() == 2 and num_rows in raw.shape[1:]:
        return "the first dimension must be that of the inputs: transpose the output, or set batch_first=True in the layers"
    if raw.dim() == 0:
        return "name the dimension when squeezing: squeeze() also drops a batch of one, squeeze(1) does not"
    return "return one row of logits for each input, without a sum or mean over the inputs"


def _parts(raw: object) -> list[tuple[str, object]]:
    """(access, value) of what a container holds: "[0]", ".logits", "['logits']"."""
    names = getattr(raw, "_fields", None)
    if isinstance(raw, tuple) and names is not None:
        return [(f".{name}", getattr(raw, name)) for name in names]
    if isinstance(raw, (tuple, list)):
        return [(f"[{index}]", part) for index, part in enumerate(raw)]
    if is_dataclass(raw) and not isinstance(raw, type):
        return [(f".{field.name}", getattr(raw, field.name)) for field in fields(raw) if getattr(raw, field.name) is not None]
    if isinstance(raw, Mapping):
        return [(f"[{key!r}]", part) for key, part in raw.items()]
    return []


def _logits(parts: list[tuple[str, object]], num_rows: int) -> str:
    """The access to the part that is called logits, else to the first that has the form of logits; empty if none has it."""
    fitting = [
        access for access, part in parts if isinstance(part, Tensor) and part.dim() in (1, 2) and part.shape[0] == num_rows and part.numel()
    ]
    named = [access for access in fitting if access in (".logits", "['logits']")]
    return next(iter([*named, *fitting]), "")
