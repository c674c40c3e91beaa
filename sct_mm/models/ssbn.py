"""Scale-Specific Batch Normalization: the layer, in each of its forms."""
import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, fx, nn
from torch.nn.modules._functions import SyncBatchNorm as _sync_batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from ..utils.arguments import check_flag, check_int, check_number
from .guards import OneScaleAlone
from .row_mix import Row, fingerprint, mixed, passes, spread
from .size_selection import (
    DEFAULT_SCALES,
    ScaleSpecific,
    check_scales,
    rows_of_checkpoint,
    rows_serving,
)

_AFFINE = ('weight', 'bias')
_STATISTICS = ('running_mean', 'running_var')


class RowwiseNorm(OneScaleAlone, ScaleSpecific):
    """What every form of SSBN does; see :class:`SSBN`. It stands before the
    class of the norm that the rows are rows of."""

    plain_type: type[_BatchNorm]  # of one row
    dims: tuple[int, ...]  # that an input may have

    def __init__(self, num_features: int,
                 scales: Sequence[int] = DEFAULT_SCALES,
                 eps: float = 1e-5,
                 momentum: float | None = 0.1,
                 affine: bool = True,
                 track_running_stats: bool = True,
                 device=None,
                 dtype=None) -> None:
        check_scales(scales)
        num_features = check_int('num_features', num_features, 1,
                                 'Give the channels of the input.')
        # torch refuses an eps of 0, but only when it normalises.
        eps = check_number('eps', eps, 1e-45, 'The default is 1e-5.')
        if momentum is not None:
            momentum = check_number('momentum', momentum, 0, 'The default is '
                                    '0.1; None averages over all batches.', 1)
        check_flag('affine', affine)
        check_flag('track_running_stats', track_running_stats)
        super().__init__(num_features, eps, momentum, affine,
                         track_running_stats, device=device, dtype=dtype)
        self.start(scales)

    def start(self, scales: Sequence[int]) -> None:
        """Give each scale a row of its own, all like the one at hand."""
        super().start(scales)
        self.eps = self.eps  # of the norm at hand
        for name in _AFFINE:
            single = getattr(self, name)
            if single is not None:
                rows = single.detach().repeat(len(self.scales))
                setattr(self, name, nn.Parameter(
                    rows, requires_grad=single.requires_grad))
        for name in (*_STATISTICS, 'num_batches_tracked'):
            single = getattr(self, name)
            if single is not None:
                setattr(self, name, torch.stack([single] * len(self.scales)))

    def row(self, scale: int) -> Row:
        """Views of weight, bias, running_mean, running_var and
        num_batches_tracked at ``scale``, as BN has them.

        Raises:
            ValueError: if it is no scale of the layer.
        """
        if scale not in self.scales:
            raise ValueError(f'`scale` must be one of {self.scales}, but got '
                             f'{scale!r}. Give it rows by add_scale() first.')
        index = self.scales.index(scale)
        views = {name: getattr(self, name)
                 for name in (*_STATISTICS, 'num_batches_tracked')}
        views = {n: None if v is None else v[index] for n, v in views.items()}
        for name in _AFFINE:
            rows = getattr(self, name)
            views[name] = None if rows is None else rows.narrow(
                0, index * self.num_features, self.num_features)
        return views

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (N, C, H, W) with the row of its scale."""
        traced = (torch.compiler._is_exporting_flag or torch.jit.is_tracing()
                  or isinstance(x, fx.Proxy))
        if traced:
            self.check_export()
        shape = x.shape
        if len(shape) not in self.dims or shape[1] != self.num_features:
            self._refuse(shape)
        size = self.choose_size(x)
        if not (traced or self.training or torch.is_grad_enabled()):
            return self._with_row(x, self._kept(size))
        if not torch.compiler.is_compiling():
            passes.trained += 1
        if size not in self.scales:
            return self.between(x, size)
        row = self.scales.index(size)
        mean, var = self.running_mean, self.running_var
        if mean is not None:
            mean, var = mean[row], var[row]
        weight, bias = self.weight, self.bias
        # Slicing costs half of what narrow() does.
        start = row * self.num_features
        end = start + self.num_features
        if weight is not None:
            weight = weight[start:end]
        if bias is not None:
            bias = bias[start:end]
        counter = self.num_batches_tracked if self.training else None
        if counter is not None:
            counter = counter[row]
        return self._batch_norm(x, mean, var, weight, bias, counter)

    def _batch_norm(self, x, mean, var, weight, bias, counter):
        training = self.training
        factor = self.momentum
        if training and not self.track_running_stats:
            mean = var = None
        elif training and counter is not None:
            counter.add_(1)
            if factor is None:  # cumulative moving average
                factor = 1.0 / float(counter)
        return self._normalize(x, mean, var, weight, bias,
                               training or mean is None, factor or 0.0)

    def _with_row(self, x: Tensor, row: Row) -> Tensor:
        return self._batch_norm(x, row['running_mean'], row['running_var'],
                                row['weight'], row['bias'],
                                row['num_batches_tracked'])

    def between(self, x: Tensor, size: float) -> Tensor:
        """Normalise ``x`` with the mix of the two rows around ``size``; what
        that changes in the statistics goes to both."""
        if not (self.training and self.track_running_stats
                and self._buffers['running_mean'] is not None):
            return self._with_row(x, self.row_at(size))
        (larger, share), (smaller, _) = rows_serving(self.scales, size)
        larger, smaller = self.row(larger), self.row(smaller)
        before = mixed(larger, smaller, share)
        after = {name: value if name in _AFFINE or value is None
                 else value.clone() for name, value in before.items()}
        y = self._with_row(x, after)
        spread(before, after, larger, smaller, share)
        return y

    def _kept(self, size: float) -> Row:
        """:meth:`row_at` for inference: made once, as long as nothing changes
        that it is made of."""
        marks = None if torch.compiler.is_compiling() else fingerprint(self,
                                                                       size)
        if marks is None:
            return self.row_at(size)
        served = self._served  # another thread may put its own there
        if served is None or served[0] != marks:
            # Not views, or torch cannot swap what they are of.
            self._served = served = marks, {
                name: None if value is None else value.data
                for name, value in self.row_at(size).items()}
        return served[1]

    def train(self, mode: bool = True) -> 'RowwiseNorm':
        self._served = None  # an EMA may have been written to `tensor.data`
        return super().train(mode)

    def __getstate__(self) -> dict:
        return dict(self.__dict__, _served=None,
                    pin=self.pin._replace(thread=None))

    def _normalize(self, x, mean, var, weight, bias, use_batch, factor):
        return F.batch_norm(x, mean, var, weight, bias, use_batch, factor,
                            self._eps)

    def _refuse(self, shape: torch.Size) -> None:
        if len(shape) not in self.dims:
            dims = ' or '.join(map(str, self.dims))
            raise ValueError(f'{type(self).__name__} takes an input of {dims} '
                             f'dimensions, but got shape {tuple(shape)}. '
                             'Use SSBN for images, SSBN1d for vectors and '
                             'SSBN3d for volumes.')
        raise ValueError(f'{type(self).__name__} was built for '
                         f'{self.num_features} channels, but got shape '
                         f'{tuple(shape)}. Set `num_features` to the '
                         'channels of the input.')

    def reset_running_stats(self) -> None:
        """Reset what BN's would, for one scale: the pinned one, else the
        base, with a warning. What calibrates statistics
        (``torch.optim.swa_utils.update_bn``) resets them first; the other
        scales keep theirs.

        Raises:
            RuntimeError: if a size between two scales is pinned.
        """
        if 'scales' not in self.__dict__:  # as BN is built
            return super().reset_running_stats()
        if self.pinned_size is None and len(self.scales) > 1:
            warnings.warn(
                'reset_running_stats() resets the statistics of the base '
                f'scale {self.scales[0]} alone, for images of that size. '
                'Call it, or update_bn(), within use_scale() for each scale, '
                'or use sct_mm.calibrate().', stacklevel=2)
        self._reset_statistics(self._own_scale('reset_running_stats()'))

    def _own_scale(self, what: str) -> int:
        size = self.pinned_size or self.scales[0]
        if size not in self.scales:
            raise RuntimeError(f'{what} needs a size that has rows of its own '
                               f'among {self.scales}, but {size} pixels are '
                               'pinned. Give it some by add_scale() first.')
        return size

    def _reset_statistics(self, scale: int) -> None:
        if self.track_running_stats:
            row = self.row(scale)
            row['running_mean'].zero_()
            row['running_var'].fill_(1)
            row['num_batches_tracked'].zero_()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the pinned scale; all of them where none is pinned, as
        after ``to_empty()``."""
        if 'scales' not in self.__dict__:
            return super().reset_parameters()
        pinned = self.pinned_size and self._own_scale('reset_parameters()')
        for scale in self.scales if pinned is None else (pinned, ):
            self._reset_statistics(scale)
            for name, value in zip(_AFFINE, (1, 0), strict=True):
                rows = self.row(scale)[name]
                if rows is not None:
                    rows.fill_(value)

    def plain(self, size: float) -> _BatchNorm:
        """The norm that this layer stands in for, at ``size`` pixels: views
        of its tensors at a scale, the mix between two, its hooks, and what
        else that norm does."""
        return self._plain_with(self.row_at(size))

    def row_at(self, size: float) -> Row:
        """:meth:`row` at a scale, the mix between two, the end outside."""
        (larger, share), *others = rows_serving(self.scales, size)
        row = self.row(larger)
        for smaller, _ in others:
            row = mixed(row, self.row(smaller), share)
        return row

    def _plain_with(self, row: Row) -> _BatchNorm:
        layer = self.plain_type.__new__(self.plain_type)
        layer.__dict__ = {name: value for name, value in self.__dict__.items()
                          if name not in self.STATE}
        layer._parameters = {name: row.get(name, value)
                             for name, value in self._parameters.items()}
        layer._buffers = {name: row.get(name, value)
                          for name, value in self._buffers.items()}
        return layer

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, scales={self.scales}'

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict,
                              missing_keys, unexpected_keys, error_msgs):
        own = {name: getattr(self, name) for name in (
            *_AFFINE, *_STATISTICS, 'num_batches_tracked')}
        state_dict = {**state_dict, **rows_of_checkpoint(
            state_dict, prefix, own, self.scales)}
        record = f'{prefix}_extra_state'
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)
        if record in missing_keys:  # as in a checkpoint of plain BN
            missing_keys.remove(record)


# A host that initialises or freezes norms asks for `nn.BatchNorm2d` or for
# `_BatchNorm`; mmengine's ConstantInit compares the names of direct bases.
@MODELS.register_module()
class SSBN(RowwiseNorm, nn.BatchNorm2d, _BatchNorm):
    """Batch normalization with one set of affine parameters and running
    statistics per scale (SSBN; arXiv 1909.00182, abstract).

    At one scale the layer computes what ``nn.BatchNorm2d`` with that row
    computes. Parameters and buffers have the names of BN and one row per
    scale: ``weight`` and ``bias`` have shape (S * C,), of one dimension, so
    that each rule by which hosts spare BN from weight decay spares them;
    ``running_mean`` and ``running_var`` have shape (S, C),
    ``num_batches_tracked`` (S,). A checkpoint of plain BN, whose tensors are
    (C,), fills every row. :meth:`row` gives one.

    Between two scales the layer has the linear mix of their rows, outside of
    them the row of the end: it is a continuous function of the size. What a
    step at 176 pixels learns goes to the rows of 192 and of 160, gradients
    and statistics alike, by their shares of the mix.

    The size is the pinned one (:func:`use_scale`, :func:`set_scale`), else
    the input tells. In training, a layer that is pinned to a scale records
    the extent of its input; later, the layer with which a pass starts reads
    off its extent which size the image has, and those behind it serve that
    size, too. A network that was never pinned in training runs at the base
    scale. The record is kept with the checkpoint, under the key
    ``_extra_state``. How the size is chosen is our choice: the paper's text
    is not public to us.

    ``SSBN1d`` takes inputs (N, C) and (N, C, L), ``SSBN3d`` (N, C, D, H, W).

    Args:
        num_features: C of the input.
        scales: trained scales in pixels, in any order; kept from the largest
            (the base) down.

    The others are those of ``nn.BatchNorm2d``; as there, ``momentum=None``
    makes the host wait for a GPU in each training step.

    Raises:
        TypeError, ValueError: for scales that are no distinct positive ints
            and for options of another type; in forward for an input of other
            dimensions or channels; in loading for a checkpoint with another
            number of scales.
        RuntimeError: where an export would fix the scale.
    """
    plain_type, dims = nn.BatchNorm2d, (4, )


@MODELS.register_module()
class SSBN1d(RowwiseNorm, nn.BatchNorm1d, _BatchNorm):
    """:class:`SSBN` for inputs (N, C) and (N, C, L)."""
    plain_type, dims = nn.BatchNorm1d, (2, 3)


@MODELS.register_module()
class SSBN3d(RowwiseNorm, nn.BatchNorm3d, _BatchNorm):
    """:class:`SSBN` for inputs (N, C, D, H, W)."""
    plain_type, dims = nn.BatchNorm3d, (5, )


@MODELS.register_module()
class SyncSSBN(SSBN, nn.BatchNorm2d, _BatchNorm):
    """:class:`SSBN` with the batch statistics of all processes, as
    ``nn.SyncBatchNorm``, for inputs of any dimensions; all processes must run
    the same scale.

    With one process, and in evaluation, it is SSBN. It is no subclass of
    ``nn.SyncBatchNorm``: mmengine turns those into plain BN in inference.

    Raises:
        RuntimeError: in training over several processes on a CPU, for which
            torch has no synchronised statistics.
    """
    dims = (2, 3, 4, 5)
    process_group = None  # of a converted nn.SyncBatchNorm

    def _normalize(self, x, mean, var, weight, bias, use_batch, factor):
        processes = (dist.get_world_size(self.process_group)
                     if dist.is_initialized() else 1)
        if not (use_batch and self.training and processes > 1):
            return super()._normalize(x, mean, var, weight, bias, use_batch,
                                      factor)
        if x.device.type == 'cpu':
            raise RuntimeError('SyncSSBN synchronises over '
                               f'{processes} processes on a GPU only, but '
                               'got a tensor on the CPU. Use SSBN there.')
        return _sync_batch_norm.apply(
            x, weight, bias, mean, var, self._eps, factor,
            self.process_group or dist.group.WORLD, processes)
