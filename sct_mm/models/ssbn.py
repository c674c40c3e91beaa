"""Scale-Specific Batch Normalization, and its conversions."""
import copy
from typing import Optional, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as _sync_batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from .scale import (DEFAULT_SCALES, ExtentRecord, ScaleSpecific,
                    check_scales, preceding, ssbn_layers)

_ROWS = ('weight', 'bias', 'running_mean', 'running_var')
_PLAIN_BN = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@MODELS.register_module()
class SSBN(ScaleSpecific, _BatchNorm):
    """Batch normalization with one set of affine parameters and running
    statistics per scale (SSBN; arXiv 1909.00182, abstract).

    Weight, bias, running mean and running variance have shape (S, C), one row
    per scale, and the counter of batches (S,), under the names of BN. At one
    scale the layer computes what ``nn.BatchNorm2d`` with that row computes. A
    checkpoint of plain BN, whose tensors are (C,), fills every row.

    The row is that of the pinned scale (:func:`use_scale`,
    :func:`set_scale`), else of the scale that the layer's input fits best: in
    training, a pinned layer records the extent of its input; later it takes
    the scale with the nearest extent. A layer for which the extents coincide
    follows the SSBN layer that ran before it. A layer that was never pinned
    in training runs at the base scale. The record is kept with the
    checkpoint, in the metadata of the state dict, as plain numbers. How the
    scale is chosen is our choice: the paper's text is not public to us.

    Args:
        num_features: C of the input.
        scales: trained scales in pixels, in any order; kept from the largest
            (the base) down.
        spatial_dims: 2 for inputs (N, C, H, W) as ``nn.BatchNorm2d``; 1 for
            (N, C) and (N, C, L); 3 for (N, C, D, H, W).

    The others are those of ``nn.BatchNorm2d``.

    Raises:
        TypeError, ValueError: for scales that are no distinct positive ints;
            in forward for an input of other dimensions or channels; in
            loading for a checkpoint with another number of scales.
    """

    def __init__(self,
                 num_features: int,
                 scales: Sequence[int] = DEFAULT_SCALES,
                 eps: float = 1e-5,
                 momentum: Optional[float] = 0.1,
                 affine: bool = True,
                 track_running_stats: bool = True,
                 spatial_dims: int = 2,
                 device=None,
                 dtype=None) -> None:
        scales = check_scales(scales)
        if spatial_dims not in _PLAIN_BN:
            raise ValueError('`spatial_dims` must be 1, 2 or 3, but got '
                             f'{spatial_dims!r}. Images have 2.')
        super().__init__(num_features, eps, momentum, affine,
                         track_running_stats, device=device, dtype=dtype)
        self.scales = scales
        self.spatial_dims = spatial_dims
        self.pinned_scale: Optional[int] = None
        self.record, self.record_ratio = False, 1.0  # see set_scale()
        self.extents = ExtentRecord()
        for name in (*_ROWS, 'num_batches_tracked'):
            single = getattr(self, name)
            if single is not None:
                rows = single.detach().expand(len(scales), *single.shape)
                rows = rows.clone(memory_format=torch.contiguous_format)
                is_parameter = isinstance(single, nn.Parameter)
                setattr(self, name, nn.Parameter(rows) if is_parameter
                        else rows)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (N, C, H, W) with the row of its scale."""
        self._check_input(x)
        row = self.scales.index(self._choose_scale(x))
        mean, var = self.running_mean, self.running_var
        if mean is not None:
            mean, var = mean[row], var[row]
        weight, bias = self.weight, self.bias
        if weight is not None:
            weight, bias = weight[row], bias[row]
        factor = 0.0 if self.momentum is None else self.momentum
        counter = self.num_batches_tracked
        if self.training and self.track_running_stats and counter is not None:
            counter[row].add_(1)
            if self.momentum is None:  # cumulative moving average
                factor = 1.0 / float(counter[row])
        use_batch = self.training or mean is None
        if self.training and not self.track_running_stats:
            mean = var = None
        return self._normalize(x, mean, var, weight, bias, use_batch, factor)

    def _normalize(self, x, mean, var, weight, bias, use_batch, factor):
        return F.batch_norm(x, mean, var, weight, bias, use_batch, factor,
                            self.eps)

    def _check_input(self, x: Tensor) -> None:
        dims = self.spatial_dims + 2
        if x.dim() != dims and not (dims == 3 and x.dim() == 2):
            raise ValueError(f'SSBN with `spatial_dims={self.spatial_dims}` '
                             f'takes an input of {dims} dimensions, but '
                             f'got shape {tuple(x.shape)}. Set '
                             '`spatial_dims` to fit the input.')
        if x.shape[1] != self.num_features:
            raise ValueError(f'SSBN was built for {self.num_features} '
                             f'channels, but got shape {tuple(x.shape)}. Set '
                             '`num_features` to the channels of the input.')

    def _choose_scale(self, x: Tensor) -> int:
        extent = min(x.shape[2:]) if x.dim() > 2 else 1
        scale = self.pinned_scale
        if scale is None:
            scale = self.extents.fitting(extent)
            if scale is None and self.extents:
                scale = preceding.scale
            if scale not in self.scales:
                scale = self.scales[0]
        elif self.training or self.record:
            self.extents.add(scale, round(extent * self.record_ratio))
        preceding.scale = scale
        return scale

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, scales={self.scales}'

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, '_metadata', {})
        if prefix[:-1] in metadata:
            metadata[prefix[:-1]].update(
                scales=self.scales,
                extents={s: list(e) for s, e in self.extents.items()})

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict,
                              missing_keys, unexpected_keys, error_msgs):
        rows = len(self.scales)
        state_dict = dict(state_dict)
        for name, own_dims in (*((n, 2) for n in _ROWS),
                               ('num_batches_tracked', 1)):
            value = state_dict.get(prefix + name)
            if value is None:
                continue
            if value.dim() == own_dims - 1:  # plain BN: it fills every row
                state_dict[prefix + name] = value.expand(rows, *value.shape)
            elif value.shape[0] != rows:
                theirs = local_metadata.get('scales', value.shape[0])
                raise ValueError(
                    f'The checkpoint has the statistics of {value.shape[0]} '
                    f'scales ({theirs}) in {prefix}{name}, but the model has '
                    f'{rows} ({self.scales}). Set the `scales` of its '
                    '`norm_cfg` to those of the checkpoint.')
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)
        # Rows load by rank: a detector at 800/480 may start from a classifier
        # at 224/128. The extents mean something at the same scales only.
        if tuple(local_metadata.get('scales', ())) == self.scales:
            self.extents = ExtentRecord(copy.deepcopy(
                local_metadata['extents']))


@MODELS.register_module()
class SyncSSBN(SSBN):
    """:class:`SSBN` with the batch statistics of all processes, as
    ``nn.SyncBatchNorm``; all processes must run the same scale.

    With one process, and in evaluation, it is SSBN. It is no subclass of
    ``nn.SyncBatchNorm``: mmengine turns those into plain BN in inference.

    Raises:
        RuntimeError: in training over several processes on a CPU, for which
            torch has no synchronised statistics.
    """

    def _normalize(self, x, mean, var, weight, bias, use_batch, factor):
        processes = dist.get_world_size() if dist.is_initialized() else 1
        if not (use_batch and self.training and processes > 1):
            return super()._normalize(x, mean, var, weight, bias, use_batch,
                                      factor)
        if x.device.type == 'cpu':
            raise RuntimeError('SyncSSBN synchronises over '
                               f'{processes} processes on a GPU only, but '
                               'got a tensor on the CPU. Use SSBN there.')
        return _sync_batch_norm.apply(x, weight, bias, mean, var, self.eps,
                                      factor, dist.group.WORLD, processes)


def _replace(model: nn.Module, swap) -> nn.Module:
    """``model`` with every module m for which swap(m) is not None replaced by
    it; a module that stands at two places is replaced by one."""
    swapped = {id(m): swap(m) for m in model.modules()}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and swapped.get(id(child)) is not None:
                parent._modules[name] = swapped[id(child)]
    root = swapped[id(model)]
    return model if root is None else root


def _copy_state(source: _BatchNorm, target: _BatchNorm, pick) -> _BatchNorm:
    for name in (*_ROWS, 'num_batches_tracked'):
        value = getattr(source, name)
        if value is not None:
            getattr(target, name).data.copy_(pick(value.detach()))
    for name, parameter in target.named_parameters():
        parameter.requires_grad = getattr(source, name).requires_grad
    return target.train(source.training)


def _options(bn: _BatchNorm) -> dict:
    tensor = bn.weight if bn.affine else bn.running_mean
    return dict(num_features=bn.num_features, eps=bn.eps,
                momentum=bn.momentum, affine=bn.affine,
                track_running_stats=bn.track_running_stats,
                device=None if tensor is None else tensor.device,
                dtype=None if tensor is None else tensor.dtype)


def convert_to_ssbn(model: nn.Module,
                    scales: Sequence[int] = DEFAULT_SCALES) -> nn.Module:
    """Replace every batch normalization of any torch model by SSBN, in place.

    ``nn.SyncBatchNorm`` becomes :class:`SyncSSBN`; each scale starts from the
    weights and statistics at hand; SSBN layers are left as they are. Returns
    the model, which is another object only if ``model`` itself was a norm
    layer.

    Raises:
        TypeError: for a subclass of a batch normalization that may do more
            than normalise, such as timm's ``BatchNormAct2d``.
    """
    scales = check_scales(scales)

    def swap(bn: nn.Module) -> Optional[nn.Module]:
        if not isinstance(bn, _BatchNorm) or isinstance(bn, SSBN):
            return None
        if type(bn) is nn.SyncBatchNorm:
            new = SyncSSBN(scales=scales, **_options(bn))
        elif type(bn) in _PLAIN_BN.values():
            dims = [d for d, t in _PLAIN_BN.items() if type(bn) is t][0]
            new = SSBN(scales=scales, spatial_dims=dims, **_options(bn))
        else:
            raise TypeError(f'`model` has a {type(bn).__name__}, which may do '
                            'more than batch normalization. Replace it by '
                            'nn.BatchNorm2d and what else it does first.')
        return _copy_state(bn, new, lambda value: value)

    return _replace(model, swap)


def extract_scale(model: nn.Module, scale: int) -> nn.Module:
    """An independent copy of ``model`` at one scale, with plain BN layers.

    Its state dict has the keys and shapes of a network that never knew SSBN:
    stock mmpretrain and mmdet load it, without this package.

    Raises:
        ValueError: if the model has no SSBN layer or was not built for
            ``scale`` pixels.
    """
    layers = ssbn_layers(model)
    if not layers:
        raise ValueError('`model` must have SSBN layers to extract a scale '
                         f'from, but {type(model).__name__} has none. It is '
                         'an ordinary model already.')
    for layer in layers:
        if scale not in layer.scales:
            raise ValueError(f'`scale` must be one of the trained scales '
                             f'{layer.scales}, but got {scale!r}. Extract the '
                             'nearest of them instead.')

    def swap(layer: nn.Module) -> Optional[nn.Module]:
        if not isinstance(layer, SSBN):
            return None
        plain = _PLAIN_BN[layer.spatial_dims](**_options(layer))
        row = layer.scales.index(scale)
        return _copy_state(layer, plain, lambda value: value[row])

    return _replace(copy.deepcopy(model), swap)


def damaged_by_sync_bn(model: nn.Module) -> bool:
    """Whether ``nn.SyncBatchNorm.convert_sync_batchnorm`` replaced an SSBN
    layer: it keeps the (S, C) tensors but forgets what the rows mean."""
    return any(
        isinstance(m, _BatchNorm) and not isinstance(m, SSBN)
        and any(isinstance(t, Tensor) and t.dim() > 1
                for t in (m.weight, m.running_mean)) for m in model.modules())
