"""Make a network whose graph serves all sizes: the size of its input chooses,
inside the graph, the shares of the scales."""
import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..datasets.base_size import BaseSize
from ..models.convert import _Activated, _Foreign
from ..models.guards import check_own
from ..models.replace_modules import replace_modules
from ..models.size_selection import scale_specific
from ..models.ssbn import ScaleSpecificNorm
from ..models.weight_change import (
    CHANGE_IN,
    CHANGE_OUT,
    CHANGE_WHOLE,
    ChangedLayer,
    unit_of,
)
from ..utils.errors import UserError
from .same_padding import is_same, same_convolution


def shares_at(scale: Tensor, scales: Tensor) -> Tensor:
    """The share of each of ``scales`` in the mix that serves ``scale``: hat
    functions, by operators of a graph. Outside of the scales, the share of the
    largest or smallest one is 1.

    Args:
        scale: pixels, a float of shape ().
        scales: pixels, floats of shape (S,), from the largest down.

    Returns:
        Tensor: shape (S,), of sum 1.
    """
    larger = torch.cat([scales[:1] + 1, scales[:-1]])
    smaller = torch.cat([scales[1:], scales[-1:] - 1])
    within = torch.minimum(torch.maximum(scale, scales[-1]), scales[0])
    rising = (within - smaller) / (scales - smaller)
    falling = (larger - within) / (larger - scales)
    return torch.minimum(rising, falling).clamp(0, 1)


def scale_at(size: Tensor, base: BaseSize) -> Tensor:
    """:meth:`BaseSize.scale_at` by operators of a graph.

    Args:
        size: of the test images in pixels, an int64 of shape ().
    """
    if base.train == base.test:
        return size
    scale = (2 * size * base.train + base.test) // (2 * base.test)
    scale = scale.clamp(min=1)
    for trained in reversed(base.scales):  # of two, the larger one counts
        scale = torch.where(size == base.size_of(trained),
                            torch.full_like(scale, trained), scale)
    return scale


class PrivateRows:
    """What the layers of a network have for each scale, as one table (S, n)
    and one of the scales below the base (S - 1, m), so that two products mix
    them for all layers; and, during a pass, the mix."""

    def __init__(self) -> None:
        self.tables: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.mixes: list[Sequence[Tensor]] = []

    def add(self, rows: Tensor, below_base: bool = False) -> tuple[int, int]:
        """Add ``rows`` (S, ...), or (S - 1, ...); returns their place."""
        table = self.tables[below_base]
        table.append(rows.detach().flatten(1))
        return int(below_base), len(table) - 1

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        table, index = place
        return self.mixes[table][index]


class _Norm(nn.Module):
    """Batch normalization by the mix of the rows of an SSBN layer."""

    def __init__(self, layer: ScaleSpecificNorm, rows: PrivateRows) -> None:
        super().__init__()
        self.eps, self.rows = layer.eps, rows
        shape = len(layer.scales), layer.num_features
        weight, bias = (
            torch.full(shape, neutral) if value is None
            else value.reshape(shape) for value, neutral
            in ((layer.weight, 1.0), (layer.bias, 0.0)))
        tensors: tuple[Any, ...] = (layer.running_mean, layer.running_var,
                                    weight, bias)
        self.places = [rows.add(value) for value in tensors]
        # timm's norms have them.
        self.behind = [name for name in ('drop', 'act')
                       if isinstance(layer, _Activated)
                       and layer._modules.get(name) is not None]
        for name in self.behind:
            self.add_module(name, layer._modules[name])

    def forward(self, x: Tensor) -> Tensor:
        mean, var, weight, bias = (self.rows[place] for place in self.places)
        x = F.batch_norm(x, mean, var, weight, bias, eps=self.eps)
        for name in self.behind:
            x = self._modules[name](x)  # type: ignore[misc]
        return x


class _Changed(nn.Module):
    """A convolution or linear layer with the mix of its changes.

    The weight is composed: where a runtime is given fixed shapes, it folds
    the change away. Two small convolutions in its place would stay
    (docs/export.md).
    """

    def __init__(self, layer: ChangedLayer, rows: PrivateRows) -> None:
        super().__init__()
        self.rows, self.plain = rows, layer.plain(layer.scales[0])
        tensors = layer._parameters
        unit = unit_of(layer.weight)
        down = tensors.get(CHANGE_IN)
        if down is not None:
            unit = unit / math.sqrt(layer.rank)
        # Of a module of its own, since replace_modules() takes the tensors
        # of a layer for those of the one that it replaces.
        self.shared = nn.Module()
        self.shared.register_buffer(
            'down', None if down is None else down.detach())
        up = tensors.get(CHANGE_OUT, tensors.get(CHANGE_WHOLE))
        self.place = rows.add(unit * cast(Tensor, up), below_base=True)

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self.plain
        change, weight = self.rows[self.place], layer.weight
        down: Any = self.shared.down
        if down is not None:
            change = change.reshape(len(weight), -1) @ down
        weight = weight + change.reshape(weight.shape)
        if is_same(layer):
            return same_convolution(layer)(x, weight, layer.bias)
        # What a subclass does around them, as ConvWS, it does here, too.
        whole = copy.copy(layer)
        whole._parameters = dict(layer._parameters, weight=weight)
        return whole(x)


class _Same(nn.Module):
    """A convolution with 'same' padding whose shapes a graph can follow."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.plain, self.convolve = layer, same_convolution(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.plain.weight, self.plain.bias)


def check_layers(model: nn.Module) -> None:
    """Refuse layers of scales that a graph cannot mix.

    Raises:
        UserError: naming the layer.
    """
    for layer in scale_specific(model):
        check_own(layer)
    for name, layer in model.named_modules():
        if not isinstance(layer, ScaleSpecificNorm):
            continue
        kind = layer.plain_type.__name__
        if isinstance(layer, _Foreign):
            cause = f'{kind}, which does more than batch normalization'
        elif layer.running_mean is None:
            cause = f'{kind} without running statistics'
        else:
            continue
        raise UserError('A file for any size cannot mix the scales of '
                        f'{name.removeprefix("model.")},'
                        f' a {cause}. Export each size by --size N.')


class AnySize(nn.Module):
    """A network at the size of its input.

    Args:
        net: from images to a tuple of tensors. Its layers are replaced.
        base: which scale serves a size.

    Raises:
        UserError: for layers that a graph cannot mix.
    """

    def __init__(self, net: nn.Module, base: BaseSize) -> None:
        super().__init__()
        check_layers(net)
        self.base, self.rows = base, PrivateRows()
        self.net = replace_modules(net, self._graph_form)
        self.register_buffer('scales', torch.tensor(base.scales).float())
        tables = self.rows.tables
        for name, table in zip(('rows_of_scales', 'rows_below_base'), tables,
                               strict=True):
            self.register_buffer(name, torch.cat(table, 1) if table else None)
        self.widths = [[each.shape[1] for each in table] for table in tables]

    def _graph_form(self, layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, ScaleSpecificNorm):
            return _Norm(layer, self.rows)
        if isinstance(layer, ChangedLayer):
            return _Changed(layer, self.rows)
        # A copy, since the layer itself would be replaced within, too.
        same: Any = copy.copy(layer) if is_same(layer) else None
        return same and _Same(same)

    def tables(self) -> tuple[Any, Any]:
        """The table of all scales, (S, n), and of those below the base, (S -
        1, m); None for what no layer has."""
        return self.rows_of_scales, self.rows_below_base

    def forward(self, x: Tensor, size: Tensor | None = None
                ) -> tuple[Tensor, ...]:
        """The outputs for images (N, ..., H, W) of a test at ``size`` pixels,
        an int64 of shape (); None: at their shorter edge."""
        if size is None:
            size = torch.minimum(*(
                torch.scalar_tensor(edge, dtype=torch.int64)
                for edge in x.shape[-2:]))
        scales: Any = self.scales
        shares = shares_at(scale_at(size, self.base).float(), scales)
        self.rows.mixes = [
            () if table is None else (share @ table).split(widths)
            for share, table, widths in zip(
                (shares, shares[1:]), self.tables(), self.widths,
                strict=True)]
        try:
            return self.net(x)
        finally:
            self.rows.mixes = []
