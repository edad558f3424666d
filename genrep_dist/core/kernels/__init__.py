"""Kernels by name. A package adds one by an entry point of the group `genrep_dist.kernels`, or with ``KERNELS.register``."""

from __future__ import annotations

from genrep_dist.core.kernels.activation_cosine import ActivationCosineKernel
from genrep_dist.core.kernels.base import Kernel
from genrep_dist.core.kernels.datainf import DataInfKernel
from genrep_dist.core.kernels.ekfac import EkfacKernel
from genrep_dist.core.kernels.influence import InfluenceKernel
from genrep_dist.core.kernels.input_cosine import InputCosineKernel
from genrep_dist.core.kernels.last_layer import LastLayerKernel
from genrep_dist.core.kernels.ntk import NeuralTangentKernel
from genrep_dist.core.kernels.ntk_adam import PreconditionedTangentKernel
from genrep_dist.core.kernels.relatif import RelatifKernel
from genrep_dist.core.kernels.trak import TrakKernel
from genrep_dist.core.reserved import RESERVED_NAMES
from genrep_dist.registry import Registry

KERNELS: Registry[type[Kernel]] = Registry("kernel", "genrep_dist.kernels", Kernel, reserved=RESERVED_NAMES)
_shipped: tuple[type[Kernel], ...] = (
    NeuralTangentKernel,
    LastLayerKernel,
    InfluenceKernel,
    TrakKernel,
    EkfacKernel,
    DataInfKernel,
    RelatifKernel,
    PreconditionedTangentKernel,
    ActivationCosineKernel,
    InputCosineKernel,
)
for _kernel in _shipped:
    KERNELS.register(_kernel.name, _kernel)
