from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from genrep_dist.core.gradients.model import as_outputs
from genrep_dist.core.tensors import numpy_array, numpy_values
from genrep_dist.errors import ProblemError

VALUES = torch.tensor([[0.0, 1.0, -2.0], [0.5, 0.25, 4.0]])
COMPLEX = torch.complex(VALUES, VALUES + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float32, torch.float64])
def test_values_of_floating_point_tensors(dtype: torch.dtype) -> None:
    found = numpy_values(VALUES.clone().to(dtype).requires_grad_())
    assert found.dtype == {torch.float16: np.float16, torch.float64: np.float64}.get(dtype, np.float32)
    np.testing.assert_array_equal(found, VALUES.numpy())


OTHERS: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
    "sparse": (VALUES.to_sparse, VALUES),
    "sparse rows": (VALUES.to_sparse_csr, VALUES),
    "quantized": (lambda: torch.quantize_per_tensor(VALUES, 0.25, 0, torch.qint8), VALUES),
    "conjugate": (COMPLEX.conj, torch.complex(VALUES, -VALUES - 1)),
    "negative": (lambda: COMPLEX.conj().imag, -VALUES - 1),
    "transposed": (VALUES.t, VALUES.t().contiguous()),
    "expanded": (lambda: VALUES[:1].expand(4, 3), VALUES[:1].repeat(4, 1)),
    "bool": (lambda: VALUES > 0, VALUES > 0),
    "no dimension": (lambda: torch.tensor(2), torch.tensor(2)),
    "no elements": (lambda: torch.zeros(0, 3).bfloat16(), torch.zeros(0, 3)),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*quantiz")
def test_values_of_other_tensors(name: str) -> None:
    make, expected = OTHERS[name]
    np.testing.assert_array_equal(numpy_values(make()), expected.numpy())


def test_values_are_not_copied_without_need() -> None:
    assert np.shares_memory(numpy_values(VALUES), VALUES.numpy())


def test_arrays_stay_arrays() -> None:
    for values in ([1, 2], np.ones(3), np.zeros(2, dtype="V2")):
        assert numpy_array(values).dtype == np.asarray(values).dtype
    np.testing.assert_array_equal(numpy_array(VALUES.bfloat16()), VALUES.numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_outputs_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    source = VALUES.clone().requires_grad_()
    outputs = as_outputs(source.to(dtype), 2)
    assert outputs.dtype == torch.float32
    (gradient,) = torch.autograd.grad(outputs.sum(), source)
    assert torch.equal(gradient, torch.ones_like(VALUES))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_other_outputs_keep_their_dtype(dtype: torch.dtype) -> None:
    assert as_outputs(VALUES.to(dtype), 2).dtype == dtype


@pytest.mark.parametrize("convert", [Tensor.long, Tensor.bool, Tensor.to_sparse, lambda tensor: torch.complex(tensor, tensor)])
def test_outputs_that_are_refused(convert: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ProblemError, match="not real numbers in a dense tensor"):
        as_outputs(convert(VALUES), 2)
