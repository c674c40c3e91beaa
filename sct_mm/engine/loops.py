"""Validation and test loops that run the host's at several input sizes."""
import re
import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import LOOPS
from mmengine.runner import TestLoop, ValLoop
from mmengine.runner.base_loop import BaseLoop
from torch import nn

from ..datasets.base_size import BaseSize, base_size
from ..datasets.size_switch import SizeSwitch
from ..models.host_sizes import host_sizes
from ..models.pinning import use_scale
from ..models.size_selection import scales_of
from ..utils.errors import UserError
from ..utils.sizes import Sizes, expand_sizes


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within the wrapper of several processes, if there is one."""
    return model.get_submodule('module') if is_model_wrapper(model) else model


def scalar(value: Any) -> float | None:
    """``value`` as a float; None for what is no single number."""
    if isinstance(value, (np.ndarray, torch.Tensor)):  # (1, ) too
        value = value.reshape(-1).tolist()
        value = value[0] if len(value) == 1 else None
    return (float(value) if isinstance(value, (int, float, np.number))
            else None)


def join_metrics(results: dict[int, dict]) -> dict:
    """Join ``{size: {name: value}}`` into ``{'size/name': value}``, and add
    the mean over the sizes as ``mean/name`` where the values are numbers.

    If a size lacks a metric, as a detector's mAP where it found nothing, the
    metric of the size and the mean are NaN: no hook takes NaN for the best.
    """
    numbers: dict[str, dict[int, float]] = {}
    for size, metrics in results.items():
        for name, value in metrics.items():
            number = scalar(value)
            if number is not None:
                numbers.setdefault(name, {})[size] = number
    joined = {}
    for size, metrics in results.items():
        missing = {name: float('nan') for name in numbers
                   if name not in metrics}
        for name, value in {**metrics, **missing}.items():
            joined[f'{size}/{name}'] = value
    for name, values in numbers.items():
        joined[f'mean/{name}'] = sum(
            values.get(size, float('nan')) for size in results) / len(results)
    return joined


def refuse_views(model: nn.Module) -> None:
    """Refuse a model with test-time augmentation (TTA)."""
    if isinstance(model, BaseTTAModel):
        raise UserError(f'{type(model).__name__} makes views of sizes of its '
                        'own, each of which takes its own statistics, and '
                        'cannot be pinned to one size. Test it by the '
                        "host's TestLoop.")


@contextmanager
def failing_at(size: int, model: nn.Module) -> Iterator[None]:
    """Name the ``size`` of a test at which ``model`` raises.

    Raises:
        UserError: from the host's error in the forward pass.
    """
    raised: list[BaseException | None] = []

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        if output is None:  # as after an error
            raised.append(sys.exc_info()[1])

    handle = model.register_forward_hook(note, always_call=True)
    try:
        yield
    except (RuntimeError, ValueError, AssertionError) as error:
        # The caller may have gone on after another error.
        if error not in raised or isinstance(error, (UserError,
                                                     torch.OutOfMemoryError)):
            raise
        reason = (str(error).strip().partition('\n')[0].rstrip('.')
                  or 'no reason is given')
        raise UserError(
            f'The network cannot be tested at {size} pixels '
            f'({type(error).__name__}: {reason}). If its host fixes it to one '
            'size, test it at that size alone.') from error
    finally:
        handle.remove()


@contextmanager
def needing_labels(mode: str) -> Iterator[None]:
    """Say so where a metric finds no labels in the samples.

    Raises:
        UserError: from the host's error. In all hosts labels are `gt_...`.
    """
    try:
        yield
    except (KeyError, AttributeError) as error:
        missing = re.search(r'\bgt_\w+', str(error))
        if missing is None:
            raise
        raise UserError(
            f'The metrics of `{mode}_evaluator` need labels, but the images '
            f'have no {missing[0]!r}. Take images with labels, or compare '
            'without any by tools/test.py --against-base.') from error


def check_sizes(sizes: Sizes | None, model: nn.Module, name: str = 'sizes',
                base: BaseSize | None = None) -> tuple[int, ...]:
    """The sizes to test ``model`` at, the largest first; None: those that its
    scales serve.

    Raises:
        UserError: for a model with test-time augmentation, for one that has
            no scales where ``sizes`` is None, and as :func:`expand_sizes`.
    """
    refuse_views(model)
    if sizes is None:
        scales = scales_of(model)
        sizes = scales and tuple(
            base.size_of(s) if base else s for s in scales)
        if sizes is None:
            raise UserError(f'`{name}` must be set for a model without SSBN, '
                            'which has no scales of its own, but got None. '
                            f'Write e.g. {name}=(224, 160).')
    return expand_sizes(sizes, name)


def check_monitors(runner: Any, sizes: tuple[int, ...]) -> None:
    """Refuse a hook or a schedule that monitors a metric without a size: it
    would fail after the first validation, or never act."""
    prefixes = {'mean', *map(str, sizes)}
    schedules = getattr(runner, 'param_schedulers', None) or []
    if isinstance(schedules, dict):  # one list an optimizer
        schedules = [each for group in schedules.values() for each in group]
    names = [(type(part).__name__, name) for part in runner.hooks
             for name in getattr(part, 'key_indicators', None) or ()]
    names += [(type(part).__name__, part.monitor)
              for part in (*runner.hooks, *schedules)
              if isinstance(getattr(part, 'monitor', None), str)]
    for owner, name in names:
        if name != 'auto' and name.partition('/')[0] not in prefixes:
            first, _, rest = name.partition('/')
            metric = rest if first.isdigit() and rest else name
            raise UserError(f'{owner} must name a metric with its size or '
                            f'`mean`, but got {name!r}. Write '
                            f"'mean/{metric}' or '{sizes[0]}/{metric}'.")


class _ScalesLoop(BaseLoop):
    """What the loops below share; the host's loop comes after it."""
    mode: str

    def __init__(self, runner, dataloader, *args,
                 sizes: Sizes | None = None, **kwargs) -> None:
        model = unwrapped(runner.model)
        refuse_views(model)
        if not (isinstance(dataloader, dict)
                and isinstance(dataloader.get('dataset'), dict)):
            raise UserError(f'{type(self).__name__} rewrites the pipeline of '
                            'the data set for each size and needs its '
                            f'config, but got a built one. Give the '
                            f'`{self.mode}_dataloader` and its `dataset` as '
                            'dicts.')
        scales = scales_of(model)
        self.base = base_size(getattr(runner, 'cfg', None) or {}, scales,
                              dataloader['dataset'])
        self.sizes = check_sizes(sizes, model, base=self.base)
        if self.mode == 'val':  # hooks monitor validation alone
            check_monitors(runner, self.sizes)
        if self.base.train != self.base.test:
            warnings.warn(
                f'The network is trained on images of {self.base.train} '
                f'pixels, and tested on those of {self.base.test}: sizes are '
                'those of the test, and '
                + ', '.join(f'{self.base.size_of(scale)} is served by scale '
                            f'{scale}' for scale in scales or ()) + '.',
                stacklevel=2)
        super().__init__(runner, dataloader, *args, **kwargs)
        self.switch = SizeSwitch(self.dataloader.dataset,
                                 dataloader['dataset'], self.sizes,
                                 self.base.test)

    @contextmanager
    def at(self, size: int, timed: bool = False) -> Iterator[None]:
        """Within, the model serves a test at ``size``: it is pinned to the
        scale, and has the host's settings for the size (:func:`host_sizes`).
        What is ``timed`` enters it again and again."""
        model = self.runner.model
        # A pin outside of the scales warns: not at each turn of a timer.
        scale = self.base.scale_at(size)
        scales = scales_of(unwrapped(model))
        if timed and scales:
            scale = min(max(scale, scales[-1]), scales[0])
        with use_scale(model, scale, freeze=True), host_sizes(
                model, size / self.base.test, galleries=not timed):
            yield

    def each_size(self) -> Generator[int, None, None]:
        """Yield each size, the largest first; meanwhile the data set makes
        images of it and the model serves it (:meth:`at`).

        A caller whose own code may raise closes the generator
        (:func:`contextlib.closing`), which undoes both.
        """
        for size in self.sizes:
            with self.switch.at(size), self.at(size):
                yield size

    def iter_sizes(self) -> Generator[tuple[int, dict], None, None]:
        """Run the host's iterations at :meth:`each_size`; yield the size and
        its metrics.

        One pair of hooks surrounds all sizes. It is closed as
        :meth:`each_size` is.
        """
        hook = self.runner.call_hook
        hook(f'before_{self.mode}')
        hook(f'before_{self.mode}_epoch')
        self.runner.model.eval()
        results = {}
        with closing(self.each_size()) as sizes:
            for size in sizes:
                self.runner.logger.info(f'Images of {size} px ({self.mode}):')
                with (failing_at(size, unwrapped(self.runner.model))
                      if size != self.base.test else nullcontext()):
                    results[size] = self._run_size(size)
                yield size, results[size]
        hook(f'after_{self.mode}_epoch', metrics=join_metrics(results))
        hook(f'after_{self.mode}')

    def run(self) -> dict:
        """Run all sizes; returns the metrics of :func:`join_metrics`."""
        return join_metrics(dict(self.iter_sizes()))

    def _run_size(self, size: int) -> dict:
        losses = getattr(self, f'{self.mode}_loss', None)  # mmengine >= 0.10
        if losses is not None:
            losses.clear()
        for index, batch in enumerate(self.dataloader):
            if not index:
                self.switch.check_batch(batch, size)
            with needing_labels(self.mode):
                self.run_iter(index, batch)
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        losses = getattr(self, f'{self.mode}_loss', None)
        if losses:
            from mmengine.runner.loops import _parse_losses
            metrics.update(_parse_losses(losses, self.mode))
        return metrics


@LOOPS.register_module()
class ScalesValLoop(_ScalesLoop, ValLoop):
    """Validate at several sizes: ``val_cfg=dict(type='ScalesValLoop')``.

    At each size the pipeline is rewritten (:func:`rescale_pipeline`) and the
    model pinned to the scale that serves it (:class:`BaseSize`). One data
    set, with one set of workers, serves all sizes, from the largest down. The
    hooks see one validation: ``before_val`` to ``after_val`` run once, the
    hooks of an iteration at each size. Metrics carry their size,
    ``128/accuracy/top1``, and ``mean/accuracy/top1`` is the mean over the
    sizes; ``save_best='auto'`` takes the first metric of the largest size. A
    metric that writes a file writes it at each size, so that the file of the
    smallest size stays.

    Args:
        sizes: pixels of the test images, trained or not, also as ranges such
            as ``'128:224:16'`` (:func:`expand_sizes`); None: those that the
            scales of the model's SSBN serve.

    The other arguments are those of ``ValLoop``.

    Raises:
        UserError, ValueError: for sizes that are none, a model without SSBN
            and without ``sizes``, one with test-time augmentation, a data
            loader that is built already, a pipeline that cannot be
            rewritten, and a hook that monitors a metric without its size.
    """
    mode = 'val'


@LOOPS.register_module()
class ScalesTestLoop(_ScalesLoop, TestLoop):
    """Test at several sizes, as :class:`ScalesValLoop` validates.

    ``tools/test.py`` runs this loop and measures the cost of each size too.
    """
    mode = 'test'
