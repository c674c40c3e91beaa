"""Which pass of a network an SSBN layer belongs to, in each thread."""
import threading
import warnings
import weakref
from typing import Any


class Begun:
    """A pass of a network that no pin holds, from its first SSBN layer on,
    or the last of several in turn that have one size.

    Attributes:
        size: pixels.
        reached: ids of the layers that have run in it.
        other: the last pass of another size that began before it.
        warned: whether a warning has said that passes overlap.
    """
    __slots__ = ('other', 'reached', 'size', 'warned')

    def __init__(self, size: float, other: 'Begun | None') -> None:
        self.size, self.reached = size, set[int]()
        self.other = other
        self.warned: bool = other is not None and other.warned
        if other is not None:
            other.other = None  # or they would form an endless chain


class _Preceding(threading.local):
    """What the preceding SSBN layer of the same thread has left.

    Attributes:
        size: at which it ran, in pixels; None where a pass starts.
        begun: the pass that it belongs to, if it is not pinned.
    """
    size: float | None = None
    begun: Begun | None = None

    def __init__(self) -> None:
        # {layer: the last pass that has begun with it}
        self.last: weakref.WeakKeyDictionary[Any, Begun] = (
            weakref.WeakKeyDictionary())

    def begin(self, layer: Any, size: float) -> None:
        """A pass of ``size`` pixels begins with ``layer``."""
        begun = self.last.get(layer)
        if begun is None or begun.size != size:
            begun = self.last[layer] = Begun(size, begun)
        begun.reached.clear()
        self.begun = begun

    def follow(self, layer: Any, extent: int, size: float) -> None:
        """``layer``, whose input has ``extent``, runs behind others at
        ``size`` pixels.

        It takes the size of the pass that has begun last, also for an input
        that belongs to the one before: warn once if that one has not reached
        the layer, and may have the same extent here.
        """
        begun = self.begun
        if begun is None or begun.size != size:  # its own extent tells
            return
        begun.reached.add(id(layer))
        other = begun.other
        if other is None or begun.warned or id(layer) in other.reached or (
                layer.extents.known().compiled
                or not layer.extents.may_have(
                    extent, other.size, layer.scales[0])):
            return
        begun.warned = True
        warnings.warn(
            f'An SSBN layer serves its input by the size of the image that '
            f'came last, {begun.size:g} pixels, but one of {other.size:g} '
            'pixels came before and has not reached this layer. If it is '
            'still to reach it, run each image through the whole network '
            'before the next, or pin its size by use_scale().', stacklevel=2)


preceding = _Preceding()
