"""Smaller scales for a trained network, whose answers at the base stay."""
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ...models.pinning import use_scale
from ...models.size_selection import ScaleSpecific, ssbn_layers
from .backward import OpenPin
from .first_look import evaluating, leaves
from .logits import HeadLogits, Logits, makers_of_logits
from .monitor import named
from .schedule import Pass
from .step import Passes

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
    """Whether the samples of ``batch`` have what a loss compares with.

    Raises:
        ValueError: if one has none.
    """
    samples = batch.get('data_samples')
    if samples is None or not all(any(
            name.startswith('gt_') for name in sample.keys())
            for sample in samples):
        raise ValueError('`adapt` trains by the losses of the model, but got '
                         'samples without labels. Load them in the pipeline; '
                         "a classifier needs none with adapt='logits'.")


def check_adaptable(model: nn.Module, scales: Sequence[int],
                    weights: Sequence[float]) -> None:
    """Whether ``model`` has rows for smaller scales, which may train, and a
    base that was trained.

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
    if not any(p is not None and p.requires_grad for layer in norms
               for p in (layer.weight, layer.bias)):
        raise ValueError('`adapt` trains weight and bias of SSBN, but none '
                         f'of {type(model).__name__} requires gradients. Set '
                         'frozen_stages=-1 and requires_grad=True in its '
                         'norm_cfg.')
    rows = [layer.row(scales[0]) for layer in norms
            if layer.running_mean is not None]
    if rows and all((row['running_mean'] == 0).all()
                    and (row['running_var'] == 1).all() for row in rows):
        raise ValueError('`adapt` keeps what a trained network answers at '
                         f'{scales[0]}, but the rows of that scale have never '
                         'been trained. Set load_from to the checkpoint of a '
                         'trained network.')


def freeze(model: nn.Module) -> list[nn.Parameter]:
    """Stop the training of all but the weight and bias of SSBN; the
    parameters that trained before."""
    rows = {id(p) for layer in ssbn_layers(model)
            for p in (layer.weight, layer.bias)}
    frozen = [p for p in model.parameters()
              if p.requires_grad and id(p) not in rows]
    for parameter in frozen:
        parameter.requires_grad_(False).grad = None
    return frozen


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
    """What stays as it is while ``model`` adapts, by name: tensors that are
    written to all the same (rows of the base scale, buffers of other layers),
    and the parameters that are not."""
    written, parameters = {}, {}
    for name, module in model.named_modules():
        rows = (module.row(module.scales[0])
                if isinstance(module, ScaleSpecific) else {})
        for key, value in (*module._buffers.items(),
                           *module._parameters.items()):
            if value is None:
                continue
            if key in rows or key in module._buffers:
                written[f'{name}.{key}'] = rows.get(key, value)
            else:
                parameters[f'{name}.{key}'] = value
    return written, parameters


class AdaptPasses(Passes):
    """The passes of ``SCTLossHook(adapt=...)``: the base scale runs without
    gradients and in evaluation mode, and teaches the smaller ones.

    All but the weight and bias of SSBN is frozen. What a step changes of the
    rest (weight decay and momentum the rows of the base, sizes next to the
    base its statistics) is put back by :meth:`restore`.

    Args:
        adapt: True: by KL from the network's own logits at the base, without
            labels, or, where it returns no logits (detectors), by its own
            losses. 'logits', 'labels' and 'both' choose. A layer that its
            host keeps in evaluation mode (``norm_eval``) trains weight and
            bias alone.
    """

    def __init__(self, model: nn.Module, *args,
                 adapt: bool | str = True, **kwargs) -> None:
        makers = makers_of_logits(model)
        if adapt == 'both' and makers and '' not in makers:
            raise ValueError(
                "adapt='both' compares the logits of all images, but "
                f'{type(model.head).__name__} has tasks, whose losses see '
                "those with a label. Set adapt='logits'.")
        super().__init__(model, *args, **kwargs)
        # None until the first pass of the base tells.
        self._adapt = None if adapt is True else adapt
        self._frozen = freeze(model)
        self._kept = {name: value.detach().clone()
                      for name, value in kept_tensors(model)[0].items()}
        self._teacher: dict[int, Logits] = {}  # {scale: of its share}
        self._head = HeadLogits(model, "adapt='both'")

    @torch.no_grad()
    def restore(self, copies: Iterable[nn.Module] = ()) -> None:
        """Put back what must not change.

        Args:
            copies: of the model, such as averages over the steps, to which
                all that is frozen is copied: (1 - m) * x + m * x is not
                always x to the bit.
        """
        written, parameters = kept_tensors(self.model)
        for name, value in written.items():
            kept = self._kept.get(name)
            if kept is not None and kept.shape == value.shape:  # no cache
                value.copy_(kept)
        for model in copies:
            for ours, theirs in zip((written, parameters),
                                    kept_tensors(model), strict=True):
                for name, value in theirs.items():
                    value.copy_(ours[name])

    def release(self) -> None:
        self.close()
        self.restore()
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def close(self) -> None:
        super().close()
        self._teacher = {}

    def _prepare(self, batch: dict, step: int) -> None:
        self.restore()
        self._frozen += freeze(self.model)  # what another hook has freed
        self._divide(batch, step)
        if self._adapt != 'labels':
            self._teach(batch)
        if self._adapt != 'logits':
            check_labels(batch)
        self._mode = 'tensor' if self._adapt == 'logits' else 'loss'
        for part in self._parts.values():
            part['mode'] = self._mode
        if not self.taken:
            self._look({**batch, 'mode': self._mode})

    def _teach(self, batch: dict) -> None:
        """Take the logits of the base scale for each pass of the step."""
        part = {**self._resize(self._base, batch), 'mode': 'tensor'}
        self._busy = True
        try:
            with named(f'scale {self._base}'), torch.no_grad(), evaluating(
                    self.model.modules()), use_scale(
                        self._norms, self._base, record=True,
                        edge=min(part['inputs'].shape[-2:])):
                output = self.model(**part)
        except Exception as error:
            if self._adapt is not None:
                raise
            # Some detectors have no such mode, but a loss.
            print_log('SCTLossHook: adapt trains by the losses of '
                      f"{type(self.model).__name__}, whose mode='tensor' "
                      f'fails: {error}', 'current', logging.WARNING)
            self._adapt = 'labels'
            return
        finally:
            self._busy = False
        logits = self._head.of(output)
        if self._adapt is None:
            self._adapt = 'logits' if logits else 'labels'
        if self._adapt == 'labels':
            return
        if self._head.numbers:
            raise ValueError(
                f'adapt={self._adapt!r} compares answers to classes, but the '
                f'loss of {type(self.model).__name__} is of numbers. Set '
                "adapt='labels' to train by its losses.")
        if not logits or (self._adapt == 'both'
                          and not makers_of_logits(self.model)):
            raise ValueError(
                f'adapt={self._adapt!r} needs the logits (N, classes) of a '
                f'head, but {type(self.model).__name__} does not return '
                "them with mode='tensor', or has no `head` that makes them. "
                "Set adapt='labels' to train by its losses.")
        self._teacher = {
            p.scale: {part: each[p.share or slice(None)]
                      for part, each in logits.items()}
            for p in self._passes}

    def _pin_of(self, p: Pass, part: dict) -> OpenPin:
        self._last_pin = partial(self._as_student, super()._pin_of(p, part))
        return self._last_pin

    @contextmanager
    def _as_student(self, pin: OpenPin) -> Iterator[None]:
        """``pin()``, with SSBN alone in training mode."""
        norms = set(self._norms)
        # A loss may depend on the mode of what makes it.
        modules = (self.model.modules() if self._mode == 'tensor'
                   else leaves(self.model))
        with ExitStack() as stack:
            stack.enter_context(pin())
            stack.enter_context(evaluating(
                m for m in modules if m not in norms))
            if self._adapt == 'both':
                stack.enter_context(self._head.catching())
            yield

    def _take(self, backward, output: Any, p: Pass) -> tuple[float, dict]:
        if self._adapt == 'logits':
            output = dict(loss=self._head.divergence(
                self._teacher[p.scale], self._head.of(output)))
        elif self._adapt == 'both':
            output = dict(output, loss_distill=self._head.divergence(
                self._teacher[p.scale], self._head.take()))
        return super()._take(backward, output, p)
