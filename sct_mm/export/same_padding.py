"""Convolutions that pad their input to whole strides, as TensorFlow's 'same'
does, in a form whose shapes a graph can follow."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Convolve = Callable[[Tensor, Tensor, Tensor | None], Tensor]
# (package, class) of the hosts' own. Their formulas of the padding grow by a
# factor with each layer when torch.export traces them.
_SAME = {('timm', 'Conv2dSame'), ('mmcv', 'Conv2dAdaptivePadding')}


def is_same(layer: nn.Module) -> bool:
    """Whether ``layer`` is a convolution of ``_SAME``."""
    return any((kind.__module__.partition('.')[0], kind.__name__) in _SAME
               for kind in type(layer).__mro__)


def padding_of(edge: int, kernel: int, stride: int,
               dilation: int) -> tuple[int, int]:
    """How many elements stand before and behind an input of ``edge``, so that
    the output has ``edge / stride``, rounded up."""
    total = (kernel - 1) * dilation - (edge - 1) % stride
    if (kernel - 1) * dilation + 1 < stride:
        total = max(total, 0)
    return total // 2, total - total // 2


def same_convolution(layer: nn.Conv2d) -> Convolve:
    """What ``layer`` of ``_SAME`` makes of (input, weight, bias)."""
    stride, dilation = layer.stride, layer.dilation

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kernel = weight.shape[2:]
        if torch.onnx.is_in_onnx_export():
            # A padding of its own would be a pass over the input.
            edges = [(edge - 1) // step + 1 for edge, step
                     in zip(x.shape[2:], stride, strict=True)]
            return torch.onnx.ops.symbolic(
                'Conv', [each for each in (x, weight, bias)
                         if each is not None],
                dict(auto_pad='SAME_UPPER', kernel_shape=list(kernel),
                     strides=list(stride), dilations=list(dilation),
                     group=layer.groups),
                dtype=x.dtype,
                shape=[x.shape[0], weight.shape[0], *edges])
        (top, bottom), (left, right) = [padding_of(*each) for each in zip(
            x.shape[2:], kernel, stride, dilation, strict=True)]
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias,
                        stride, 0, dilation, layer.groups)

    return convolve
