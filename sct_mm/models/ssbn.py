"""SSBN: batch normalization with a row of parameters for each scale."""
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as _sync_batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from ..utils.arguments import check_flag, check_int, check_number
from .guards import Guards, refuse_to_fuse
from .row_mix import (
    AFFINE,
    COUNTER,
    STATISTICS,
    Present,
    Row,
    mixed,
    rows_serving,
    spread,
)
from .size_selection import DEFAULT_SCALES, NormOfScales, check_scales


class ScaleSpecificNorm(Guards, NormOfScales):
    """What all forms of :class:`SSBN` share. In the list of bases it stands
    before ``plain_type``, the batch normalization that it stands in for."""

    plain_type: type[_BatchNorm]
    dims: tuple[int, ...]  # numbers of dimensions that an input may have
    STATE = (*NormOfScales.STATE, '_views')
    # The scale of the last inference, ids and places of the layer's tensors
    # at it, and their views.
    _views: tuple[float, list[int], list[int], Row] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (N, C, H, W) with the row of its size, or between
        two scales with the mix of theirs."""
        self.check_export(x)
        self._check_shape(x.shape)
        size = self.choose_size(x)
        if (self.training and self.track_running_stats
                and size not in self.scales
                and self.running_mean is not None):
            return self._train_between(x, size)
        if self.training or torch.is_grad_enabled():
            return self._with_row(x, self.row_at(size))
        return self._with_row(x, self.pin.frozen or self._viewed(size))

    def _viewed(self, size: float) -> Row:
        """:meth:`row_at` for inference. The views at a scale are kept until
        another size: to make them takes as long as a small norm. While the
        tensors of the layer lie where they did, the views are theirs, since
        they keep the memory that they view from any other use."""
        if size not in self.scales or _is_recorded():
            return self.row_at(size)
        tensors = self._tensors()
        names = [id(t) for t in tensors]
        kept = self._views  # read once: another thread may replace them
        if kept and kept[0] == size and kept[1] == names and kept[2] == [
                t is None or t.data_ptr() for t in tensors]:
            return kept[3]
        row = self.row_at(size)
        try:
            places = [t is None or t.data_ptr() for t in tensors]
        except RuntimeError:  # torch.func puts in tensors without an address
            return row
        # `.data` refers to the memory alone, not to the tensor.
        self._views = size, names, places, {
            name: part if part is None else part.data
            for name, part in row.items()}
        return row

    def train(self, mode: bool = True):
        self._views = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        return dict(super().__getstate__(), _views=None)

    def _with_row(self, x: Tensor, row: Row) -> Tensor:
        """Do what BN's forward does, with the tensors of ``row``."""
        mean, var = row['running_mean'], row['running_var']
        factor = self.momentum
        if self.training:
            if not self.track_running_stats:
                mean = var = None
            elif (counter := row[COUNTER]) is not None:
                counter.add_(1)
                if factor is None:  # cumulative moving average
                    factor = 1.0 / float(counter)
        return self._normalize(x, mean, var, row['weight'], row['bias'],
                               self.training or mean is None, factor or 0.0)

    def _normalize(self, x, mean, var, weight, bias, use_batch, factor):
        return F.batch_norm(x, mean, var, weight, bias, use_batch, factor,
                            self.eps)

    def _train_between(self, x: Tensor, size: float) -> Tensor:
        """Normalise with a mix, and hand its statistics to both rows."""
        (upper, share), (lower, _) = rows_serving(self.scales, size)
        larger, smaller = self.row(upper), self.row(lower)
        before = mixed(larger, smaller, share)
        after = {name: value if name in AFFINE or value is None
                 else value.clone() for name, value in before.items()}
        y = self._with_row(x, after)
        spread(before, after, larger, smaller, share)
        return y

    def _check_shape(self, shape: torch.Size) -> None:
        if len(shape) not in self.dims:
            dims = ' or '.join(map(str, self.dims))
            raise ValueError(f'{type(self).__name__} takes an input of {dims} '
                             f'dimensions, but got shape {tuple(shape)}. '
                             'Use SSBN for images, SSBN1d for vectors and '
                             'SSBN3d for volumes.')
        if shape[1] != self.num_features:
            raise ValueError(f'{type(self).__name__} was built for '
                             f'{self.num_features} channels, but got shape '
                             f'{tuple(shape)}. Set `num_features` to the '
                             'channels of the input.')

    def row(self, scale: int) -> Row:
        """Views of weight, bias, running_mean, running_var and
        num_batches_tracked at ``scale``, as BN has them.

        Raises:
            ValueError: if it is no scale of the layer.
        """
        if scale not in self.scales:
            raise ValueError(f'`scale` must be one of {self.scales}, but got '
                             f'{scale!r}. Give it rows by add_scale() first.')
        return self._row(self.scales.index(scale))

    def _tensors(self) -> tuple[Tensor | None, ...]:
        """Of all scales, in the order of a row."""
        # An attribute of a module takes ten times as long as an entry.
        parameters, buffers = self._parameters, self._buffers
        try:
            weight, bias = parameters['weight'], parameters['bias']
        except KeyError:  # pruned, or in a replica of DataParallel
            weight, bias = self.weight, self.bias
        return (weight, bias, buffers['running_mean'], buffers['running_var'],
                buffers[COUNTER])

    def _row(self, index: int) -> Row:
        start = index * self.num_features
        end = start + self.num_features
        weight, bias, mean, var, counter = self._tensors()
        return dict(weight=None if weight is None else weight[start:end],
                    bias=None if bias is None else bias[start:end],
                    running_mean=None if mean is None else mean[index],
                    running_var=None if var is None else var[index],
                    num_batches_tracked=(None if counter is None
                                         else counter[index]))

    @torch.no_grad()
    def prepared(self, size: float) -> Row:
        return self.row_at(size)

    def row_at(self, size: float) -> Row:
        """:meth:`row` at a scale, the mix of two between two scales, the row
        of the largest or smallest scale outside of them."""
        if size in self.scales:
            return self._row(self.scales.index(size))
        serving = rows_serving(self.scales, size)
        rows = [self.row(scale) for scale, _ in serving]
        if len(rows) == 1:
            return rows[0]
        return mixed(rows[0], rows[1], serving[0][1])

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
        """Turn the tensors of one norm, which the layer has, into equal rows
        of all ``scales``."""
        super().start(scales)
        for name in AFFINE:
            single = getattr(self, name)
            if single is not None:
                rows = single.detach().repeat(len(self.scales))
                setattr(self, name, nn.Parameter(
                    rows, requires_grad=single.requires_grad))
        for name in (*STATISTICS, COUNTER):
            single = getattr(self, name)
            if single is not None:
                setattr(self, name, torch.stack([single] * len(self.scales)))

    def reset_running_stats(self) -> None:
        """Reset the statistics of one scale: the pinned one, else the base,
        with a warning. What calibrates statistics
        (``torch.optim.swa_utils.update_bn``) resets them first; the other
        scales keep theirs.

        Raises:
            RuntimeError: if a size between two scales is pinned.
        """
        if 'scales' not in self.__dict__:  # called by BN's __init__
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
            row: Present = self.row(scale)
            row['running_mean'].zero_()
            row['running_var'].fill_(1)
            row[COUNTER].zero_()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the pinned scale, or all of them if none is pinned, as
        after ``to_empty()``."""
        if 'scales' not in self.__dict__:  # called by BN's __init__
            return super().reset_parameters()
        pinned = self.pinned_size and self._own_scale('reset_parameters()')
        for scale in self.scales if pinned is None else (pinned, ):
            self._reset_statistics(scale)
            for name, value in zip(AFFINE, (1, 0), strict=True):
                rows = self.row(scale)[name]
                if rows is not None:
                    rows.fill_(value)

    def plain(self, size: float) -> _BatchNorm:
        """The norm that this layer stands in for, at ``size`` pixels, with
        the layer's hooks and options: its tensors are views at a scale, and
        the mix between two."""
        return self._plain_with(self.row_at(size))

    def _plain_with(self, row: Row) -> _BatchNorm:
        layer = self.plain_type.__new__(self.plain_type)
        layer.__dict__ = {name: value for name, value in self.__dict__.items()
                          if name not in self.STATE}
        layer._parameters = {
            name: row.get(name, value)  # type: ignore[misc]  # a view
            for name, value in self._parameters.items()}
        layer._buffers = {name: row.get(name, value)
                          for name, value in self._buffers.items()}
        return layer

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, scales={self.scales}'

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict,
                              missing_keys, unexpected_keys, error_msgs):
        own = {name: tensor for name in (*AFFINE, *STATISTICS, COUNTER)
               if (tensor := getattr(self, name)) is not None}
        state_dict = {**state_dict, **rows_of_checkpoint(
            state_dict, prefix, own, self.scales)}
        record = f'{prefix}_extra_state'
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)
        if record in missing_keys:  # as in a checkpoint of plain BN
            missing_keys.remove(record)
        self.look_for_unseen()


# A host that initialises or freezes norms asks for `nn.BatchNorm2d` or for
# `_BatchNorm`; mmengine's ConstantInit compares the names of direct bases.
@MODELS.register_module()
class SSBN(ScaleSpecificNorm, nn.BatchNorm2d, _BatchNorm):
    """Batch normalization with one set of affine parameters and running
    statistics per scale (SSBN; arXiv 1909.00182, abstract).

    At one scale the layer computes what ``nn.BatchNorm2d`` with that row
    computes. Parameters and buffers have the names of BN and one row per
    scale: ``weight`` and ``bias`` have shape (S * C,), of one dimension, so
    that each rule by which hosts spare BN from weight decay spares them;
    ``running_mean`` and ``running_var`` have shape (S, C),
    ``num_batches_tracked`` (S,). A checkpoint of plain BN, whose tensors are
    (C,), fills every row. :meth:`row` gives one.

    Between two scales the layer uses the linear mix of their rows, outside of
    them the row of the largest or smallest scale: it is a continuous function
    of the size. A step at 176 pixels changes the rows of 192 and of 160, by
    gradients and statistics alike, by their shares of the mix.

    The size is the pinned one (:func:`use_scale`, :func:`set_scale`). Without
    a pin it follows from the input: in training, a layer that is pinned to a
    scale records the extent of its input; later, the layer with which a pass
    starts finds the size of the image by its extent, and the layers behind it
    use that size, too. A network that was never pinned in training runs at
    the base scale. The record is kept with the checkpoint, under the key
    ``_extra_state``. How the size is chosen is our choice: the paper's text
    is not public to us.

    ``SSBN1d`` takes inputs (N, C) and (N, C, L), ``SSBN3d`` (N, C, D, H, W).

    Args:
        num_features: C of the input.
        scales: trained scales in pixels, in any order; kept from the largest
            (the base) down.

    The other arguments are those of ``nn.BatchNorm2d``; as there,
    ``momentum=None`` makes the host wait for a GPU in each training step.

    Raises:
        TypeError, ValueError: for scales that are no distinct positive ints
            and for options of another type; in forward for an input of other
            dimensions or channels; in loading for a checkpoint with another
            number of scales.
        RuntimeError: if the layer is exported, which would fix its scale.
    """
    plain_type: type[_BatchNorm] = nn.BatchNorm2d
    dims: tuple[int, ...] = (4, )


@MODELS.register_module()
class SSBN1d(ScaleSpecificNorm, nn.BatchNorm1d, _BatchNorm):
    """:class:`SSBN` for inputs (N, C) and (N, C, L)."""
    plain_type, dims = nn.BatchNorm1d, (2, 3)


@MODELS.register_module()
class SSBN3d(ScaleSpecificNorm, nn.BatchNorm3d, _BatchNorm):
    """:class:`SSBN` for inputs (N, C, D, H, W)."""
    plain_type, dims = nn.BatchNorm3d, (5, )


@MODELS.register_module()
class SyncSSBN(SSBN, nn.BatchNorm2d, _BatchNorm):
    """:class:`SSBN` with the batch statistics of all processes, as
    ``nn.SyncBatchNorm``, for inputs of any dimensions; all processes must run
    the same scale.

    With one process, and in evaluation, it is SSBN. It stands in for
    ``nn.SyncBatchNorm``, which takes these inputs, too, but is no subclass of
    it: mmengine turns those into plain BN in inference.

    Raises:
        RuntimeError: in training over several processes on a CPU, for which
            torch has no synchronised statistics.
    """
    plain_type, dims = nn.SyncBatchNorm, (2, 3, 4, 5)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.process_group = None  # as nn.SyncBatchNorm has it

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
            x, weight, bias, mean, var, self.eps, factor,
            self.process_group or dist.group.WORLD, processes)


refuse_to_fuse((SSBN, SSBN1d, SSBN3d, SyncSSBN))


def _is_recorded() -> bool:
    """Whether a pass is compiled, traced, or runs on fake tensors: what it
    makes is no view of the memory, and what it reads becomes a constant."""
    return (torch.compiler.is_compiling() or torch.jit.is_tracing()
            or torch._C._len_torch_dispatch_stack() > 0)


def rows_of_checkpoint(state_dict: dict, prefix: str,
                       own: dict[str, Tensor],
                       scales: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors of a checkpoint for one layer, in the layer's shapes: those
    of plain BN, (C,), fill every row.

    Args:
        prefix: of the layer's keys in ``state_dict``.
        own: {name: tensor of the layer}.

    Raises:
        ValueError: if the checkpoint has another number of scales.
    """
    values = {name: state_dict[prefix + name] for name in own
              if isinstance(state_dict.get(prefix + name), Tensor)}
    # Statistics of all scales have one dimension more than BN's. A weight is
    # flat in both: parameters without statistics count as those of all scales.
    in_rows = not {*STATISTICS, COUNTER} & set(values) or any(
        value.dim() > (name != COUNTER) for name, value in values.items())
    rows, shaped = len(scales), {}
    for name, value in values.items():
        shape = own[name].shape
        width = own[name].numel() // rows
        if value.numel() == width:
            shaped[prefix + name] = value.reshape(-1).repeat(rows).reshape(
                shape)
        elif in_rows and value.numel() == rows * width:  # flat, or (S, C)
            shaped[prefix + name] = value.reshape(shape)
        elif in_rows and value.numel() % width == 0:
            raise ValueError(
                f'The checkpoint has {value.numel() // width} scales in '
                f'{prefix}{name}, but the model has {rows} ({scales}). Set '
                'the `scales` of its `norm_cfg` to those of the checkpoint.')
        elif value.shape == shape:
            # Plain BN of S * C channels: torch is to report the mismatch.
            shaped[prefix + name] = value[None]
    return shaped
