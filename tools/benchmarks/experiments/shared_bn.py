"""A model with SSBN in some of its parts and shared BN in the others."""
from collections.abc import Sequence
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from sct_mm.models.extract import extract_scale
from sct_mm.models.size_selection import ssbn_layers


@MODELS.register_module()
def WithSharedBN(model: dict, shared: Sequence[str],
                 data_preprocessor: Any | None = None) -> nn.Module:
    """Build a model with SSBN, then put plain BN into some of its parts.

    Args:
        model: config of a model with SSBN.
        shared: names of the modules whose norms become plain BN.
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
