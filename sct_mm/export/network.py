"""Which part of a network is exported, and what its outputs are called."""
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
from torch import Tensor, nn

from ..utils.errors import UserError
from .failure_cause import first_line

PARTS = ('network', 'features')


def flattened(value: Any, name: str) -> Iterator[Tuple[str, Tensor]]:
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
    """What is exported of a model: pictures to tensors, by position alone.

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

    def named_outputs(self, x: Tensor) -> Dict[str, Tensor]:
        """The outputs for preprocessed pictures (N, C, H, W), by name."""
        if self.part == 'features':
            return dict(flattened(self.model.extract_feat(x), 'feature'))
        value = self.model(x, mode='tensor')
        if isinstance(value, Tensor) and value.dim() == 2:
            if self.softmax:
                return dict(scores=torch.softmax(value, dim=1))
            return dict(logits=value)
        return dict(flattened(value, 'output'))

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        return tuple(self.named_outputs(x).values())


def check_softmax(model: nn.Module, outputs: Dict[str, Tensor]) -> None:
    """Refuse scores of what has no classes that exclude each other.

    Raises:
        UserError: for anything but a classifier of one label a picture.
    """
    head = getattr(model, 'head', None)
    many = any(kind.__name__ == 'MultiLabelClsHead'
               for kind in type(head).__mro__)
    if many or list(outputs) != ['scores']:
        what = type(head if many else model).__name__
        raise UserError('Scores by softmax need a classifier of one label a '
                        f'picture, but got {what}. Leave softmax out.')


def choose_part(model: nn.Module, x: Tensor, part: Optional[str],
                softmax: bool = False) -> Tuple[str, str]:
    """The part to export, and, where it is not all, why, in a sentence.

    None takes the network, or its features where it does not run on pictures
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
                    f'run on pictures alone ({cause}). Export another '
                    'part.') from error
            continue
        if softmax:
            check_softmax(model, outputs)
        note = '' if each == PARTS[0] or part else (
            f'{name} does not run on pictures alone ({cause}): its backbone '
            'and neck are exported.')
        return each, note
    raise AssertionError('one part runs, or is refused')


def description(model: nn.Module, size: int, part: str) -> dict:
    """What who runs the file has to know of its pictures: their size in
    pixels, and how they were normalized."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    told: Dict[str, Any] = dict(size=size, part=part)
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
