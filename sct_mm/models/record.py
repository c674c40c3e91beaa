"""What the layers of a network see at each scale.

The *extent* of a layer's input is the shorter of its spatial edges, in
elements of that map.
"""
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple

from torch import Tensor, nn


class ExtentRecord(Dict[int, List[int]]):
    """``{scale: [smallest, largest extent seen]}`` of one layer.

    A deep copy of a layer shares its record: an EMA copy made before training
    learns from it what the trained network saw. The record describes the
    network's geometry, not its weights.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._fits: Dict[int, Optional[int]] = {}  # answers of fitting()

    def __deepcopy__(self, memo: dict) -> 'ExtentRecord':
        return self

    def fitting(self, extent: int) -> Optional[int]:
        """:func:`fitting_scale` of ``extent``, looked up once."""
        fits = self._fits  # add() replaces it, maybe in another thread
        if extent not in fits:
            fits[extent] = fitting_scale(extent, self)
        return fits[extent]

    def take(self, rows: Sequence[Sequence[int]]) -> None:
        """Take over rows of (scale, smallest, largest extent) that were
        recorded elsewhere; 0 says that none was."""
        self.update({scale: [low, high] for scale, low, high in rows
                     if 0 < low <= high})
        self._fits = {}

    def add(self, scale: int, extent: int) -> None:
        low, high = self.get(scale, (extent, extent))
        if scale not in self or not low <= extent <= high:
            # Written only on a change: torch.compile guards on the values.
            self[scale] = [min(low, extent), max(high, extent)]
            self._fits = {}


def fitting_scale(extent: int,
                  record: Dict[int, List[int]]) -> Optional[int]:
    """The recorded scale whose extents lie nearest to ``extent``.

    Halfway between two scales the larger one wins (our choice: its statistics
    come from more pixels). Returns None where the extent cannot tell: nothing
    is recorded, or the best scales were seen at the same extent, as behind a
    global pooling.
    """
    best: List[int] = []
    least = None
    for scale, (low, high) in record.items():
        distance = max(low - extent, extent - high, 0)
        if least is None or distance < least:
            best, least = [scale], distance
        elif distance == least:
            best.append(scale)
    if not best:
        return None
    overlap = (max([record[s][0] for s in best])
               <= min([record[s][1] for s in best]))
    return None if len(best) > 1 and overlap else max(best)


def outermost_call() -> Tuple[Optional[nn.Module], Optional[int]]:
    """The outermost module that runs in this thread, and the shorter edge in
    pixels of the pictures it was called with; read off the call stack."""
    model, edge = None, None
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get('self')
        if (isinstance(module, nn.Module)
                and frame.f_code.co_name == '_call_impl'):
            values = [*frame.f_locals.get('args', ()),
                      *frame.f_locals.get('kwargs', {}).values()]
            edges = [min(v.shape[2:]) for v in values
                     if isinstance(v, Tensor) and v.dim() > 2]
            model, edge = module, edges[0] if edges else edge
        frame = frame.f_back
    return model, edge


def rows_of_checkpoint(state_dict: dict, prefix: str,
                       own: Dict[str, Optional[Tensor]],
                       scales: Tuple[int, ...]) -> Dict[str, Tensor]:
    """The tensors of a checkpoint that are a layer's, in its shapes: those
    of plain BN, (C,), fill every row.

    Args:
        prefix: of the layer's keys in ``state_dict``.
        own: {name: tensor of the layer, or None}.

    Raises:
        ValueError: if the checkpoint has another number of scales.
    """
    values = {name: state_dict[prefix + name] for name, tensor in own.items()
              if tensor is not None
              and isinstance(state_dict.get(prefix + name), Tensor)}
    # One dimension more than BN's tells rows; a weight of rows is flat.
    in_rows = own.get('running_mean') is None or any(
        value.dim() > (name != 'num_batches_tracked')
        for name, value in values.items())
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
            # Plain BN of S * C channels is no row: torch says so.
            shaped[prefix + name] = value[None]
    return shaped
