"""What distinguishes a problem: values, files, and the state of its classes; and what is refused because it is not reproducible."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import torch
from torch import nn

from genrep_dist.errors import ProblemError
from genrep_dist.problems.digests import Identity, class_identity, object_identity, problem_identity, recipe_values
from genrep_dist.problems.load import load_class, load_problem
from genrep_dist.problems.protocol import recorded_recipe
from tests.problems.user_files import HEAD, NET, PROBLEM, Folder, folder

__all__ = ["folder"]

READ = "json.loads(pathlib.Path('numbers.json').read_text())"
LOADED = {
    "start weights": NET.replace("nn.Linear(4, 1)", f"nn.Linear(4, 1)\n        self.a.weight.data[0] = torch.tensor({READ}['w'])"),
    "a buffer": NET.replace("nn.Linear(4, 1)", f"nn.Linear(4, 1)\n        self.register_buffer('w', torch.tensor({READ}['w']))"),
    "an array in a list": NET.replace("nn.Linear(4, 1)", f"nn.Linear(4, 1)\n        self.held = [np.array({READ}['w'])]"),
    "a number of the model": NET.replace("nn.Linear(4, 1)", f"nn.Linear(4, 1)\n        self.scale = {READ}['k']"),
    "a tensor of the module": f"W = torch.tensor({READ}['w'])" + NET.replace("self.a(x)", "self.a(x * W)"),
    "a number of the module": f"K = {READ}['k']" + NET.replace("self.a(x)", "self.a(x) * K"),
    "a dictionary of the module": f"CONFIG = {READ}" + NET.replace("self.a(x)", "self.a(x) * CONFIG['k']"),
    "a tensor of the class": NET.replace("(nn.Module):", f"(nn.Module):\n    w = torch.tensor({READ}['w'])").replace(
        "self.a(x)", "self.a(x * self.w)"
    ),
    "a closure": f"def make(k):{indent(NET.replace('self.a(x)', 'self.a(x) * k'), '    ')}    return Net\nNet = make({READ}['k'])\n",
    "a partial": NET.replace("nn.Linear(4, 1)", f"nn.Linear(4, 1)\n        self.f = functools.partial(torch.mul, {READ}['k'])"),
    "a hook of a lambda": NET.replace("nn.Linear(4, 1)", f"nn.Linear(4, 1)\n        k = {READ}['k']\n        self.f = lambda x: x * k"),
}


@pytest.mark.parametrize("how", LOADED)
def test_what_the_code_loads_counts_by_its_values(folder: Folder, how: str) -> None:
    folder.write(HEAD + LOADED[how] + PROBLEM)
    digests = []
    for k in (1.5, 1.5, 2.5):
        (folder.path / "numbers.json").write_text(json.dumps({"w": [k, k, k, 0.123456789 * k], "k": k}))
        digests.append(folder.identity().digest)
    assert digests[0] == digests[1] != digests[2]


LOSS = """
from genrep_dist.core.losses import SquaredLoss
class Weighted(SquaredLoss):
    name = "weighted"
    def __init__(self):
        self.weights = torch.full((3,), json.loads(pathlib.Path("numbers.json").read_text()))
"""


def test_tensors_of_the_loss_the_problem_and_a_kernel_count(folder: Folder) -> None:
    attribute = "\n    def __init__(self): self.table = {'a': [torch.full((2,), json.loads(pathlib.Path('numbers.json').read_text()))]}\n"
    kernel = f"\nclass Kernel:{attribute}\n    def __call__(self, model, left, right): return left @ right.T * self.table['a'][0][0]\n"
    folder.write(
        HEAD + LOSS + NET + PROBLEM.replace('"logistic"', "Weighted()").replace("class Problem:", f"class Problem:{attribute}") + kernel
    )
    found, kernels = [], []
    for number in (1.0, 2.0):
        (folder.path / "numbers.json").write_text(str(number))
        found.append(folder.identity())
        kernels.append(object_identity(load_class(f"{folder.name}:Kernel", {}, [folder.path], "kernel")()).digest)
    changed = set(found[0].changes(found[1]))
    assert changed == {"loss.weights", "problem.table.a.0"}
    assert kernels[0] != kernels[1]


HELPERS = {
    "a module": ("from {m}_helper import scale\n", "scale(x)"),
    "a constant": ("from {m}_helper import SCALE\n", "x * SCALE"),
    "a constant under another name": ("import {m}_helper as h\n", "x * h.SCALE"),
    "a star": ("from {m}_helper import *\n", "scale(x)"),
    "within a function": ("", "x * __import__('time').sleep(0) if False else (lambda: None)() or x * self.late()"),
    "behind another": ("from {m}_between import scale\n", "scale(x)"),
}


@pytest.mark.parametrize("how", HELPERS)
def test_files_that_are_imported_count(folder: Folder, how: str) -> None:
    line, expression = HELPERS[how]
    late = "\n    def late(self):\n        from {m}_helper import SCALE\n        return SCALE\n"
    folder.write("from {m}_helper import scale\n", "{m}_between")
    folder.write(HEAD + line + NET.replace("self.a(x)", f"self.a({expression})") + late + PROBLEM)
    digests = []
    for scale in (1.0, 1.0, 2.0):
        folder.write(f"SCALE = {scale}\ndef scale(x):\n    return x * SCALE\n", "{m}_helper")
        digests.append(folder.identity().source)
    assert digests[0] == digests[1] != digests[2]


def test_files_of_a_package_count_and_others_do_not(folder: Folder) -> None:
    folder.write("", "{m}/__init__")
    folder.write("", "{m}/parts/__init__")
    folder.write("from . import layers\nfrom ..recipes import Warmup\n", "{m}/parts/net")
    folder.write("WIDTH = 3\n", "{m}/parts/layers")
    folder.write("from genrep_dist import Recipe\nclass Warmup(Recipe):\n    def rate(self, step, num_steps): return 0.1\n", "{m}/recipes")
    folder.write("UNUSED = 1\n", "{m}/unused")
    folder.write(
        HEAD + "from .parts import net\nfrom .parts.net import Warmup\n" + NET + PROBLEM.replace("Recipe(", "Warmup("), "{m}/problem"
    )

    def files() -> dict[str, str]:
        folder.forget()
        name = f"{folder.name}.problem:Problem"
        return problem_identity(load_problem(name, search_path=[folder.path]), {}, name).files

    before = files()
    names = {name.removeprefix(f"{folder.name}") for name in before}
    assert names == {"", ".problem", ".recipes", ".parts", ".parts.net", ".parts.layers"}
    folder.write("WIDTH = 4\n", "{m}/parts/layers")
    assert [name for name, digest in files().items() if before[name] != digest] == [f"{folder.name}.parts.layers"]


def test_what_else_the_process_has_imported_does_not_count(folder: Folder) -> None:
    late = "\n    def late(self):\n        from .helper import SCALE\n        return SCALE\n"
    checked = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .types import Number\n"
    folder.write("", "{m}/__init__")
    folder.write("UNUSED = 1\n", "{m}/unused")
    folder.write("SCALE = 2.0\ndef scale(): return SCALE\n", "{m}/helper")
    folder.write("Number = 3\ndef number(): return Number\n", "{m}/types")
    folder.write(HEAD + checked + NET + late + PROBLEM, "{m}/problem")
    folder.forget()
    problem = load_problem(f"{folder.name}.problem:Problem", search_path=[folder.path])
    before = problem_identity(problem, {}, f"{folder.name}.problem:Problem")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder.path))
        for module in ("unused", "helper", "types"):
            importlib.import_module(f"{folder.name}.{module}")
    assert problem_identity(problem, {}, f"{folder.name}.problem:Problem").changes(before) == []
    assert {f"{folder.name}.helper", f"{folder.name}.types"} <= before.files.keys()


def test_shipped_problems_do_not_count_files_of_the_package_that_they_import() -> None:
    files = problem_identity(load_problem("digits")).files
    assert set(files) == {"genrep_dist.problems.datasets.digits", "genrep_dist.problems.datasets.image_models"} | (
        set(files) & {"genrep_dist.problems.datasets.classes"}
    )


@pytest.mark.parametrize("edited", ["{m}", "{m}_helper"])
@pytest.mark.parametrize("imported_by", ["genrep_dist", "user"])
def test_an_edit_after_the_import_is_refused_until_the_module_is_reloaded(folder: Folder, edited: str, imported_by: str) -> None:
    folder.write(HEAD + "from {m}_helper import scale\n" + NET + PROBLEM)
    folder.write("def scale(x):\n    return x * 2\n", "{m}_helper")
    sys.path.insert(0, str(folder.path))
    try:
        if imported_by == "user":
            importlib.import_module(folder.name)
        else:
            folder.identity()
        path = folder.path / f"{edited.format(m=folder.name)}.py"
        path.write_text(path.read_text().replace("return self.a(x)", "return self.a(x) * 3").replace("x * 2", "x * 3"))
        with pytest.raises(ProblemError, match=rf"edited since it was imported[\s\S]*{path.name}[\s\S]*restart Python"):
            folder.identity(fresh=False)
        importlib.reload(sys.modules[f"{folder.name}_helper"])
        importlib.reload(sys.modules[folder.name])
        reloaded = folder.identity(fresh=False)
        assert reloaded == folder.identity()
    finally:
        sys.path.remove(str(folder.path))


def test_an_edited_constant_that_was_imported_before_does_not_get_the_new_key(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder.path))
    path = folder.write(HEAD + "SCALE = 1.0\n" + NET + PROBLEM)
    importlib.import_module(folder.name)
    path.write_text(path.read_text().replace("SCALE = 1.0", "SCALE = 5.0"))
    assert folder.identity(fresh=False).source != folder.identity().source


CHANGES: dict[str, Callable[[Any], object]] = {
    "an attribute of the model's class": lambda module: setattr(module.Net, "scale", 2.0),
    "a method": lambda module: setattr(module.Net, "forward", lambda self, x: self.a(x) * 3),
    "a method of a text": lambda module: exec("def forward(self, x): return self.a(x) * 4\nNet.forward = forward", module.__dict__),
    "a constant": lambda module: setattr(module, "SCALE", 2.0),
    "an item": lambda module: module.SIZES.append(9),
    "a function": lambda module: setattr(module, "scaled", lambda x: x),
    "the class": lambda module: exec("class Net(nn.Module):\n    def forward(self, x): return x[:, 0]\n    a = 3\n", module.__dict__),
}


@pytest.mark.parametrize("how", CHANGES)
def test_what_is_changed_in_the_process_has_another_key(folder: Folder, how: str) -> None:
    folder.write(HEAD + "SCALE = 1.0\nSIZES = [4, 1]\ndef scaled(x):\n    return x * SCALE\n" + NET + PROBLEM)
    before = folder.identity()
    CHANGES[how](sys.modules[folder.name])
    after = folder.identity(fresh=False)
    assert after.source != before.source
    with pytest.raises(ProblemError, match=r"worker's copy of the code differs[\s\S]*not in the running process"):
        before.require_equal(after, "problem", one_machine=True)


def test_a_class_that_is_defined_again_has_another_identity() -> None:
    def defined(factor: int) -> type:
        class Mine:
            scale = factor

            def __call__(self) -> int:
                return factor

        return Mine

    one, same, other = (class_identity(defined(factor)).digest for factor in (1, 1, 2))
    assert one == same != other
    namespaces: list[dict[str, Any]] = [{"__name__": "a_notebook"} for _ in range(3)]
    for namespace, factor in zip(namespaces, (1, 1, 2), strict=True):
        exec(f"class Mine:\n    def value(self): return {factor}", namespace)
    digests = [class_identity(namespace["Mine"], needs_file=False).digest for namespace in namespaces]
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(ProblemError, match="no source file"):
        class_identity(namespaces[0]["Mine"])


def test_counters_and_caches_of_the_code_do_not_count(folder: Folder) -> None:
    state = "CALLS = 0\n_CACHE = {}\nSEEN = []\nSTATS = {'n': 0}\n"
    net = NET.replace("(nn.Module):", "(nn.Module):\n    count = 0")
    lines = ["global CALLS", "CALLS += 1", "_CACHE['k'] = 1.0", "SEEN.append(1.0)", "STATS['n'] += 1", "Net.count += 1", "return Net()"]
    folder.write(HEAD + state + net + PROBLEM.replace("return Net()", "\n        ".join(lines)))
    assert folder.identity() == folder.identity(fresh=False)


CANONICAL = """
import dataclasses, enum, os, pathlib, re, datetime, decimal, collections, threading, time
STARTED, PROCESS = time.time(), os.getpid()
LOADED_AT = datetime.datetime.now().isoformat()
class Colour(enum.Enum):
    RED = {1, "one"}
@dataclasses.dataclass
class Config:
    layers: set
    other: object = None
class Plain:
    def __init__(self):
        self.names, self.lock = frozenset({"x", "y", "z"}), threading.Lock()
class Slots:
    __slots__ = ("names",)
    def __init__(self):
        self.names = {"p", "q", ("r", 1)}
class Names(set):
    pass
def outer(k):
    return lambda x: x * k
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 1)
        self.held = [Config({"query", "key", "value"}, Plain()), Slots(), Colour.RED, pathlib.Path("data"), np.array(["b", {"a", "c"}])]
        self.tables = {("a", 1): 1, 2: "two", None: {"x", "y"}, frozenset({"u", "v"}): 3, Plain: 4}
        self.more = [Names({"s", "t", "u"}), collections.defaultdict(set, k={"d", "e"}), re.compile("a+"), datetime.date(2020, 1, 1)]
        self.numbers = [np.float32(0.1), np.arange(3), decimal.Decimal("1.5"), float("nan"), 1 / 3, torch.float16, torch.device("cpu")]
        self.functions = [torch.tanh, F.relu, outer(2), functools.partial(outer, k={"f", "g"}), np.tanh, max, self.forward, Plain]
        self.odd = [threading.Event(), iter([1, 2]), object(), torch.Generator(), slice(1, 2), self]
        if COMPILED:
            self.body = torch.compile(nn.Linear(1, 1), backend="eager")
            self.compiled = torch.compile(outer(3), backend="eager")

    def forward(self, x):
        self.log = STARTED, PROCESS, LOADED_AT
        return self.a(x)
"""


def test_the_identity_is_the_same_in_every_process(folder: Folder) -> None:
    folder.write(HEAD + "COMPILED = True\n" + CANONICAL + PROBLEM.replace("return Net()", "return torch.compile(Net(), backend='eager')"))
    code = (
        "import json; from genrep_dist.problems.load import load_problem, problem_identity; "
        f"print(json.dumps(problem_identity(load_problem('{folder.name}:Problem')).to_record()))"
    )
    found = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder.path, env=environment)
        found.append(Identity.from_record(json.loads(done.stdout)))
    assert found[0].changes(found[1]) == []
    assert found[0] == found[1]
    assert "0x" not in json.dumps(found[0].form)


def test_a_compiled_model_is_the_model(folder: Folder) -> None:
    text = HEAD + "COMPILED = False\n" + CANONICAL + PROBLEM
    folder.write(text)
    plain = folder.identity()
    folder.write(text.replace("return Net()", "return torch.compile(Net(), backend='eager')"))
    assert set(plain.changes(folder.identity())) == {str(folder.path / f"{folder.name}.py")}


def test_a_worker_compares_files_exactly_and_values_up_to_rounding(folder: Folder) -> None:
    path = folder.write(HEAD + NET + PROBLEM)
    driver = folder.identity()
    rounded = {place: value._replace(digest="", weighted=value.weighted * (1 + 1e-7)) for place, value in driver.values.items()}
    Identity(driver.files, driver.form, {"processors": "3"}, rounded).require_equal(driver, "problem", one_machine=False)
    other = {place: value._replace(digest="", weighted=value.weighted + 0.01) for place, value in driver.values.items()}
    with pytest.raises(ProblemError, match=r"numbers that it loads or draws are not[\s\S]*tensor a.weight") as caught:
        Identity(driver.files, driver.form, {}, other).require_equal(driver, "problem", one_machine=True)
    assert "machines" not in str(caught.value)
    path.write_text(path.read_text() + "# edited\n")
    worker = folder.identity()
    with pytest.raises(ProblemError, match=rf"{path.name}[\s\S]*changed since the driver imported it") as caught:
        worker.require_equal(driver, "problem", one_machine=True)
    assert "machines" not in str(caught.value)
    with pytest.raises(ProblemError, match="give all machines the same code"):
        worker.require_equal(driver, "problem", one_machine=False)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(1.5),
        torch.zeros(0, 3),
        torch.arange(6, dtype=torch.bfloat16).view(2, 3).T,
        torch.tensor([True, False]),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.eye(3).to_sparse(),
        torch.zeros(2, device="meta"),
    ],
    ids=["scalar", "empty", "bfloat16", "bool", "conjugate", "sparse", "meta"],
)
def test_tensors_of_every_kind_have_values(tensor: torch.Tensor) -> None:
    class Holder:
        def __init__(self, held: torch.Tensor) -> None:
            self.held = held

    one, same = (object_identity(Holder(held)) for held in (tensor, tensor.clone()))
    assert one == same
    if tensor.numel() and not tensor.is_meta and tensor.dtype != torch.bool:
        assert object_identity(Holder(tensor * 2)).digest != one.digest


def test_an_extension_is_its_attributes_too() -> None:
    class Layer(nn.Module):
        scale = 1.0

    before = class_identity(Layer).digest
    Layer.scale = 2.0
    assert class_identity(Layer).digest != before


RECIPES = """
import dataclasses, functools
from genrep_dist import Recipe
@dataclasses.dataclass(frozen=True)
class Settings:
    beta: float = 0.9
def warm(k, step): return k * step
@dataclasses.dataclass(frozen=True)
class Own(Recipe):
    name: str = "own"
    value: object = None
"""
FIELDS = {
    "a tensor": "torch.tensor([{k}, 2.0])",
    "an array": "np.array([{k}, 2.0])",
    "a function": "lambda step: step * {k}",
    "a partial": "functools.partial(warm, {k})",
    "a set": "{{'a', 'b', {k}}}",
    "a record": "Settings({k})",
    "a list of records": "[Settings({k})]",
    "not a number": "(float('nan'), {k})",
    "a number of numpy": "np.float32({k})",
    "plain data": "{{'groups': [1, {k}]}}",
}


@pytest.mark.parametrize("how", FIELDS)
def test_recipes_with_fields_of_any_kind(folder: Folder, how: str) -> None:
    folder.write(HEAD + NET + RECIPES + PROBLEM)
    found = []
    for k in (1.5, 1.5, 2.5):
        problem = folder.load()
        module = sys.modules[type(problem).__module__]
        type(problem).recipe = module.Own(epochs=2, batch_size=4, learning_rate=0.1, value=eval(FIELDS[how].format(k=k), vars(module)))
        record, changes = recipe_values(problem.recipe)
        assert json.loads(json.dumps(record, allow_nan=False))["batch_size"] == 4
        assert ("value" in changes) == (how == "plain data")
        recorded = recorded_recipe(json.loads(json.dumps(record)))
        assert (recorded.epochs, recorded.name) == (2, "own")  # type: ignore[attr-defined]
        found.append((problem_identity(problem).digest, json.dumps(changes)))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("nn.LazyLinear(1)", r"no shape yet[\s\S]*run the model once"),
        ("nn.Sequential(nn.Linear(4, 2), nn.LazyBatchNorm1d(), nn.Linear(2, 1))", r"no shape yet[\s\S]*'a.1.weight'"),
        ("nn.LazyConv1d(1, 1)", r"no shape yet"),
    ],
)
def test_layers_without_a_shape_are_named(folder: Folder, make: str, words: str) -> None:
    folder.write(HEAD + NET.replace("nn.Linear(4, 1)", make) + PROBLEM)
    with pytest.raises(ProblemError, match=words):
        folder.identity()
