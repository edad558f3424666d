"""Models that are no function of their seed, or no fixed function of their inputs, are refused."""

from __future__ import annotations

import pytest

from genrep_dist.core.generators import generator_states
from genrep_dist.errors import ProblemError
from genrep_dist.problems.load import load_datasets
from tests.problems.user_files import HEAD, NET, PROBLEM, Folder, folder

__all__ = ["folder"]

ATTRIBUTE = "nn.Linear(4, 1)\n        "
DIFFERENT = {
    "numpy's own generator": ATTRIBUTE + "self.a.weight.data *= float(np.random.default_rng().random())",
    "time": ATTRIBUTE + "self.a.bias.data += time.perf_counter_ns() % 1_000_003",
    "a counter": ATTRIBUTE + "self.register_buffer('n', torch.tensor(next(COUNT)))",
    "an attribute": ATTRIBUTE + "self.scale = time.perf_counter()",
    "a generator of the model": ATTRIBUTE + "self.rng = np.random.default_rng()",
}


@pytest.mark.parametrize("how", DIFFERENT)
def test_a_model_that_is_built_otherwise_each_time_is_refused(folder: Folder, how: str) -> None:
    folder.write(HEAD + "COUNT = itertools.count()\n" + NET.replace("nn.Linear(4, 1)", DIFFERENT[how]) + PROBLEM)
    with pytest.raises(ProblemError, match="two different models from the same random seed"):
        folder.identity()


@pytest.mark.parametrize("draw", ["np.random.rand()", "random.random()", "torch.rand(())", "np.random.RandomState(3).rand()"])
def test_default_generators_are_seeded(folder: Folder, draw: str) -> None:
    folder.write(HEAD + NET.replace("nn.Linear(4, 1)", f"nn.Linear(4, 1)\n        self.a.weight.data *= float({draw})") + PROBLEM)
    before = generator_states()
    assert folder.identity() == folder.identity()
    assert generator_states() == before


SHARED = {
    "the same model": "return self.net",
    "a part of it": "return nn.Sequential(self.net, nn.Tanh())",
    "a frozen part": "return nn.Sequential(self.net.requires_grad_(False), nn.Linear(1, 1))",
    "its parameters": "net = Net(); net.load_state_dict(self.net.state_dict(), assign=True); return net",
    "one parameter": "net = Net(); net.a.weight = nn.Parameter(self.net.a.weight.data); return net",
    "statistics": "return nn.Sequential(self.norm, nn.Linear(4, 1))",
}


@pytest.mark.parametrize("how", SHARED)
def test_models_that_share_what_is_trained_are_refused(folder: Folder, how: str) -> None:
    init = "\n    def __init__(self):\n        self.net, self.norm = Net(), nn.BatchNorm1d(4, affine=False)\n"
    text = PROBLEM.replace("return Net()", SHARED[how]).replace("class Problem:", f"class Problem:{init}")
    folder.write(HEAD + NET + text)
    with pytest.raises(ProblemError, match=r"parts of an earlier model[\s\S]*deepcopy"):
        folder.identity()


def test_what_is_not_trained_may_be_shared(folder: Folder) -> None:
    net = NET.replace("nn.Linear(4, 1)", "nn.Linear(4, 1)\n        self.register_buffer('table', TABLE)\n        self.act = ACT")
    folder.write(HEAD + "TABLE, ACT = torch.ones(3), nn.ReLU()\n" + net + PROBLEM)
    folder.identity()


NOISE = {
    "torch": "F.dropout(self.a(x), 0.5)",
    "numpy": "self.a(x) * float(np.random.rand())",
    "python": "self.a(x) * random.random()",
    "a generator": "self.a(x) * float(RNG.random())",
    "time": "self.a(x) * (time.perf_counter() % 1e-3)",
    "a state": "self.a(x) * next(COUNT)",
    "rarely": "self.a(x) * (2.0 if random.random() < 0.3 else 1.0)",
}


@pytest.mark.parametrize("how", NOISE)
def test_a_model_that_is_random_in_evaluation_mode_is_refused(folder: Folder, how: str) -> None:
    globals_ = "RNG, COUNT = np.random.default_rng(), itertools.count()\n"
    folder.write(HEAD + globals_ + NET.replace("self.a(x)", NOISE[how]) + PROBLEM)
    with pytest.raises(ProblemError, match=r"differ in evaluation mode[\s\S]*training=self\.training"):
        load_datasets(folder.load())


@pytest.mark.parametrize("how", NOISE)
def test_noise_in_training_must_come_from_the_seed(folder: Folder, how: str) -> None:
    globals_ = "RNG, COUNT = np.random.default_rng(), itertools.count()\n"
    folder.write(HEAD + globals_ + NET.replace("self.a(x)", f"{NOISE[how]} if self.training else self.a(x)") + PROBLEM)
    if how in ("a generator", "time", "a state"):
        with pytest.raises(ProblemError, match=r"training mode differ under one seed"):
            load_datasets(folder.load())
    else:
        load_datasets(folder.load())


def test_what_draws_in_vain_is_accepted(folder: Folder) -> None:
    folder.write(HEAD + NET.replace("self.a(x)", "self.a(x) + 0 * torch.rand(())") + PROBLEM)
    load_datasets(folder.load())
