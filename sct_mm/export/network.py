"""Which part of a network is exported, and what its outputs are called."""
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..utils.errors import UserError
from .failure_cause import first_line

PARTS = ('network', 'features')


def flattened(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in what a network returned, each with a name that says
    where it stood: 'output_0_2' is the third of the first list."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from flattened(child, f'{name}_{key}')
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from flattened(child, f'{name}_{index}')


class Part(nn.Module):
    """What is exported of a model: images to tensors, by position alone.

    ``'network'`` is the host's ``mode='tensor'``: a classifier's logits, or a
    detector's maps of classes and boxes, which are not decoded. ``'features'``
    is its ``extract_feat``: backbone and neck.

    Args:
        softmax: whether a classifier gives scores in place of logits.
    """

    def __init__(self, model: nn.Module, part: str, softmax: bool = False
                 ) -> None:
        super().__init__()
        self.model, self.part, self.softmax = model, part, softmax

    def named_outputs(self, x: Tensor) -> dict[str, Tensor]:
        """The outputs for preprocessed images (N, C, H, W), by name."""
        if self.part == 'features':
            return dict(flattened(self.model.extract_feat(x), 'feature'))
        value = self.model(x, mode='tensor')
        if isinstance(value, Tensor) and value.dim() == 2:
            if self.softmax:
                return dict(scores=torch.softmax(value, dim=1))
            return dict(logits=value)
        return dict(flattened(value, 'output'))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named_outputs(x).values())


def check_softmax(model: nn.Module, outputs: dict[str, Tensor]) -> None:
    """Refuse scores of what has no classes that exclude each other.

    Raises:
        UserError: for anything but a classifier of one label an image.
    """
    head = getattr(model, 'head', None)
    many = any(kind.__name__ == 'MultiLabelClsHead'
               for kind in type(head).__mro__)
    if many or list(outputs) != ['scores']:
        what = type(head if many else model).__name__
        raise UserError('Scores by softmax need a classifier of one label a '
                        f'image, but got {what}. Leave softmax out.')


def choose_part(model: nn.Module, x: Tensor, part: str | None,
                softmax: bool = False) -> tuple[str, str]:
    """The part to export, and, where it is not all, why, in a sentence.

    None takes the network, or its features where it does not run on images
    alone, as mmdet's two-stage detectors, whose heads ask the samples for
    their shapes.

    Raises:
        UserError: for a part that cannot be run, or has no scores.
    """
    name = type(model).__name__
    for each in (part, ) if part else PARTS:
        try:
            outputs = Part(model, each, softmax).named_outputs(x)
        except Exception as error:  # each host has its own
            cause = first_line(error)
            if each == (part or PARTS[-1]) or softmax:
                raise UserError(
                    f'The {each} of {name} cannot be exported: it does not '
                    f'run on images alone ({cause}). Export another '
                    'part.') from error
            continue
        if softmax:
            check_softmax(model, outputs)
        note = '' if each == PARTS[0] or part else (
            f'{name} does not run on images alone ({cause}): its backbone '
            'and neck are exported.')
        return each, note
    raise AssertionError('one part runs, or is refused')


def description(model: nn.Module, size: int, part: str) -> dict:
    """What who runs the file has to know of its images: their size in
    pixels, and how they were normalized."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    told: dict[str, Any] = dict(size=size, part=part)
    for name in ('mean', 'std'):
        value = getattr(preprocessor, name, None)
        if isinstance(value, Tensor):
            told[name] = value.flatten().tolist()
    for name in ('to_rgb', '_channel_conversion'):
        if hasattr(preprocessor, name):
            told['bgr_to_rgb'] = bool(getattr(preprocessor, name))
    divisor = getattr(preprocessor, 'pad_size_divisor', 1)
    if divisor > 1:
        told['pad_size_divisor'] = divisor
    return told


def relative_difference(got: Sequence[Tensor],
                        want: Sequence[Tensor]) -> float:
    """The largest difference of two networks' outputs, as a share of the
    largest magnitude of the output it is in; inf where shapes differ or one
    is no number."""
    if len(got) != len(want):
        return float('inf')
    largest = 0.0
    for one, other in zip(got, want, strict=True):
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
         ) -> tuple[nn.Module, str]:
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
             tolerance: float = 1e-4) -> tuple[nn.Module, str]:
    """A copy of ``net`` for inference, and what there is to say of it.

    Args:
        x: preprocessed images (N, C, H, W) that the result is tried on.
        fuse_norms: whether norms are fused, after the re-parameterisation.
        tolerance: see :func:`relative_difference`.
    """
    net = copy.deepcopy(net)
    reparameterize(net)
    net.eval()
    return fuse(net, x, tolerance) if fuse_norms else (net, '')
