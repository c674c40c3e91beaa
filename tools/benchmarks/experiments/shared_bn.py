"""Networks with less of SSBN than it has, for tools/benchmarks/experiments/configs/."""
from collections.abc import Sequence
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from sct_mm.models.extract import extract_scale
from sct_mm.models.size_selection import ssbn_layers


@MODELS.register_module()
def WithSharedBN(model: dict, shared: Sequence[str],
                 data_preprocessor: Any | None = None) -> nn.Module:
    """Build the model of another config, with plain BN in some of its parts.

    Args:
        model: config of a model with SSBN.
        shared: names of the modules whose norms all scales share.
        data_preprocessor: as for ``WithSSBN``.
    """
    model = dict(model)
    if data_preprocessor is not None:
        model.setdefault('data_preprocessor', data_preprocessor)
    model = MODELS.build(model)
    for name in shared:
        parent, _, child = name.rpartition('.')
        part = model.get_submodule(name)
        setattr(model.get_submodule(parent), child,
                extract_scale(part, ssbn_layers(part)[0].scales[0]))
    return model
