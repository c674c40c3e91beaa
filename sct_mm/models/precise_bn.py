"""Give a network one more scale, and re-estimate statistics from images."""
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..datasets.batch_forms import check_batch, share_of, views_of
from ..datasets.multi_scale_batch import MultiScaleBatch, padding_of
from ..utils.arguments import check_int
from .guards import check_before_wrapping, check_own
from .pinning import use_scale
from .replace_modules import refresh_averages
from .row_mix import STATISTICS
from .size_selection import (
    NormOfScales,
    ScaleSpecific,
    scale_specific,
    scales_of,
    ssbn_layers,
)
from .weight_change import changed_layers

_NO_VARIANCE = 'Expected more than 1 value per channel'  # torch's words


@torch.inference_mode(False)  # or the network could not be trained
def add_scale(model: nn.Module, size: int) -> nn.Module:
    """Make ``size`` a scale of the network, in place. Its normalization
    parameters are the mix of its neighbours', so that the network computes
    the same at every size as before.

    The parameters of the SSBN layers are new objects: build an optimizer
    afterwards. Name the size among the ``scales`` of the config, too. Returns
    the model.

    Raises:
        TypeError, ValueError: for a ``size`` that is no size or a scale
            already, a model without SSBN or in a wrapper that holds its
            tensors, and a pruned or parametrized layer.
    """
    size = check_int('size', size, 1, 'Give the edge of the input in pixels.')
    scales = scales_of(model)
    if scales is None:
        raise ValueError('`model` must have SSBN layers to add a scale to, '
                         f'but {type(model).__name__} has none. Convert it '
                         'by convert_to_ssbn() first.')
    if size in scales:
        raise ValueError('`size` must be none of the scales of the model, '
                         f'{scales}, but got {size}. It has rows already.')
    check_before_wrapping(model, 'add_scale')
    layers = ssbn_layers(model)
    for layer in layers:
        check_own(layer)
    for layer in layers:
        _insert(layer, size)
    for changed in changed_layers(model):
        changed.insert(size)
    refresh_averages(model)
    return model


@torch.no_grad()
def _insert(layer: NormOfScales, size: int) -> None:
    row = layer.row_at(size)
    scales = tuple(sorted((*layer.scales, size), reverse=True))
    rows = [row if scale == size else layer.row(scale) for scale in scales]
    layer.scales = scales
    for name in row:
        value = getattr(layer, name)
        if value is None:
            continue
        parts = [part for each in rows if (part := each[name]) is not None]
        if isinstance(value, nn.Parameter):
            setattr(layer, name, nn.Parameter(
                torch.cat(parts), requires_grad=value.requires_grad))
        else:
            setattr(layer, name, torch.stack(parts))


def calibrate(model: nn.Module, batches: Iterable[Any], size: int) -> int:
    """Re-estimate the statistics of scale ``size`` from images of that size:
    the mean over all images of their batches' mean and variance (cumulative;
    fvcore's PreciseBN, US-Nets 1903.05134). Nothing else changes.

    A layer that a pass calls several times, as a backbone of several views or
    a head that all levels of a detector share, gets the mean over its calls;
    one that no pass calls keeps its statistics.

    An unpinned network finds the size of an image between the scales whose
    maps it has recorded: if the base was not, the layers also see two images
    of the first batch at its size.

    A batch of one image is left out where a layer sees a single value per
    channel, as behind a global pooling: it has no variance. All layers
    normalise with the statistics of the batch meanwhile, as in training. Each
    of several processes gives batches of its own, and all get the same
    statistics.

    Args:
        batches: tensors (N, C, H, W) whose shorter edge is ``size``, tuples
            that begin with one, as a DataLoader with labels gives, or dicts of
            arguments for the model's forward: a host's batch after its
            ``data_preprocessor``.

    Returns:
        int: number of images that were used, of all processes together.

    Raises:
        TypeError: for a batch of another form.
        ValueError: if ``size`` is no scale of the model, for tensors of
            another size, for statistics that are not finite, or for less than
            two batches. The model is then as before.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module  # else it waits for the passes of the others
    layers = ssbn_layers(model)
    size = check_int('size', size, 1, 'Give the edge of the input in pixels.')
    if not layers or any(size not in layer.scales for layer in layers):
        raise ValueError('`size` must be one of the scales of the model, '
                         f'{scales_of(model)}, but got {size}. Give it rows '
                         'by add_scale() first.')
    # Layers without running statistics have nothing to estimate.
    layers = [layer for layer in layers if layer.running_mean is not None]
    rows = [[tensor for name in STATISTICS
             if (tensor := layer.row(size)[name]) is not None]
            for layer in layers]
    old = [torch.stack(row) for row in rows]
    sums = [torch.zeros_like(row, dtype=torch.double) for row in old]
    images = seen = alone = 0
    with _keeping_records(scale_specific(model)):
        try:
            with _estimating(model, layers), _noting(layers, rows) as calls:
                for batch in batches:
                    for each in calls:
                        each.clear()
                    count = _forward(model, batch, size)
                    if not count:
                        alone += 1
                        continue
                    sums = [total + count * _mean_of(each, row)
                            for total, each, row in zip(sums, calls, rows,
                                                        strict=True)]
                    images, seen = images + count, seen + 1
                    if seen == 1:
                        record_base(model, _at_base(model, batch, size))
        finally:
            _put(rows, old)
        sums, images, seen = _over_processes(sums, images, seen)
        if seen < 2:
            text, fix = (f', and {alone} of one image, which has no variance '
                         'behind a pooling', 'larger') if alone else (
                             '', 'smaller')
            raise ValueError('Statistics need at least two batches, but got '
                             f'{seen}{text}. Give more images, or {fix} '
                             'batches.')
        if not all(total.isfinite().all() for total in sums):
            raise ValueError(f'Statistics at {size} pixels must be finite, '
                             'but a layer sees NaN or inf. Fix the images '
                             'or the weights.')
    _put(rows, [total / images for total in sums])
    return images


@torch.no_grad()
def record_base(model: nn.Module, batches: Iterable[Any]) -> None:
    """Let the layers of ``model`` record what they see at the base, of the
    first of ``batches`` (:func:`calibrate`), if none has: an unpinned network
    finds the size of its input by the records of the scales around it."""
    layers = scale_specific(model)
    if any(layer.scales[0] in layer.extents.known() for layer in layers):
        return
    before = [(m, m.training) for m in model.modules()]
    try:
        for module, _ in before:  # eval() would look for unseen scales
            module.training = False
        for batch in itertools.islice(batches, 1):
            _forward(model, batch, layers[0].scales[0])
    finally:
        for module, training in before:
            module.training = training


def _at_base(model: nn.Module, batch: Any, size: int) -> Iterator[Any]:
    """Two images of ``batch``, of ``size`` pixels, at the base; nothing if it
    holds vectors, or has a form that cannot be resized."""
    base = scale_specific(model)[0].scales[0]
    part = slice(2)  # a loss may need two
    try:
        if isinstance(batch, dict):
            check_batch(batch)
            resize = MultiScaleBatch(base, size, **padding_of(model))
            batch = resize.transform(share_of(batch, part))
        else:
            images = batch if isinstance(batch, Tensor) else batch[0]
            batch = MultiScaleBatch(base, size).transform(
                dict(inputs=images[part]))['inputs']
    except (TypeError, ValueError):
        return
    yield batch


@contextmanager
def _keeping_records(layers: Sequence[ScaleSpecific]) -> Iterator[None]:
    """Restore the records of ``layers`` after an error."""
    before = [layer.extents.rows(layer.scales) for layer in layers]
    try:
        yield
    except BaseException:
        for layer, rows in zip(layers, before, strict=True):
            layer.extents.take(rows)
        raise


def _put(rows: list[list[Tensor]], values: Sequence[Tensor]) -> None:
    for row, value in zip(rows, values, strict=True):
        for tensor, new in zip(row, value, strict=True):
            tensor.copy_(new)


@contextmanager
def _estimating(model: nn.Module,
                layers: Sequence[NormOfScales]) -> Iterator[None]:
    """Let the running statistics be those of the last batch alone."""
    before = [(m, m.training) for m in model.modules()]
    options = [(layer, layer.momentum, layer.num_batches_tracked)
               for layer in layers]
    model.eval()
    try:
        for layer in layers:
            layer.training, layer.momentum = True, 1.0
            layer.num_batches_tracked = None
        with torch.no_grad():
            yield
    finally:
        for layer, momentum, counter in options:
            layer.momentum, layer.num_batches_tracked = momentum, counter
        for module, training in before:
            module.training = training


@contextmanager
def _noting(layers: Sequence[NormOfScales], rows: list[list[Tensor]]
            ) -> Iterator[list[list[Tensor]]]:
    """For each of ``layers`` a list, to which each call of it appends what its
    row then holds: the statistics of the batch."""
    calls: list[list[Tensor]] = [[] for _ in layers]

    def note(each: list[Tensor], row: list[Tensor], *call: Any) -> None:
        each.append(torch.stack(row).double())

    handles = [layer.register_forward_hook(partial(note, each, row))
               for layer, each, row in zip(layers, calls, rows, strict=True)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _mean_of(calls: list[Tensor], row: list[Tensor]) -> Tensor:
    """The mean of ``calls``; without any, what the row holds."""
    if not calls:
        return torch.stack(row).double()
    return torch.stack(calls).mean(0) if len(calls) > 1 else calls[0]


def _forward(model: nn.Module, batch: Any, size: int) -> int:
    """Run ``model`` on a batch and return its number of images; 0 if it is
    one image without a variance."""
    images = batch
    if isinstance(batch, dict):
        images = batch.get('inputs')
    elif isinstance(batch, (list, tuple)) and batch:
        images = batch[0]
    # A host's views of several sizes; labels stand beside a tensor.
    views = (views_of(dict(inputs=images)) if isinstance(batch, dict)
             else [images])
    if not views or not all(
            isinstance(view, Tensor) and view.is_floating_point()
            and (view is images or view.dim() > 3) for view in views):
        raise TypeError(
            '`batches` must be floating point tensors (N, C, H, W), or dicts '
            'with such `inputs`, but got a '
            f'{getattr(images, "dtype", type(images).__name__)}. Take '
            'what model.data_preprocessor() makes of a host\'s batch.')
    edge = size
    if views[0].dim() > 3:
        edge = max(min(view.shape[-2:]) for view in views)
    if edge != size and not isinstance(batch, dict):
        raise ValueError(f'`batches` must be images of {size} pixels, whose '
                         f'rows they are for, but got shape '
                         f'{tuple(views[0].shape)}. Resize them first.')
    # Images of a detector are padded, and long ones are narrower than `size`.
    with use_scale(model, size, record=True, edge=edge):
        try:
            model(**batch) if isinstance(batch, dict) else model(images)
        except ValueError as error:
            if len(views[0]) == 1 and _NO_VARIANCE in str(error):
                return 0
            raise
    return len(views[0])


def _over_processes(sums: list[Tensor], images: int,
                    seen: int) -> tuple[list[Tensor], int, int]:
    """Sums, images and batches of all processes."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return sums, images, seen
    device = sums[0].device if sums else 'cpu'
    counts = torch.tensor([images, seen], device=device)
    dist.all_reduce(counts)
    for total in sums:
        dist.all_reduce(total)
    images, seen = counts.tolist()
    return sums, images, seen
