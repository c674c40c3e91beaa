"""What the layers of a network see at each scale.

The *extent* of a layer's input is the shorter of its last two edges, in
elements of that map.
"""
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from torch import Tensor, nn


class ExtentRecord(Dict[int, List[int]]):
    """``{scale: [smallest, largest extent seen]}`` of one layer.

    A deep copy made before anything was seen learns from its source until it
    sees something itself, as an EMA copy of a network that trains does. The
    record describes the network's geometry, not its weights.

    Attributes:
        leads: whether a pass of the network starts with this layer. The one
            that starts tells all others the size of the pass.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.leads = False
        self._source: Optional[ExtentRecord] = None
        self._answers: Dict[tuple, Any] = {}

    def __deepcopy__(self, memo: dict) -> 'ExtentRecord':
        new = ExtentRecord({scale: [*seen] for scale, seen in self.items()})
        new.leads = self.leads
        # Copies of a block that has run stand at places of their own.
        new._source = None if self else self
        return new

    def __reduce__(self) -> tuple:
        known = self.known()
        return _record_of, (dict(known), known.leads)

    def known(self) -> 'ExtentRecord':
        """The record itself, or that of its source where it is empty."""
        record = self
        while not len(record) and record._source is not None:
            record = record._source
        return record

    def serving(self, extent: int,
                pass_size: Optional[float]) -> Optional[float]:
        """The size in pixels that serves an input of ``extent``; None if
        nothing tells.

        Args:
            pass_size: of the layer that ran before in the same thread. What
                does not start a pass follows it where its own input may be of
                that size: the first layers see more of the picture.
        """
        known = self.known()
        if not len(known):  # torch.compile takes an empty one for true
            return None
        if known.leads:
            pass_size = None
        if pass_size is not None and known._looked_up(admits, extent,
                                                      pass_size):
            return pass_size
        fits = known._looked_up(fitting_size, extent)
        return pass_size if fits is None else fits

    def _looked_up(self, rule: Callable, *question) -> Any:
        answers = self._answers  # add() replaces it, maybe in another thread
        if question not in answers:
            answers[question] = rule(*question, self)
        return answers[question]

    def take(self, rows: Sequence[Sequence[int]]) -> None:
        """Take over rows of (scale, smallest, largest extent, whether a pass
        starts here) that were recorded elsewhere; 0 says that none was. Rows
        of three numbers say nothing of the start: a layer leads then if it
        tells the scales apart."""
        self.clear()
        self.update({row[0]: [row[1], row[2]] for row in rows
                     if 0 < row[1] <= row[2]})
        if rows and len(rows[0]) > 3:
            self.leads = any(row[3] > 0 for row in rows)
        else:
            seen = sorted(self.values())
            self.leads = len(seen) > 1 and all(
                a[1] < b[0] for a, b in zip(seen, seen[1:]))
        self._answers = {}

    def add(self, scale: int, extent: int, leads: bool = False) -> None:
        low, high = self.get(scale, (extent, extent))
        if scale not in self or not low <= extent <= high or (
                leads and not self.leads):
            # Written only on a change: torch.compile guards on the values.
            self[scale] = [min(low, extent), max(high, extent)]
            self.leads = self.leads or leads
            self._answers = {}


def _record_of(ranges: dict, leads: bool) -> ExtentRecord:
    record = ExtentRecord(ranges)
    record.leads = leads
    return record


def fitting_size(extent: int,
                 record: Dict[int, List[int]]) -> Optional[float]:
    """The size in pixels at which a layer's input has ``extent``.

    It is a recorded scale within the range seen there; between two ranges it
    is interpolated linearly; below and above all of them it is the end.
    Returns None where the extent cannot tell: nothing is recorded, or several
    scales were seen at the same extent, as behind a global pooling.
    """
    at = [scale for scale, (low, high) in record.items()
          if low <= extent <= high]
    if at:
        return at[0] if len(at) == 1 else None
    below = [s for s, (_, high) in record.items() if high < extent]
    above = [s for s, (low, _) in record.items() if low > extent]
    if below:
        nearest = max(record[s][1] for s in below)
        below = [s for s in below if record[s][1] == nearest]
    if above:
        nearest = min(record[s][0] for s in above)
        above = [s for s in above if record[s][0] == nearest]
    if max(len(below), len(above)) > 1 or not record:
        return None
    if not below or not above:
        return (below or above)[0]
    low, high = record[below[0]][1], record[above[0]][0]
    share = (extent - low) / (high - low)
    return below[0] + (above[0] - below[0]) * share


def admits(extent: int, size: float, record: Dict[int, List[int]]) -> bool:
    """Whether a layer's input may have ``extent`` at ``size`` pixels, by what
    was recorded at the scales around it; one element is left to rounding."""
    scales = sorted(record)
    larger = next((s for s in scales if s >= size), scales[-1])
    smaller = next((s for s in reversed(scales) if s <= size), scales[0])
    share = (size - smaller) / (larger - smaller) if larger > smaller else 0
    low, high = (a + (b - a) * share
                 for a, b in zip(record[smaller], record[larger]))
    return low - 1 <= extent <= high + 1


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
            edges = [min(v.shape[2:][-2:]) for v in values
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
    # One dimension more than BN's tells rows; a weight of rows is flat, and
    # without statistics, as among a network's parameters, nothing tells.
    in_rows = not {'running_mean', 'running_var',
                   'num_batches_tracked'} & set(values) or any(
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
