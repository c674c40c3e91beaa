"""A network as it is deployed: by its hosts' own means."""
import copy
from typing import Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .failure_cause import first_line


def relative_difference(got: Sequence[Tensor],
                        want: Sequence[Tensor]) -> float:
    """The largest difference of two networks' outputs, as a share of the
    largest magnitude of the output it is in; inf where shapes differ or one
    is no number."""
    if len(got) != len(want):
        return float('inf')
    largest = 0.0
    for one, other in zip(got, want):
        if one.shape != other.shape:
            return float('inf')
        if not other.numel() or torch.equal(one, other):
            continue
        scale = other.double().abs().max().clamp(min=1e-30)
        ratio = float((one.double() - other).abs().max() / scale)
        if not ratio <= float('inf'):  # NaN
            return float('inf')
        largest = max(largest, ratio)
    return largest


def reparameterize(model: nn.Module) -> None:
    """Join the branches of what has a form for inference, in place:
    mmpretrain's ``switch_to_deploy``, timm's ``reparameterize_model``."""
    for child in model.children():
        if hasattr(child, 'switch_to_deploy'):
            child.switch_to_deploy()  # it sees to those within
        elif type(child).__module__.startswith('timm.'):
            from timm.utils.model import reparameterize_model
            reparameterize_model(child, inplace=True)
        else:
            reparameterize(child)


def norms_in(model: nn.Module) -> int:
    return sum(isinstance(m, _BatchNorm) for m in model.modules())


@torch.no_grad()
def fuse(net: nn.Module, x: Tensor, tolerance: float
         ) -> Tuple[nn.Module, str]:
    """``net`` with its norms fused into the convolutions, by mmcv's
    ``fuse_conv_bn``; and, where they stay, a sentence that says so.

    mmcv fuses a norm with the convolution that was *registered* before it,
    whatever lies between: a norm behind an activation, or one that has an
    activation of its own (timm's ``BatchNormAct2d``), would be lost. Such a
    network keeps its norms.
    """
    from mmcv.cnn import fuse_conv_bn
    before = norms_in(net)
    if not before:
        return net, ''
    cause = 'does not compute the same'
    try:
        fused = fuse_conv_bn(copy.deepcopy(net))
        if relative_difference(fused(x), net(x)) <= tolerance:
            return fused, ''
    except Exception as error:  # of norms without affine parameters
        cause = f'fails ({first_line(error)})'
    return net, (f'Its {before} norms are not fused: what mmcv makes of them '
                 f'{cause}.')


def deployed(net: nn.Module, x: Tensor, fuse_norms: bool = True,
             tolerance: float = 1e-4) -> Tuple[nn.Module, str]:
    """A copy of ``net`` for inference, and what there is to say of it.

    Args:
        x: preprocessed pictures (N, C, H, W) that the result is tried on.
        fuse_norms: whether norms are fused, after the re-parameterisation.
        tolerance: see :func:`relative_difference`.
    """
    net = copy.deepcopy(net)
    reparameterize(net)
    net.eval()
    return fuse(net, x, tolerance) if fuse_norms else (net, '')
