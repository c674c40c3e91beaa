"""Scale-Specific Batch Normalization: the layer, in each of its forms."""
import torch.distributed as dist
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules._functions import SyncBatchNorm as _sync_batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from .rowwise import RowwiseNorm


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
    off its extent which size the picture has, and those behind it serve that
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
