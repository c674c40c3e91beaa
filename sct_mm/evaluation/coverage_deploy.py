"""How hosts make a network faster for inference."""
from typing import Callable, List, Tuple

from networks import batch_norms
from torch import nn


class Nothing(Exception):
    """There is nothing to check; the text, if any, says why."""


def deployments(host: str) -> List[Tuple[str, Callable]]:
    """The ways by which ``host`` makes a network faster for inference."""
    if host in ('mmpretrain', 'mmdet'):
        return [('switch_to_deploy', _switch_to_deploy),
                ('fuse_conv_bn', _fuse_conv_bn)]
    return [('fuse', _reparameterize), ('torch.fx', _fuse_by_fx)]


def _switch_to_deploy(model: nn.Module) -> nn.Module:
    parts = [m for m in model.modules() if hasattr(m, 'switch_to_deploy')]
    if not parts:
        raise Nothing
    parts[0].switch_to_deploy()  # the outermost one sees to those within
    return model


def _fuse_conv_bn(model: nn.Module) -> nn.Module:
    from mmcv.cnn import fuse_conv_bn
    before = len(batch_norms(model))
    model = fuse_conv_bn(model)
    if len(batch_norms(model)) == before:
        raise Nothing
    return model


def _reparameterize(model: nn.Module) -> nn.Module:
    if not any(hasattr(m, name) for m in model.modules() for name in (
            'fuse', 'reparameterize', 'switch_to_deploy')):
        raise Nothing
    from timm.utils.model import reparameterize_model
    return reparameterize_model(model)


def _fuse_by_fx(model: nn.Module) -> nn.Module:
    from torch.fx.experimental.optimization import fuse
    before = len(batch_norms(model))
    model.net = fuse(model.net)
    if len(batch_norms(model)) == before:
        raise Nothing
    return model
