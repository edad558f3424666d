"""Per-sample gradients of all parameters from one batched forward and backward pass for each output, with slower ways where needed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from genrep_dist.core.gradients.embeddings import TokenRows
from genrep_dist.core.gradients.factored import Factors, FeatureRows, PatchRows
from genrep_dist.core.gradients.inspection import Hooked, Layout, Record, layout_of, record
from genrep_dist.core.gradients.layer_rules import KINDS
from genrep_dist.core.gradients.outputs import as_outputs, model_outputs, require_eval, trainable
from genrep_dist.errors import ProblemError


def feature_rows(model: nn.Module, inputs: Tensor, output_index: Tensor | None = None) -> FeatureRows:
    """The Jacobians J (B, C, P) of ``inputs`` (B, ...) as factors; with ``output_index`` (B,) int64 those of one output each, C = 1.

    The parameters' dtype. Layers that cannot be factored are there as plain gradients. Memory: the factors, and a pass over
    a few samples. Raises ProblemError as :func:`genrep_dist.core.gradients.dense.per_sample_gradients` does.
    """
    layout = checked_layout(model, inputs, output_index)
    return FeatureRows.joined(list(blocks(model, layout, inputs, output_index)))


def checked_layout(model: nn.Module, inputs: Tensor, output_index: Tensor | None) -> Layout:
    """The layout of a model that is in eval mode, for a batch that is not empty and an ``output_index`` that fits; else ProblemError."""
    require_eval(model)
    if inputs.shape[0] == 0:
        raise ProblemError("gradients of an empty batch", where="per_sample_gradients", expected="B of 1 or more", got="0 rows")
    layout = layout_of(model, inputs)
    if output_index is not None:
        _check_output_index(output_index, inputs.shape[0], layout.num_outputs)
    return layout


def blocks(model: nn.Module, layout: Layout, inputs: Tensor, output_index: Tensor | None) -> Iterator[FeatureRows]:
    """The feature rows of a few samples after the other. A function of the samples alone, but for rounding."""
    step = layout.rows_of_a_pass
    for start in range(0, len(inputs), step):
        at = slice(start, start + step)
        yield _block(model, layout, inputs[at], None if output_index is None else output_index[at])


def _block(model: nn.Module, layout: Layout, inputs: Tensor, output_index: Tensor | None) -> FeatureRows:
    factors: dict[str, Factors] = {}
    small: dict[str, Tensor] = {}
    if layout.hooked:
        found = record(model, inputs, tuple(hooked.name for hooked in layout.hooked))
        _check_calls(layout, found)
        for hooked, gradients in zip(layout.hooked, _output_gradients(layout, found, output_index), strict=True):
            _read_layer(model, hooked, found.calls[hooked.name].inputs, gradients, factors, small)
    if layout.functional:
        small |= functional_gradients(model, inputs, output_index, layout.functional)
    if layout.looped:
        small |= _looped_gradients(model, inputs, output_index, layout.looped)
    rest = [small[name].flatten(2) for name, _ in layout.rest_names]
    num_outputs = 1 if output_index is not None else layout.num_outputs
    dtype = next(iter(trainable(model).values())).dtype
    together = torch.cat(rest, dim=2) if rest else inputs.new_empty(len(inputs), num_outputs, 0, dtype=dtype)
    weights = layout.weights
    return FeatureRows(weights, tuple(factors[weight.name] for weight in weights), together, layout.rest_names, layout.order)


def _check_calls(layout: Layout, found: Record) -> None:
    """ProblemError when this pass went otherwise than the one that the layout was made from, as a model that branches on data may."""
    for hooked in layout.hooked:
        call = found.calls.get(hooked.name)
        if call is None or call.count != 1 or call.edge is None:
            times = 0 if call is None else call.count
            raise ProblemError(
                "a layer runs more or less often for some samples than for others",
                where=f"model layer {hooked.name!r}",
                expected="one call in each forward pass",
                got=f"{times} calls",
                remedy="per-sample gradients need a model whose course does not depend on the batch",
            )
        if call.changed:
            raise ProblemError(
                "a layer's input is changed in place for some samples and not for others",
                where=f"model layer {hooked.name!r}",
                expected="a model whose course does not depend on the batch",
                got="an input that was changed after the layer saw it",
            )


def _output_gradients(layout: Layout, found: Record, output_index: Tensor | None) -> list[Tensor]:
    """Derivatives (B, C, ...) of the outputs by the output of each hooked layer: one backward pass for each of the C outputs."""
    edges = [found.calls[hooked.name].edge for hooked in layout.hooked]
    with torch.enable_grad():
        if output_index is None:
            picked = [values.sum() for values in found.outputs.unbind(1)]
        else:
            picked = [found.outputs.gather(1, output_index.unsqueeze(1)).sum()]
    per_output: list[tuple[Tensor | None, ...]] = []
    for number, value in enumerate(picked):
        more = number + 1 < len(picked)
        per_output.append(torch.autograd.grad(value, edges, retain_graph=more, allow_unused=True))  # type: ignore[arg-type]
    gradients = []
    for place, hooked in enumerate(layout.hooked):
        shape = found.calls[hooked.name].shape
        each = [found.outputs.new_zeros(shape) if g is None else g for g in (one[place] for one in per_output)]
        gradients.append(each[0].unsqueeze(1) if len(each) == 1 else torch.stack(each, dim=1))
    return gradients


def _read_layer(
    model: nn.Module, hooked: Hooked, inputs: Tensor, gradients: Tensor, factors: dict[str, Factors], small: dict[str, Tensor]
) -> None:
    """One layer's factors and small gradients out of its input (B, ...) and its output's gradients (B, C, ...)."""
    module, kind = model.get_submodule(hooked.name), KINDS[hooked.kind]
    with torch.no_grad():
        if hooked.weight is not None:
            assert kind.factors is not None
            first, second = kind.factors(module, inputs, gradients)
            if hooked.weight.kind == "embedding":
                factors[hooked.weight.name] = TokenRows.of(first, second, hooked.weight.padding_index)
            else:
                factors[hooked.weight.name] = PatchRows(first, second)
        if hooked.small:
            found = kind.small(module, inputs, gradients)
            small.update({full: found[local] for local, full in hooked.small.items()})


def functional_gradients(model: nn.Module, inputs: Tensor, output_index: Tensor | None, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Gradients (B, C, *shape) of the parameters ``names`` by torch.func, whatever layers they are in; C = 1 with an ``output_index``."""
    wanted = {name: parameter.detach() for name, parameter in trainable(model).items() if name in set(names)}
    constant = {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name not in wanted}

    def sample_outputs(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        raw = functional_call(model, {**constant, **parameters}, (sample.unsqueeze(0),))
        return as_outputs(raw, 1)[0]

    # The functional transforms differentiate inside whatever the mode outside; fixing it keeps the result's bits from depending on it.
    with torch.no_grad():
        num_outputs = model_outputs(model, inputs[:1]).shape[1]
        if output_index is not None or num_outputs == 1:

            def selected(parameters: dict[str, Tensor], sample: Tensor, index: Tensor) -> Tensor:
                return sample_outputs(parameters, sample).gather(0, index.unsqueeze(0))[0]

            # jacrev would add a level of mapping over a basis of one vector.
            index = output_index if output_index is not None else torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
            gradients = vmap(grad(selected), in_dims=(None, 0, 0))(wanted, inputs, index)
            return {name: gradient.unsqueeze(1) for name, gradient in gradients.items()}
        found: dict[str, Tensor] = vmap(jacrev(sample_outputs), in_dims=(None, 0))(wanted, inputs)
        return found


def _looped_gradients(model: nn.Module, inputs: Tensor, output_index: Tensor | None, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The same by a backward pass for each sample and output."""
    wanted = [parameter for name, parameter in trainable(model).items() if name in set(names)]
    rows: list[list[Tensor]] = [[] for _ in wanted]
    for sample in range(len(inputs)):
        with torch.enable_grad():
            values = model_outputs(model, inputs[sample : sample + 1])[0].unbind()
        picked = values if output_index is None else (values[int(output_index[sample])],)
        for value in picked:
            gradients = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
            for row, gradient, parameter in zip(rows, gradients, wanted, strict=True):
                row.append(torch.zeros_like(parameter) if gradient is None else gradient.detach())
    names_in_order = [name for name in trainable(model) if name in set(names)]
    shaped = [torch.stack(row).reshape(len(inputs), -1, *parameter.shape) for row, parameter in zip(rows, wanted, strict=True)]
    return dict(zip(names_in_order, shaped, strict=True))


def misfits(model: nn.Module, layout: Layout, inputs: Tensor) -> list[str]:
    """Parameters whose gradients by hooks are not autograd's, for each of ``inputs`` (B, ...) and up to three outputs."""
    if not layout.hooked:
        return []
    only = Layout(layout.order, layout.hooked, (), (), layout.ways, layout.num_outputs)
    names = [full for one in layout.hooked for full in (*one.small.values(), *((one.weight.name,) if one.weight else ()))]
    parameters = trainable(model)
    found = _by_hooks(model, only, inputs, names)
    with torch.enable_grad():
        outputs = [row.unbind() for row in model_outputs(model, inputs).unbind()]
    wrong: dict[str, None] = {}
    chosen = sorted({0, layout.num_outputs // 2, layout.num_outputs - 1})
    for sample in range(len(inputs)):
        for output in chosen:
            truth = torch.autograd.grad(outputs[sample][output], [parameters[n] for n in names], retain_graph=True, allow_unused=True)
            for name, expected in zip(names, truth, strict=True):
                mine = found[name][sample, output]
                exact = torch.zeros_like(mine) if expected is None else expected.to_dense() if expected.is_sparse else expected
                bound = torch.finfo(mine.dtype).eps ** 0.5
                # NaN is no disagreement: it is refused where features are used, with the sample's id.
                if bool((mine - exact).norm() > bound * exact.norm().clamp(min=torch.finfo(mine.dtype).tiny)):
                    wrong[name] = None
    return list(wrong)


def _by_hooks(model: nn.Module, layout: Layout, inputs: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Gradients (B, C, *shape) of the hooked parameters alone."""
    factors: dict[str, Factors] = {}
    small: dict[str, Tensor] = {}
    found = record(model, inputs, tuple(hooked.name for hooked in layout.hooked))
    for hooked, gradients in zip(layout.hooked, _output_gradients(layout, found, None), strict=True):
        _read_layer(model, hooked, found.calls[hooked.name].inputs, gradients, factors, small)
    shapes = dict(layout.order)
    chosen = tuple((name, shapes[name]) for name in names)
    rest_names = tuple((name, shape) for name, shape in chosen if name in small)
    rest = torch.cat([small[name].flatten(2) for name, _ in rest_names], dim=2) if rest_names else None
    if rest is None:
        rest = found.outputs.detach().new_empty(len(inputs), layout.num_outputs, 0)
    rows = FeatureRows(layout.weights, tuple(factors[weight.name] for weight in layout.weights), rest, rest_names, chosen)
    dense = rows.dense()
    sizes = [torch.Size(shape).numel() for _, shape in chosen]
    parts = torch.split(dense, sizes, dim=2)
    return {name: part.reshape(*part.shape[:2], *shape) for (name, shape), part in zip(chosen, parts, strict=True)}


def _check_output_index(output_index: Tensor, rows: int, num_outputs: int) -> None:
    if output_index.shape != (rows,) or output_index.dtype != torch.int64:
        raise ProblemError(
            "output_index does not fit the batch",
            where="per_sample_gradients",
            expected=f"int64 of shape ({rows},)",
            got=f"{output_index.dtype} of shape {tuple(output_index.shape)}",
        )
    low, high = int(output_index.min()), int(output_index.max())
    if low < 0 or high >= num_outputs:
        raise ProblemError(
            "output_index names an output that the model has not",
            where="per_sample_gradients",
            expected=f"0 to {num_outputs - 1}",
            got=f"{low} to {high}",
        )
