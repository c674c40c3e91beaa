"""The logits of a classifier, and how those of one pass teach another."""
from contextlib import contextmanager
from typing import Any, Iterator, Optional

import torch.nn.functional as F
from torch import Tensor, nn


def distillation_loss(teacher: Tensor, student: Tensor,
                      temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of the softmax of logits (N, C), in nats, the
    mean over the pictures, as RS-Nets (arXiv 2007.09558).

    Args:
        temperature: divides the logits; the KL is multiplied by its square,
            so that gradients stay of one size (Hinton, arXiv 1503.02531).
    """
    teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    student = F.log_softmax(student.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction='batchmean',
                                     log_target=True)


def maker_of_logits(model: nn.Module) -> Optional[nn.Module]:
    """The part of ``model`` that returns its logits: mmpretrain's ``head``,
    or what its classifiers without one wrap (``TimmClassifier``)."""
    for name in ('head', 'model'):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            return part
    return None


def has_logits(model: nn.Module, output: Any) -> bool:
    """Whether what ``model`` returns with ``mode='tensor'`` is the logits
    (N, C) of a softmax."""
    return (isinstance(output, Tensor) and output.dim() == 2
            and output.shape[1] > 1 and output.is_floating_point()
            and not has_many_labels(model))


def has_many_labels(model: nn.Module) -> bool:
    """Whether the head of ``model`` gives a picture any number of labels."""
    head = type(getattr(model, 'head', None))
    return any('MultiLabel' in c.__name__ for c in head.__mro__)


class HeadLogits:
    """Catches the logits that ``model`` makes within its own loss.

    Args:
        argument: of the hook that asks for them, for the message.
    """

    def __init__(self, model: nn.Module, argument: str) -> None:
        self._model, self._argument = model, argument
        self._output: Any = None

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Keep what is made, the last if several, for :meth:`take` within the
        ``with`` block."""
        maker = maker_of_logits(self._model)
        handle = maker.register_forward_hook(self._catch, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            self._output = None  # of a pass that raised

    def _catch(self, maker: nn.Module, args: tuple, kwargs: dict,
               output: Any) -> None:
        # A margin (ArcFace) is of the labels: these are no predictions.
        self._output = output if len(args) + len(kwargs) == 1 else None

    def take(self) -> Tensor:
        """The logits (N, C) of the pass that has just run.

        Raises:
            ValueError: if it made none.
        """
        output, self._output = self._output, None
        if not has_logits(self._model, output):
            maker = type(maker_of_logits(self._model)).__name__
            raise ValueError(
                f'{self._argument} teaches by the logits (N, classes) of a '
                f'softmax, but {maker} of {type(self._model).__name__} makes '
                'none of features alone as its loss is computed. Leave it '
                'out, or take a head as LinearClsHead.')
        return output
