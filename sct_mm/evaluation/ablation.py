"""Networks with less of SSBN than it has, for configs/baselines/."""
from functools import partial
from typing import Any, Optional, Sequence

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, MODELS
from torch import Tensor, nn

from ..models.convert import extract_scale
from ..models.scale import ssbn_layers


def _same_for_all_rows(rows: int, grad: Tensor) -> Tensor:
    return grad.view(rows, -1).sum(0).repeat(rows)


@HOOKS.register_module()
class SharedAffineHook(Hook):
    """Train gamma and beta of SSBN as if all scales shared them, so that the
    statistics alone are private.

    All rows start equal, and each gets the sum of their gradients: an
    optimizer that treats the entries of a parameter alike (SGD, Adam) keeps
    them equal. Needs ``SCTLossHook(backward='joint')``, since these are
    gradient hooks.
    """

    def before_train(self, runner) -> None:
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        self._handles = [
            parameter.register_hook(partial(
                _same_for_all_rows, len(layer.scales)))
            for layer in ssbn_layers(model)
            for parameter in (layer.weight, layer.bias)
            if parameter is not None and parameter.requires_grad]

    def after_train(self, runner) -> None:
        for handle in self._handles:
            handle.remove()


@MODELS.register_module()
def WithSharedBN(model: dict, shared: Sequence[str],
                 data_preprocessor: Optional[Any] = None) -> nn.Module:
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
