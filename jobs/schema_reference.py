"""Write docs/experiment-files.md, the reference of experiment files, from their JSON Schema.

python jobs/schema_reference.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from genrep_dist.config import Experiment  # noqa: E402

PAGE = ROOT / "docs/experiment-files.md"
HEAD = """# Experiment files

An experiment is a YAML file. This page lists all of its fields. It is written from the schema by `jobs/schema_reference.py`;
`genrep schema` prints the same as JSON Schema, for completion and checks in editors.

```yaml
name: my-experiment
problem: {name: "my_problem:MyProblem", options: {hidden: 16}}
seeds: 10
test_points: 5
methods: [ntk-final/tracking, tracincp, random]
deletion: {fractions: [0.0, 0.05, 0.1]}
```

- `--set deletion.retrain=fresh` changes a field from the command line, `overrides=["deletion.retrain=fresh"]` in Python.
- `seeds` is required, unless `stop` is given.
- A field that is not listed here is refused, with its line and the nearest name.
- `store/results/<name>/config.yaml` of a run has all fields with the values that were used.
"""
NO_DEFAULT = object()


def page() -> str:
    """The whole page, Markdown."""
    schema = Experiment.model_json_schema(by_alias=True)
    definitions, headings = schema["$defs"], _headings(schema)
    parts = [HEAD, "## The experiment\n", *_table(schema, definitions, headings)]
    for name, heading in headings.items():
        parts += [f"\n## {heading}\n", _text(definitions[name]), "", *_table(definitions[name], definitions, headings)]
    return "\n".join(parts) + "\n"


def _headings(schema: Mapping[str, Any]) -> dict[str, str]:
    """Definition of each section to its heading, in the order in which fields refer to them."""
    seen: dict[str, str] = {}
    waiting = [("", schema)]
    while waiting:
        prefix, part = waiting.pop(0)
        for field, about in part.get("properties", {}).items():
            for name in _references(about):
                if name not in seen:
                    seen[name] = f"{prefix}{field}"
                    waiting.append((f"{prefix}{field}.", schema["$defs"][name]))
    return seen


def _references(about: Any) -> Iterator[str]:
    """Definitions that a field refers to."""
    if isinstance(about, dict):
        if "$ref" in about:
            yield about["$ref"].rpartition("/")[2]
        for value in about.values():
            yield from _references(value)
    elif isinstance(about, list):
        for value in about:
            yield from _references(value)


def _text(about: Mapping[str, Any]) -> str:
    return " ".join(about.get("description", "").split())


def _table(section: Mapping[str, Any], definitions: Mapping[str, Any], headings: Mapping[str, str]) -> Iterator[str]:
    required = section.get("required", ())
    yield "| field | value | default | |"
    yield "|:--|:--|:--|:--|"
    for name, about in section.get("properties", {}).items():
        default = about.get("default", NO_DEFAULT)
        if name in required:
            shown = "required"
        elif default is NO_DEFAULT or isinstance(default, dict):
            shown = ""  # a section, whose fields have defaults of their own
        else:
            shown = "none" if default is None else f"`{json.dumps(default)}`"
        text, kind = _text(about), _type(about)
        for inner in dict.fromkeys(_references(about)):
            anchor = headings[inner].replace(".", "").lower()
            word = "sections" if "sections" in kind else "section"
            kind, text = kind.replace(word, f"[{word}](#{anchor})", 1), text or _text(definitions[inner])
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{name}`", kind, shown, text)) + " |"


def _type(about: Mapping[str, Any]) -> str:
    """What a field holds, in words."""
    if "$ref" in about:
        return "section"
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    if "const" in about:
        return f"`{about['const']}`"
    for many in ("anyOf", "oneOf", "allOf"):
        if many in about:
            kinds = [_type(one) for one in about[many] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    kind = about.get("type")
    if kind == "array":
        if "prefixItems" in about:
            return f"list of {len(about['prefixItems'])}: each a {_type(about['prefixItems'][0])}"
        return f"list of {_plural(_type(about.get('items', {})))}"
    if kind == "object":
        inner = about.get("additionalProperties")
        return f"map of names to {_plural(_type(inner))}" if isinstance(inner, dict) and inner else "map"
    words = {"string": "text", "boolean": "true or false", "integer": "whole number", "number": "number"}
    return words.get(str(kind), "any value") + _bounds(about)


def _plural(kind: str) -> str:
    word, comma, bounds = kind.partition(",")
    plural = {"text": "texts", "number": "numbers", "whole number": "whole numbers", "section": "sections"}.get(word)
    if plural is None:
        return f"lists{kind.removeprefix('list')}" if kind.startswith("list of") else kind
    return f"{plural}{comma} each{bounds}" if comma else plural


def _bounds(about: Mapping[str, Any]) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    found = [f"{text} {about[name]:g}" for name, text in words.items() if name in about]
    return f", {' and '.join(found)}" if found else ""


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
