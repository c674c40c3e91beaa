"""Choose the part of a network that is exported, prepare it for inference, and
describe it."""
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..models.scratch_copy import copied
from ..runtime.network_file import VERSION
from ..utils.errors import UserError
from .failure_cause import first_line

PARTS = ('network', 'features')
# {base class of a host's networks: (network, images) -> its outputs}, where
# it is not ``network(images, mode='tensor')``.
_OUTPUTS: dict[str, Callable[[Any, Tensor], Any]] = {
    # mmaction2, which gives features there: the classes of each clip
    'BaseRecognizer': lambda model, x: model.extract_feat(
        x, stage='head')[0],
    # mmpose, where samples must be named
    'BasePoseEstimator': lambda model, x: model(x, None, mode='tensor'),
}


def named_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in what a network returned, each named by its place:
    'output_0_2' is the third of the first list."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from named_tensors(child, f'{name}_{key}')
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from named_tensors(child, f'{name}_{index}')


def outputs_of(model: nn.Module, x: Tensor) -> Any:
    """What ``model`` makes of preprocessed images, not decoded."""
    run = next((_OUTPUTS[kind.__name__] for kind in type(model).__mro__
                if kind.__name__ in _OUTPUTS), None)
    return run(model, x) if run else model(x, mode='tensor')


class Part(nn.Module):
    """The exported part of a model, as a module from images to tensors.

    ``'network'`` is the host's ``mode='tensor'``: a classifier's logits, a
    detector's maps of classes and boxes, or a pose estimator's heatmaps, which
    are not decoded; of mmaction2 the logits of each clip. ``'features'`` is
    its ``extract_feat``: backbone and neck.

    Args:
        softmax: whether a classifier gives scores in place of logits.
    """

    def __init__(self, model: BaseModel, part: str, softmax: bool = False
                 ) -> None:
        super().__init__()
        self.model, self.part, self.softmax = model, part, softmax

    def named_outputs(self, x: Tensor) -> dict[str, Tensor]:
        """The outputs for preprocessed images (N, ..., H, W), by name."""
        if self.part == 'features':
            return dict(named_tensors(self.model.extract_feat(x), 'feature'))
        value = outputs_of(self.model, x)
        if isinstance(value, Tensor) and value.dim() == 2:
            if self.softmax:
                return dict(scores=torch.softmax(value, dim=1))
            return dict(logits=value)
        return dict(named_tensors(value, 'output'))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named_outputs(x).values())


def check_softmax(model: nn.Module, outputs: dict[str, Tensor]) -> None:
    """Refuse scores for a model without classes that exclude each other.

    Raises:
        UserError: for anything but a classifier of one label an image.
    """
    many = is_multi_label(model)
    if many or list(outputs) != ['scores']:
        what = type(model.head if many else model).__name__
        raise UserError('Scores by softmax need a classifier of one label an '
                        f'image, but got {what}. Leave softmax out.')


def choose_part(model: nn.Module, x: Tensor, part: str | None,
                softmax: bool = False) -> tuple[str, str]:
    """The part to export, and a note if the network cannot be.

    Args:
        x: preprocessed images (N, C, H, W) to try the part on.
        part: one of ``PARTS``; None takes the network, or its features if the
            network does not run on images alone: the heads of mmdet's
            two-stage detectors ask the samples for their shapes.

    Raises:
        UserError: for a part that cannot be run, or has no scores.
    """
    name = type(model).__name__
    failures: list[Exception] = []
    # Features have no scores: with softmax they are no second choice.
    for each in (part, ) if part else PARTS[:1] if softmax else PARTS:
        try:
            outputs = Part(model, each, softmax).named_outputs(x)
            break
        except Exception as error:  # each host has its own
            failures.append(error)
    else:
        raise UserError(
            f'The {each} of {name} cannot be exported: it does not run on '
            f'images alone ({first_line(failures[-1])}). Export another '
            'part.') from failures[-1]
    if softmax:
        check_softmax(model, outputs)
    return each, '' if not failures else (
        f'{name} does not run on images alone ({first_line(failures[-1])}): '
        'its backbone and neck are exported.')


def reparameterize(model: nn.Module) -> None:
    """Join the branches of layers that have a form for inference, in place:
    by mmpretrain's ``switch_to_deploy`` or timm's ``reparameterize_model``."""
    for child in model.children():
        deploy = getattr(child, 'switch_to_deploy', None)
        if deploy is not None:
            deploy()  # with the layers within
        elif type(child).__module__.startswith('timm.'):
            from timm.utils.model import reparameterize_model
            reparameterize_model(child, inplace=True)
        else:
            reparameterize(child)


def norms_in(model: nn.Module) -> int:
    """How many batch normalizations ``model`` holds."""
    return sum(isinstance(m, _BatchNorm) for m in model.modules())


def relative_difference(got: Sequence[Tensor],
                        want: Sequence[Tensor]) -> float:
    """The largest difference between the outputs of two networks, as a share
    of the largest magnitude in the same output; inf if their number or shapes
    differ, or one holds NaN."""
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


@torch.no_grad()
def deployed(net: Part, x: Tensor, fuse: bool = True,
             tolerance: float = 1e-4) -> tuple[Part, str]:
    """A copy of ``net`` for inference, and a note if its norms cannot be
    fused into the convolutions.

    mmcv's ``fuse_conv_bn`` fuses a norm with the convolution that was
    *registered* before it, whatever lies between: a norm behind an activation,
    or one that has an activation of its own (timm's ``BatchNormAct2d``), would
    be lost. Such a network keeps its norms.

    Args:
        x: preprocessed images (N, C, H, W) to try the fused network on.
        tolerance: the largest :func:`relative_difference` by fusing.
    """
    from mmcv.cnn import fuse_conv_bn
    net = copied(net)
    reparameterize(net)
    net.eval()
    if not fuse or not norms_in(net):
        return net, ''
    cause = 'does not compute the same'
    try:
        fused = fuse_conv_bn(copied(net))
        if relative_difference(fused(x), net(x)) <= tolerance:
            return fused, ''
    except Exception as error:  # e.g. norms without affine parameters
        cause = f'fails ({first_line(error)})'
    return net, (f'Its {norms_in(net)} norms are not fused: what mmcv makes '
                 f'of them {cause}.')


def is_multi_label(model: nn.Module) -> bool:
    """Whether a classifier of mmpretrain gives any number of labels."""
    return any(kind.__name__ == 'MultiLabelClsHead'
               for kind in type(getattr(model, 'head', None)).__mro__)


def without_other_classes(about: dict, outputs: dict[str, Tensor]
                          ) -> tuple[dict, str]:
    """``about`` of a file's images without ``classes``, if a classifier
    gives another number of them, and a note that says so.

    Args:
        outputs: of a network, by name (:meth:`Part.named_outputs`).
    """
    scores = outputs.get('logits', outputs.get('scores'))
    names = about.get('classes')
    if names is None or scores is None or len(names) == scores.shape[1]:
        return about, ''
    return {name: value for name, value in about.items()
            if name != 'classes'}, (
        f'The file names no classes: the network has {scores.shape[1]}, the '
        f'checkpoint or the test set {len(names)}.')


def description(model: nn.Module, size: int, part: str,
                outputs: Sequence[str] = ()) -> dict:
    """What a user of the file has to know of the network: the size of its
    images in pixels, how they are normalized, and what its outputs are
    (docs/export.md)."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    found: dict[str, Any] = dict(version=VERSION, size=size, part=part,
                                 outputs=list(outputs))
    if list(outputs) == ['logits']:  # what makes scores of them
        found['scores'] = ('sigmoid' if is_multi_label(model)
                           else 'softmax')
    for name in ('mean', 'std'):
        value = getattr(preprocessor, name, None)
        if isinstance(value, Tensor):
            found[name] = value.flatten().tolist()
    divisor = getattr(preprocessor, 'pad_size_divisor', 1)
    if divisor > 1:
        found.update(pad_size_divisor=divisor,
                     pad_value=getattr(preprocessor, 'pad_value', 0))
    return found
