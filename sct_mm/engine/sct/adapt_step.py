"""SCTLossHook(adapt=...): smaller scales for a trained network, whose answers
at the base scale stay the same to the bit."""
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ...datasets.batch_forms import image_shape, is_collated, views_of
from ...models.pinning import pinned
from ...models.row_mix import Present
from ...models.size_selection import (
    NormOfScales,
    scale_specific,
    ssbn_layers,
)
from ...models.weight_change import changed_layers
from .first_look import evaluating, leaves
from .logits import HeadLogits, Logits, makers_of_logits
from .monitor import named
from .schedule import Pass
from .teacher import Loss, parsed

ADAPT = (False, True, 'logits', 'labels', 'both')


def check_adapt(adapt: bool | str) -> bool | str:
    """``adapt``, if it is one of ``ADAPT``.

    Raises:
        ValueError: if not.
    """
    if not isinstance(adapt, (bool, str)) or adapt not in ADAPT:
        raise ValueError("`adapt` must be True, 'logits', 'labels', 'both' or "
                         f'False, but got {adapt!r}. Leave it out to train '
                         'the whole network.')
    return adapt


def check_labels(batch: dict) -> None:
    """Whether the samples of ``batch`` have labels, or its views need none.

    Raises:
        ValueError: if one has none.
    """
    samples = batch.get('data_samples')
    if is_collated(samples) or len(views_of(batch)) > 1:
        return
    if samples is None or not all(any(
            name.startswith('gt_') for name in sample.keys())
            for sample in samples):
        raise ValueError('`adapt` trains by the losses of the model, but got '
                         'samples without labels. Load them in the pipeline; '
                         "a classifier needs none with adapt='logits'.")


def check_adaptable(model: nn.Module, scales: Sequence[int],
                    weights: Sequence[float]) -> None:
    """Whether ``model`` has parameters for smaller scales that may train, and
    a base scale that was trained.

    Raises:
        ValueError: if not.
    """
    norms = ssbn_layers(model)
    if not norms or len(scales) < 2:
        raise ValueError('`adapt` trains the rows of smaller scales, but '
                         f'{type(model).__name__} has SSBN for '
                         f'{scales if norms else None}. Write model=dict('
                         "type='WithSSBN', scales=..., model=...).")
    if not any(weights[1:]):
        raise ValueError('`loss_weights` must be > 0 for a smaller scale with '
                         f'adapt, but got {tuple(weights)}. Leave it out.')
    private = _private_of(model)
    if not any(p.requires_grad and id(p) in private
               for p in model.parameters()):
        raise ValueError('`adapt` trains weight and bias of SSBN, and with '
                         '`rank` changes of weights, but none '
                         f'of {type(model).__name__} requires gradients. Set '
                         'frozen_stages=-1 and requires_grad=True in its '
                         'norm_cfg.')
    rows: list[Present] = [layer.row(scales[0]) for layer in norms
                           if layer.running_mean is not None]
    if rows and all((row['running_mean'] == 0).all()
                    and (row['running_var'] == 1).all() for row in rows):
        raise ValueError('`adapt` keeps what a trained network answers at '
                         f'{scales[0]}, but the rows of that scale have never '
                         'been trained. Set load_from to the checkpoint of a '
                         'trained network.')


def freeze(model: nn.Module) -> list[nn.Parameter]:
    """Stop the training of all but the weight and bias of SSBN, and the
    changes of weights; returns the parameters that trained before."""
    private = _private_of(model)
    frozen = [p for p in model.parameters()
              if p.requires_grad and id(p) not in private]
    for parameter in frozen:
        parameter.requires_grad_(False).grad = None
    return frozen


def _private_of(model: nn.Module) -> set[int]:
    """The ids of the parameters that smaller scales have of their own."""
    return {id(p) for layer in ssbn_layers(model)
            for p in (layer.weight, layer.bias)} | _changes_of(model)


def _changes_of(model: nn.Module) -> set[int]:
    """The ids of the parameters that change weights at smaller scales."""
    return {id(p) for layer in changed_layers(model) for p in layer.changes}


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """``model`` as :func:`freeze` leaves it within a ``with`` block."""
    parameters = freeze(model)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def kept_tensors(model: nn.Module) -> tuple[dict[str, Tensor],
                                            dict[str, Tensor]]:
    """What stays the same while ``model`` adapts, by name: tensors that a step
    writes to all the same (normalization parameters of the base scale,
    buffers of other layers), and the parameters that it does not."""
    written, parameters = {}, {}
    changes = _changes_of(model)
    for name, module in model.named_modules():
        rows = (module.row(module.scales[0])
                if isinstance(module, NormOfScales) else {})
        for key, value in (*module._buffers.items(),
                           *module._parameters.items()):
            if value is None or id(value) in changes:
                continue
            if key in rows or key in module._buffers:
                written[f'{name}.{key}'] = rows.get(key, value)
            else:
                parameters[f'{name}.{key}'] = value
    return written, parameters


class Kept:
    """All of ``model`` that must not change while its smaller scales adapt.

    Everything but the weight and bias of SSBN, and the changes of weights,
    is frozen. A step changes more
    all the same: weight decay and momentum the normalization parameters of
    the base scale, a size next to the base its statistics. :meth:`restore`
    puts that back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._frozen = freeze(model)
        self._values = {name: value.detach().clone()
                        for name, value in kept_tensors(model)[0].items()}

    def hold(self) -> None:
        """Before a step: put back, and freeze what another hook has freed."""
        self.restore()
        self._frozen += freeze(self._model)

    @torch.no_grad()
    def restore(self, copies: Iterable[nn.Module] = ()) -> None:
        """Put back what must not change.

        Args:
            copies: of the model, such as averages over the steps, to which
                all that is frozen is copied: (1 - m) * x + m * x is not
                always x to the bit.
        """
        written, parameters = kept_tensors(self._model)
        for name, value in written.items():
            kept = self._values.get(name)
            if kept is not None and kept.shape == value.shape:  # no cache
                value.copy_(kept)
        for model in copies:
            for ours, theirs in zip((written, parameters),
                                    kept_tensors(model), strict=True):
                for name, value in theirs.items():
                    value.copy_(ours[name])

    def release(self) -> None:
        """Put back, and let train what trained before."""
        self.restore()
        for parameter in self._frozen:
            parameter.requires_grad_(True)


class AdaptTeacher:
    """The base scale teaches the smaller ones: it runs without gradients and
    in evaluation mode, and they learn to answer as it does.

    Args:
        base: scale of the batches, in pixels.
        resize: (size in pixels, batch) -> the batch at that size.
        adapt: True: by KL from the network's own logits at the base, without
            labels, or, where it returns no logits (detectors), by its own
            losses. 'logits', 'labels' and 'both' choose.
        norm_eval: normalise with the running statistics, which stay, in
            place of those of the batch. A layer that its host keeps in
            evaluation mode does so anyway.
    """

    def __init__(self, model: nn.Module, base: int,
                 resize: Callable[[int, dict], dict],
                 adapt: bool | str = True, norm_eval: bool = False) -> None:
        makers = makers_of_logits(model)
        if adapt == 'both' and makers and '' not in makers:
            raise ValueError(
                "adapt='both' compares the logits of all images, but "
                f'{type(model.head).__name__} has tasks, whose losses see '
                "those with a label. Set adapt='logits'.")
        self.arguments: dict[str, Any] = dict(adapt=adapt,
                                              norm_eval=norm_eval)
        self.ensemble: dict[int, Tensor] = {}
        self._model, self._base, self._resize = model, base, resize
        self._layers = scale_specific(model)
        self._norms = [] if norm_eval else ssbn_layers(model)
        # The first pass of the base shows whether it returns logits.
        self._adapt = None if adapt is True else adapt
        self._head = HeadLogits(model, "adapt='both'")
        self._answers: dict[int, Logits] = {}  # {scale: for its share}

    @contextmanager
    def during(self, batch: dict, passes: Sequence[Pass]) -> Iterator[str]:
        if self._adapt != 'labels':
            answers = self._answers_at_base(batch)
            self._answers = {
                p.scale: {part: each[p.share or slice(None)]
                          for part, each in answers.items()}
                for p in passes}
        if self._adapt != 'logits':
            check_labels(batch)
        try:
            yield 'tensor' if self._adapt == 'logits' else 'loss'
        finally:
            self._answers = {}

    @contextmanager
    def around(self, p: Pass) -> Iterator[None]:
        """SSBN alone in training mode, or nothing with ``norm_eval``."""
        norms = set(self._norms)
        # A loss may depend on the mode of what makes it.
        modules = (self._model.modules() if self._adapt == 'logits'
                   else leaves(self._model))
        with ExitStack() as stack:
            stack.enter_context(evaluating(
                m for m in modules if m not in norms))
            if self._adapt == 'both':
                stack.enter_context(self._head.catching())
            yield

    def losses(self, output: Any, p: Pass) -> Iterator[Loss]:
        if self._adapt == 'logits':
            output = dict(loss=self._head.divergence(
                self._answers[p.scale], self._head.of(output)))
        elif self._adapt == 'both':
            output = dict(output, loss_distill=self._head.divergence(
                self._answers[p.scale], self._head.take()))
        yield Loss(p, *parsed(self._model, output))

    def _answers_at_base(self, batch: dict) -> Logits:
        """The logits of the base scale; {} if the network trains by its
        losses, which the first step finds out for ``adapt=True``.

        Raises:
            ValueError: for a network without logits to compare.
        """
        name = type(self._model).__name__
        part = {**self._resize(self._base, batch), 'mode': 'tensor'}
        try:
            with named(f'scale {self._base}'), torch.no_grad(), evaluating(
                    self._model.modules()), pinned(
                        self._layers, self._base, record=True,
                        edge=min(image_shape(part))):
                output = self._model(**part)
        except Exception as error:
            if self._adapt is not None:
                raise
            # Some detectors have no such mode, but a loss.
            print_log(f'SCTLossHook: adapt trains by the losses of {name}, '
                      f"whose mode='tensor' fails: {error}", 'current',
                      logging.WARNING)
            self._adapt = 'labels'
            return {}
        logits = self._head.of(output)
        if self._adapt is None:
            self._adapt = 'logits' if logits else 'labels'
        if self._adapt == 'labels':
            return {}
        if self._head.numbers:
            raise ValueError(
                f'adapt={self._adapt!r} compares answers to classes, but the '
                f'loss of {name} is of numbers. Set '
                "adapt='labels' to train by its losses.")
        if not logits or (self._adapt == 'both'
                          and not makers_of_logits(self._model)):
            raise ValueError(
                f'adapt={self._adapt!r} needs the logits (N, classes) of a '
                f'head, but {name} does not return '
                "them with mode='tensor', or has no `head` that makes them. "
                "Set adapt='labels' to train by its losses.")
        return logits
