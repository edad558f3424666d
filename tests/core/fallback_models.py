"""Models that layer rules, and often torch.func, cannot serve: each has a reason to be computed one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.core.models import initialise, rows


class Own(nn.Module):
    """Two layers, a matrix of its own between them, which no rule covers, and a head: the base of the models below."""

    def __init__(self, num_outputs: int = 2) -> None:
        super().__init__()
        self.body, self.mix, self.head = nn.Linear(4, 5), nn.Parameter(torch.eye(5)), nn.Linear(5, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle(functional.linear(self.body(inputs), self.mix)))
        return out

    def middle(self, hidden: Tensor) -> Tensor:
        return torch.tanh(hidden)


class Checked(Own):
    """Looks at its numbers, as a check for NaN does."""

    def middle(self, hidden: Tensor) -> Tensor:
        if hidden.isnan().any():
            raise ValueError("NaN inside")
        return torch.tanh(hidden)


class ItemOfTensor(Own):
    """Uses a Python number that depends on the data."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([self._one(row) for row in inputs.unsqueeze(1)])

    def _one(self, row: Tensor) -> Tensor:
        out: Tensor = super().forward(row) * (1.0 + float(row.detach().abs().max().item()))
        return out


class InPlaceMask(Own):
    """Writes into a part of a tensor that the data choose."""

    def middle(self, hidden: Tensor) -> Tensor:
        hidden = 2 * torch.tanh(hidden)
        hidden[hidden.detach() < -0.3] = 0.5
        return hidden


class BooleanMask(Own):
    """Computes on the positive numbers alone, gathered by a boolean mask."""

    def middle(self, hidden: Tensor) -> Tensor:
        out, positive = torch.zeros_like(hidden), hidden.detach() > 0
        out[positive] = hidden[positive].sqrt()
        return out


class Mixture(nn.Module):
    """Each row goes to the expert that its gate prefers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList([nn.Linear(4, 2) for _ in range(3)])

    def forward(self, inputs: Tensor) -> Tensor:
        chosen, out = self.gate(inputs).argmax(1), inputs.new_zeros(len(inputs), 2)
        for k, expert in enumerate(self.experts):
            out[chosen == k] = expert(inputs[chosen == k])
        weighted: Tensor = out * self.gate(inputs).softmax(1).amax(1, keepdim=True)
        return weighted


class Cube(torch.autograd.Function):
    """x^3 with a backward pass of its own, of the old form that torch.func refuses."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        cubed: Tensor = values.pow(3)
        return cubed

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (values,) = ctx.saved_tensors
        return 3 * values.pow(2) * gradients[0]


class OwnFunction(Own):
    def middle(self, hidden: Tensor) -> Tensor:
        cubed: Tensor = Cube.apply(hidden)  # type: ignore[no-untyped-call]
        return torch.tanh(cubed)


class Padded(nn.Module):
    """A transformer's encoder that ignores padding, as encoders of text do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4, padding_idx=0)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), 1)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0)[:, 0])
        return out


class Trimmed(nn.Module):
    """Cuts each batch to its longest sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        length = int((tokens != 0).sum(dim=1).max().item())
        hidden = torch.tanh(self.mix(self.embed(tokens[:, :length])))
        out: Tensor = self.head((hidden * (tokens[:, :length] != 0).unsqueeze(2)).sum(dim=1))
        return out


class Temperature(nn.Module):
    """A parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.temperature = nn.Linear(4, 2), nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.body(inputs) / (1 + self.temperature**2)
        return out


class Recurrent(nn.Module):
    """A recurrent layer beside a parameter of its own."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(9, 4), body, nn.Linear(4, 2)
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.embed(tokens))[0][:, -1] * self.gain)
        return out


class Checkpointed(Own):
    """Computes its activations again in the backward pass."""

    def middle(self, hidden: Tensor) -> Tensor:
        out: Tensor = checkpoint(torch.tanh, hidden, use_reentrant=False)
        return out


class Spectrum(nn.Module):
    """Complex parameters, one for each frequency, and a complex layer."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum, self.mix = nn.Parameter(torch.randn(3, dtype=torch.cdouble)), nn.Linear(3, 3, dtype=torch.cdouble)
        self.head = nn.Linear(4, 2, dtype=torch.double)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(torch.fft.irfft(self.mix(torch.fft.rfft(inputs) * self.spectrum), n=4)))
        return out


class Squeezing(nn.Module):
    """Fails on one row, as its squeeze drops the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale, self.head = nn.Linear(4, 1), nn.Parameter(torch.ones(3)), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(inputs)).squeeze()  # (B, 3, 1) as (B, 3)
        out: Tensor = self.head(torch.stack([row * self.scale for row in hidden.unbind()]).view(len(inputs), 3))
        return out


class ByData(nn.Module):
    """Takes a layer twice for samples with a large first number, alone or in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(self.embed(tokens))).mean(dim=1)
        large = tokens[:, 0] > 5
        if bool(large.any()):
            hidden = torch.where(large.unsqueeze(1), torch.tanh(self.body(hidden)), hidden)
        out: Tensor = self.head(hidden)
        return out


class Paired(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Bilinear(4, 4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.body(inputs, functional.silu(inputs))
        return out


class SinglePrecision(nn.Linear):
    """Only runs in float32."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + torch.ones(1, 4, dtype=torch.float32) @ torch.ones(4, 2).to(inputs.dtype)


def with_hook() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    model[2].register_full_backward_hook(lambda _module, _before, _after: None)
    return model


def with_tensor_hook() -> nn.Module:
    class Hooked(Own):
        def middle(self, hidden: Tensor) -> Tensor:
            hidden = torch.tanh(hidden)
            if hidden.requires_grad:
                hidden.register_hook(lambda gradient: 2 * gradient)  # type: ignore[no-untyped-call]
            return hidden

    return Hooked()


def scripted() -> nn.Module:
    model: nn.Module = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)))
    return model


def traced() -> nn.Module:
    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    model: nn.Module = torch.jit.trace(plain, torch.zeros(3, 4))  # type: ignore[no-untyped-call]
    return model


def compiled() -> nn.Module:
    model: Any = torch.compile(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), backend="eager")
    assert isinstance(model, nn.Module)
    return model


def prelu() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 2), nn.PReLU())


def tokens(count: int = 6) -> Tensor:
    """Tokens (count, 3) below 9, with padding (0) at the end of some."""
    drawn = torch.randint(1, 9, (count, 3), generator=torch.Generator().manual_seed(4))
    return drawn * (torch.arange(3) < 1 + torch.arange(count).unsqueeze(1) % 3)


def vectors() -> Tensor:
    return rows(6, 4)


def sequences() -> Tensor:
    return rows(6, 3, 4)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "check inside forward": (Checked, vectors),
    "item of a tensor": (ItemOfTensor, vectors),
    "in-place mask": (InPlaceMask, vectors),
    "boolean mask": (BooleanMask, vectors),
    "mixture of experts": (Mixture, vectors),
    "own autograd function": (OwnFunction, vectors),
    "padded encoder": (Padded, tokens),
    "trimmed to the longest": (Trimmed, tokens),
    "no dimensions": (Temperature, vectors),
    "GRU beside a parameter": (lambda: Recurrent(nn.GRU(4, 4, batch_first=True)), tokens),
    "RNN beside a parameter": (lambda: Recurrent(nn.RNN(4, 4, batch_first=True)), tokens),
    "checkpointed": (Checkpointed, vectors),
    "complex parameters": (Spectrum, vectors),
    "fails on one row": (Squeezing, sequences),
    "branches on its data": (ByData, lambda: torch.arange(18).reshape(6, 3) % 9),
    "backward hook": (with_hook, vectors),
    "hook of a tensor": (with_tensor_hook, vectors),
    "scripted": (scripted, vectors),
    "traced": (traced, vectors),
    "wrapped": (lambda: nn.DataParallel(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))), vectors),
    "compiled": (compiled, vectors),
    "PReLU": (prelu, vectors),
    "max_norm": (lambda: nn.Sequential(nn.Embedding(9, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 2)), tokens),
    "frequencies": (lambda: nn.Sequential(nn.Embedding(9, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(12, 2)), tokens),
    "sparse embedding": (lambda: nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2)), tokens),
    "sparse bag": (lambda: nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 2)), tokens),
    "transposed convolution": (lambda: nn.Sequential(nn.ConvTranspose1d(3, 2, 2), nn.Flatten(), nn.Linear(10, 2)), sequences),
    "bilinear": (Paired, vectors),
}


def make(name: str) -> tuple[nn.Module, Tensor]:
    """The model, in float64 and evaluation mode, and inputs."""
    build, inputs = MODELS[name]
    torch.manual_seed(3)
    model = build()
    # Module.to(float64) would drop imaginary parts.
    return model.eval() if isinstance(model, Spectrum) else initialise(model, 3), inputs()


def truth(model: nn.Module, inputs: Tensor) -> Tensor:
    """J (B, C, P) by one backward pass for each sample and output. A sample stands beside its copy where the model fails on one row."""
    parameters, jacobian = list(model.parameters()), []
    for sample in inputs:
        values = model(torch.stack([sample, sample]))[0] if isinstance(model, Squeezing) else model(sample.unsqueeze(0)).reshape(-1)
        for value in values:
            found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            dense = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(found, parameters, strict=True)]
            jacobian.append(torch.cat([(torch.view_as_real(g) if g.is_complex() else g).reshape(-1) for g in dense]))
    return torch.stack(jacobian).reshape(len(inputs), -1, jacobian[0].numel())
