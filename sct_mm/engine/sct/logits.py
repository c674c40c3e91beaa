"""The logits of a classifier, and how those of one pass teach another."""
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, reduce
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Logits = dict[str, Tensor]  # {part: (N, C)}: one, but for heads of several

# Losses that have no `use_sigmoid` to tell, and those of numbers.
_SIGMOIDS = ('FocalLoss', 'BCEWithLogitsLoss', 'BinaryCrossEntropy',
             'MultiLabelSoftMarginLoss')
_NUMBERS = ('RegressionLoss', 'L1Loss', 'SmoothL1Loss', 'HuberLoss', 'MSELoss')


def distillation_loss(teacher: Tensor, student: Tensor,
                      temperature: float = 1.0,
                      sigmoid: bool = False) -> Tensor:
    """KL(teacher || student) of logits (N, C), in nats, the mean over the
    images: of their softmax, as RS-Nets (arXiv 2007.09558), or, where each
    class has an answer of its own, of their sigmoid, the sum over the classes
    (our choice, as the hosts' losses add them up).

    Args:
        temperature: divides the logits; the KL is multiplied by its square,
            so that gradients stay of one size (Hinton, arXiv 1503.02531).
    """
    teacher, student = (logits.float() / temperature
                        for logits in (teacher, student))
    if sigmoid:
        yes, no = F.logsigmoid(teacher), F.logsigmoid(-teacher)
        each = (yes.exp() * (yes - F.logsigmoid(student))
                + no.exp() * (no - F.logsigmoid(-student)))
        each = torch.where(teacher.isinf(), 0., each)  # a class is masked
        return temperature**2 * each.sum(dim=1).mean()
    teacher, student = teacher.log_softmax(1), student.log_softmax(1)
    # A class that is masked by -inf, in both, adds nothing.
    each = torch.where(teacher.isneginf(), 0.,
                       teacher.exp() * (teacher - student))
    return temperature**2 * each.sum(dim=1).mean()


def makers_of_logits(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of ``model`` that return its logits: mmpretrain's ``head``,
    the heads of each task in it, or what its classifiers without one wrap
    (``TimmClassifier``); {} if there is none."""
    for name in ('head', 'model'):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            return _tasks_of(part, '')
    return {}


def gives_numbers(model: nn.Module) -> bool:
    """Whether ``model`` is trained to give numbers alone, whose differences
    no softmax sees (OneDL's RegressionHead)."""
    losses = [part for owner in (model, *makers_of_logits(model).values())
              for part in _losses_of(owner)
              if not list(part.children()) or _is_named(part, _NUMBERS)]
    return bool(losses) and all(_is_named(part, _NUMBERS) for part in losses)


def _losses_of(owner: nn.Module | None) -> list[nn.Module]:
    loss = getattr(owner, 'loss_module', None)
    return list(loss.modules()) if isinstance(loss, nn.Module) else []


def _is_named(part: nn.Module, names: Sequence[str]) -> bool:
    return any(c.__name__ in names for c in type(part).__mro__)


def _tasks_of(head: nn.Module, name: str) -> dict[str, nn.Module]:
    tasks = getattr(head, 'task_heads', None)
    if not isinstance(tasks, nn.ModuleDict):
        return {name: head}
    return {path: maker for task, each in tasks.items()
            for path, maker in _tasks_of(each, f'{name}.{task}').items()}


def names_labels(maker: nn.Module | None) -> bool:
    """Whether an image has any number of labels for ``maker``."""
    return any('MultiLabel' in c.__name__ for c in type(maker).__mro__)


def is_sigmoid(model: nn.Module, maker: nn.Module | None = None) -> bool:
    """Whether each logit of ``maker`` in ``model`` is trained to answer for
    its class alone."""
    return names_labels(maker) or any(
        getattr(part, 'use_sigmoid', False) or _is_named(part, _SIGMOIDS)
        for part in _losses_of(maker) or _losses_of(model))


class HeadLogits:
    """The logits that ``model`` makes, also within its own loss.

    Args:
        argument: of the hook that asks for them, for the message.

    Attributes:
        numbers: whether they are none, see :func:`gives_numbers`.
        several: whether an image may have any number of labels.
    """

    def __init__(self, model: nn.Module, argument: str) -> None:
        self._model, self._argument = model, argument
        self._makers = makers_of_logits(model)
        self._sigmoid = {name: is_sigmoid(model, maker) for name, maker
                         in self._makers.items()} or {'': is_sigmoid(model)}
        self.several = any(self._sigmoid.values())
        self.numbers = gives_numbers(model)
        self._outputs: dict[str, Any] = {}

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Keep what is made with gradients, the last if several, for
        :meth:`take` within the ``with`` block."""
        with ExitStack() as stack:
            for name, maker in self._makers.items():
                stack.callback(maker.register_forward_hook(
                    partial(self._catch, name), with_kwargs=True).remove)
            try:
                yield
            finally:
                self._outputs = {}  # of a pass that raised

    def _catch(self, name: str, maker: nn.Module, args: tuple, kwargs: dict,
               output: Any) -> None:
        if not torch.is_grad_enabled():
            return  # a metric of its own
        if len(args) + len(kwargs) > 1:
            output = self._of_features(maker, args, kwargs)
        self._outputs[name] = output

    @staticmethod
    def _of_features(maker: nn.Module, args: tuple, kwargs: dict) -> Any:
        """What a head predicts that got labels too: a margin (ArcFace) is of
        them. None if it cannot, or would count what it sees twice."""
        if any(isinstance(m, _BatchNorm) for m in maker.modules()):
            return None
        try:
            features, *_ = inspect.signature(maker.forward).bind(
                *args, **kwargs).arguments.values()
            return maker.forward(features)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # in whatever way it needs the labels
            return None

    def take(self) -> Logits:
        """The logits of the pass that has just run; a task without a label in
        the batch has none.

        Raises:
            ValueError: if it made none.
        """
        outputs, self._outputs = self._outputs, {}
        logits = self._checked(outputs)
        if not logits and (outputs or '' in self._makers):
            makers = ', '.join(type(maker).__name__
                               for maker in self._makers.values())
            raise ValueError(
                f'{self._argument} teaches by the logits (N, classes) of a '
                f'head, but {makers} of {type(self._model).__name__} makes '
                'none of features alone as its loss is computed. Leave it '
                'out, or take a head as LinearClsHead.')
        return logits

    def of(self, output: Any) -> Logits:
        """The logits in what the model returns with ``mode='tensor'``; {} if
        it is something else."""
        if isinstance(output, dict):  # of tasks
            flat: dict[str, Any] = {}
            for name in self._sigmoid:
                flat[name] = output
                for task in name.split('.')[1:]:
                    inner = flat[name]
                    flat[name] = (inner.get(task) if isinstance(inner, dict)
                                  else None)
            return self._checked(flat)
        return self._checked({name: output for name in self._sigmoid}
                             if len(self._sigmoid) == 1 else {})

    def divergence(self, teacher: Logits, student: Logits,
                   temperature: float = 1.0) -> Tensor:
        """The sum of :func:`distillation_loss` over the parts."""
        return reduce(add, (distillation_loss(
            teacher[part], student[part], temperature,
            self._sigmoid[part.rpartition('/')[0]]) for part in student))

    def cross_entropy(self, logits: Logits, targets: list[Tensor]) -> Tensor:
        """The sum over the parts, of their softmax or sigmoid.

        Args:
            targets: of each image, its labels (L,), of which a softmax has
                one, or scores (C,).
        """
        losses = []
        for part, values in logits.items():
            each = [target.to(values.device) for target in targets]
            soft = each[0].is_floating_point()
            if not self._sigmoid[part.rpartition('/')[0]]:
                losses.append(F.cross_entropy(values, (
                    torch.stack(each).to(values.dtype) if soft
                    else torch.cat(each))))
                continue
            binary = values.shape[1] == 1 and not names_labels(
                self._makers.get(part.rpartition('/')[0]))
            scores = torch.stack([
                target.to(row.dtype) if soft or binary else
                torch.zeros_like(row).index_fill(0, target[target >= 0], 1)
                for target, row in zip(each, values, strict=True)])
            losses.append(F.binary_cross_entropy_with_logits(
                values, scores, reduction='sum') / len(values))
        return reduce(add, losses)

    def _checked(self, outputs: dict[str, Any]) -> Logits:
        """{maker/number: logits}, of a head that returns several (Conformer)
        each; {} if one is something else."""
        logits: Logits = {}
        if self.numbers:
            return logits
        for name, output in outputs.items():
            output = getattr(output, 'logits', output)  # of transformers
            maker = self._makers.get(name)
            several = (output if maker is not None and isinstance(
                output, (tuple, list)) else [output])
            classes = getattr(maker, 'num_classes', None)
            for i, each in enumerate(several):
                if not (isinstance(each, Tensor) and each.dim() == 2
                        and each.is_floating_point()
                        and (each.shape[1] > 1 or self._sigmoid[name])):
                    return {}
                # Beside its logits a head may return features.
                if len(several) > 1 and each.shape[1] != (
                        classes or several[0].shape[1]):
                    return {}
                logits[f'{name}/{i}'] = each
        return logits
