"""Run the code cells of a notebook in one Python process, in a folder of its own; with --write keep what they print and draw.

python -m tests.run_notebook docs/tutorial.ipynb --write

Code cells are plain Python: no magics. The value of a cell's last expression is shown, as in Jupyter.
"""

from __future__ import annotations

import argparse
import ast
import base64
import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

Outputs = list[dict[str, Any]]


def run_notebook(notebook: dict[str, Any], folder: Path) -> list[Outputs]:
    """The outputs of each code cell, run in ``folder``. What a cell raises is raised."""
    import matplotlib as mpl

    mpl.use("Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        return [_run_cell(source, names) for source in sources]
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))


def _run_cell(source: str, names: dict[str, Any]) -> Outputs:
    tree, last = ast.parse(source), None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        value = eval(compile(last, "<cell>", "eval"), names) if last is not None else None
    outputs: Outputs = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": printed.getvalue().splitlines(keepends=True)})
    outputs += [{"data": {"image/png": figure}, "metadata": {}, "output_type": "display_data"} for figure in _figures()]
    if value is not None:
        outputs.append({"data": {"text/plain": repr(value).splitlines(keepends=True)}, "metadata": {}, "output_type": "display_data"})
    return outputs


def _figures() -> list[str]:
    """The open figures as PNG in base64; they are closed."""
    from matplotlib import pyplot

    found = []
    for number in pyplot.get_fignums():
        image = io.BytesIO()
        pyplot.figure(number).savefig(image, format="png", dpi=80, metadata={"Software": None})
        found.append(base64.b64encode(image.getvalue()).decode())
    pyplot.close("all")
    return found


def main() -> None:
    """Run the notebook that the command line names."""
    parser = argparse.ArgumentParser(description="Run a notebook's code cells.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--write", action="store_true", help="keep the outputs in the file")
    asked = parser.parse_args()
    notebook = json.loads(asked.notebook.read_text())
    with tempfile.TemporaryDirectory() as folder:
        outputs = run_notebook(notebook, Path(folder))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell, shown in zip(cells, outputs, strict=True):
        print("".join(text for output in shown for text in output.get("text", output.get("data", {}).get("text/plain", []))))
        cell["outputs"] = shown
    if asked.write:
        asked.notebook.write_text(json.dumps(notebook, indent=1) + "\n")


if __name__ == "__main__":
    main()
