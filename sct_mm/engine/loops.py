"""Validation and test loops that run the host's at several input sizes."""
from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import LOOPS
from mmengine.runner import TestLoop, ValLoop
from mmengine.runner.base_loop import BaseLoop
from torch import nn

from ..datasets.size_switch import SizeSwitch
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


def check_sizes(sizes: Sizes | None, model: nn.Module,
                name: str = 'sizes') -> tuple[int, ...]:
    """The sizes to test ``model`` at, the largest first; None: its scales.

    Raises:
        UserError: for a model with test-time augmentation, for one that has
            no scales where ``sizes`` is None, and as :func:`expand_sizes`.
    """
    refuse_views(model)
    if sizes is None:
        sizes = scales_of(model)
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
        self.sizes = check_sizes(sizes, unwrapped(runner.model))
        if self.mode == 'val':  # hooks monitor validation alone
            check_monitors(runner, self.sizes)
        if not (isinstance(dataloader, dict)
                and isinstance(dataloader.get('dataset'), dict)):
            raise UserError(f'{type(self).__name__} rewrites the pipeline of '
                            'the data set for each size and needs its '
                            f'config, but got a built one. Give the '
                            f'`{self.mode}_dataloader` and its `dataset` as '
                            'dicts.')
        super().__init__(runner, dataloader, *args, **kwargs)
        self.switch = SizeSwitch(self.dataloader.dataset,
                                 dataloader['dataset'], self.sizes)

    def each_size(self) -> Generator[int, None, None]:
        """Yield each size, the largest first; meanwhile the data set makes
        images of it and the model is pinned to it.

        A caller whose own code may raise closes the generator
        (:func:`contextlib.closing`), which undoes both.
        """
        for size in self.sizes:
            with self.switch.at(size), use_scale(self.runner.model, size):
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
                results[size] = self._run_size()
                yield size, results[size]
        hook(f'after_{self.mode}_epoch', metrics=join_metrics(results))
        hook(f'after_{self.mode}')

    def run(self) -> dict:
        """Run all sizes; returns the metrics of :func:`join_metrics`."""
        return join_metrics(dict(self.iter_sizes()))

    def _run_size(self) -> dict:
        losses = getattr(self, f'{self.mode}_loss', None)  # mmengine >= 0.10
        if losses is not None:
            losses.clear()
        for index, batch in enumerate(self.dataloader):
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
    model pinned to it (:func:`use_scale`). One data set, with one set of
    workers, serves all sizes, from the largest down. The hooks see one
    validation: ``before_val`` to ``after_val`` run once, the hooks of an
    iteration at each size. Metrics carry their size, ``128/accuracy/top1``,
    and ``mean/accuracy/top1`` is the mean over the sizes; ``save_best='auto'``
    takes the first metric of the largest size. A metric that writes a file
    writes it at each size, so that the file of the smallest size stays.

    Args:
        sizes: pixels, trained or not, also as ranges such as ``'128:224:16'``
            (:func:`expand_sizes`); None: the scales of the model's SSBN.

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
