"""Private changes of the weights of a scale: a low-rank change of each
convolution and linear layer, for every scale below the base."""
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..utils.arguments import check_int
from .guards import Guards, check_own
from .row_mix import rows_serving
from .size_selection import ScaleSpecific

# Parameters of a layer with a change: each has the scales below the base as
# its first dimension, but CHANGE_IN, which they share.
CHANGE_IN, CHANGE_OUT = 'change_in', 'change_out'
CHANGE_WHOLE = 'change_whole'
# A subclass may pad the input or standardise the weight around them.
_CONVOLUTIONS = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
_CHANGES = (CHANGE_IN, CHANGE_OUT, CHANGE_WHOLE)
# {class of a module, by name: layers of it whose weights it reads itself}
_READERS = {
    'TransformerEncoderLayer': ('linear1', 'linear2'),  # torch, in inference
    'BEiTAttention': ('qkv', ),  # mmpretrain, mmsegmentation
    'WindowMSAV2': ('qkv', ),  # mmpretrain
    'CrossMultiheadAttention': ('q', 'k', 'v'),
    'AttentionPool2d': ('q_proj', 'k_proj', 'v_proj', 'c_proj')}


class _Untouched(torch.autograd.Function):
    """The weight itself; the changes get gradients of zero, since DDP waits
    for a gradient of each parameter."""

    @staticmethod
    def forward(ctx, weight: Tensor, *changes: Tensor) -> Tensor:
        ctx.changes = changes
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        return (grad, *map(torch.zeros_like, ctx.changes))


class ChangedLayer(Guards, ScaleSpecific):
    """A convolution or linear layer with a private change of its weight at
    each scale below the base.

    Seen as a matrix, the weight W has shape (C, K), where K counts the inputs
    of one output. At scale s it is ``W + d * (B_s A) / sqrt(r)``, where A (r,
    K), ``change_in``, is shared by the scales, B (S - 1, C, r),
    ``change_out``, starts at zero, as in LoRA (arXiv 2106.09685), and d (C,)
    is the root of the mean square of each output's weights. Two choices are
    ours. A is shared: a size between two scales takes the mix of their B, as
    it takes the mix of their normalization parameters, and so has the mix of
    their weights, of rank r still. And a change counts in units of the
    weights that it changes, so that one learning rate serves all layers and
    ranks (docs/adapt.md).

    A kernel that is hardly larger than its change of low rank, as each
    depthwise one, changes as a whole: ``W + d * D_s``, ``change_whole`` (S -
    1, C, K).

    The keys of the plain layer stay. At the base the weight is W itself.
    """

    plain_type: type[nn.Module]
    weight: nn.Parameter
    bias: nn.Parameter | None
    _conv_forward: Callable[..., Tensor]
    STATE = (*ScaleSpecific.STATE, 'rank')
    rank: int

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the plain layer makes of ``x``, with the weight of its size."""
        self.check_export(x)
        size = self.choose_size(x)
        weight = (None if self.training or torch.is_grad_enabled()
                  else self.pin.frozen)
        if weight is None:
            weight = self.weight_at(size)
        plain: Any = self.plain_type
        if plain.forward in _CONVOLUTIONS:
            return self._conv_forward(x, weight, self.bias)
        if plain.forward is nn.Linear.forward:
            return F.linear(x, weight, self.bias)
        return self._plain_with(weight).forward(x, *args, **kwargs)

    def plain(self, size: float) -> nn.Module:
        """The layer that this one stands in for, at ``size`` pixels, with its
        hooks and options."""
        return self._plain_with(self.weight_at(size))

    def _plain_with(self, weight: Tensor) -> nn.Module:
        layer = self.plain_type.__new__(self.plain_type)
        layer.__dict__ = {name: value for name, value in self.__dict__.items()
                          if name not in self.STATE}
        layer._parameters = {name: value for name, value
                             in self._parameters.items()
                             if name not in _CHANGES}
        layer._parameters['weight'] = cast(nn.Parameter, weight)
        return layer

    @torch.no_grad()
    def prepared(self, size: float) -> Tensor:
        return self.weight_at(size)

    def weight_at(self, size: float) -> Tensor:
        """The weight at ``size`` pixels: W at the base, the mix of two scales
        between them."""
        weight, changes = self.weight, self.changes
        rows, *shared = changes
        mixed = self._mixed(rows, size)
        if mixed is None:
            if (self.training and torch.is_grad_enabled()
                    and any(c.requires_grad for c in changes)):
                return _Untouched.apply(weight, *changes)
            return weight
        if shared:
            mixed = mixed @ shared[0] / math.sqrt(self.rank)
        change = unit_of(weight) * mixed
        return weight + change.reshape(weight.shape).to(weight.dtype)

    def _mixed(self, rows: Tensor, size: float) -> Tensor | None:
        """The mix of ``rows`` (S - 1, C, ...), of the scales below the base,
        at ``size`` pixels; None at the base."""
        parts = [rows[self.scales.index(scale) - 1] * share for scale, share
                 in rows_serving(self.scales, size) if scale != self.scales[0]]
        return sum(parts[1:], parts[0]) if parts else None

    @property
    def changes(self) -> list[nn.Parameter]:
        """B and A, or the change of the whole kernel."""
        own = self._parameters
        if CHANGE_OUT not in own and CHANGE_WHOLE not in own:
            own = vars(self)  # of a replica of DataParallel, a shard of FSDP
        return [p for name in (CHANGE_OUT, CHANGE_IN, CHANGE_WHOLE)
                if (p := own.get(name)) is not None]

    def start_changes(self, scales: Sequence[int], rank: int) -> None:
        """Give the plain layer, which this one was, changes of zero."""
        super().start(scales)
        self.rank = rank
        weight = self.weight
        shapes = shapes_of_change(weight.shape, rank, len(self.scales))
        for name, shape in shapes.items():
            value = torch.zeros(shape, device='cpu')
            if name == CHANGE_IN:
                # The same in each run, whoever has drawn numbers before.
                value.normal_(generator=torch.Generator().manual_seed(0))
            self.register_parameter(name, nn.Parameter(
                value.to(weight), requires_grad=weight.requires_grad))

    def stop_changes(self) -> None:
        """Be the plain layer again, for all scales."""
        for name in _CHANGES:
            self._parameters.pop(name, None)
        for name in self.STATE:
            self.__dict__.pop(name, None)
        self.__class__ = self.plain_type  # type: ignore[assignment]

    @torch.no_grad()
    def insert(self, size: int) -> None:
        """Make ``size`` a scale, whose weight is as before."""
        scales = tuple(sorted((*self.scales, size), reverse=True))
        rows = self.changes[0]
        parts = [self._mixed(rows, scale) for scale in scales[1:]]
        name = next(n for n, p in self._parameters.items() if p is rows)
        self.register_parameter(name, nn.Parameter(torch.stack([
            torch.zeros_like(rows[0]) if part is None else part
            for part in parts]), requires_grad=rows.requires_grad))
        self.scales = scales

    def extra_repr(self) -> str:
        return (f'{super().extra_repr()}, scales={self.scales}, '
                f'rank={self.rank}')

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict,
                              missing_keys, unexpected_keys, error_msgs):
        self._check_changes(state_dict, prefix)
        start = len(missing_keys)
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      strict, missing_keys, unexpected_keys,
                                      error_msgs)
        record = f'{prefix}_extra_state'
        if record in missing_keys:  # a host may keep the weights alone
            missing_keys.remove(record)
        own = {f'{prefix}{name}' for name in _CHANGES}
        if {*own, record} & set(state_dict):
            return
        # A checkpoint of the plain network has no changes, and so leaves none.
        missing_keys[start:] = [key for key in missing_keys[start:]
                                if key not in own]
        if f'{prefix}weight' in state_dict:
            with torch.no_grad():
                self.changes[0].zero_()

    def _check_changes(self, state_dict: dict, prefix: str) -> None:
        """Whether the changes in a checkpoint are of the scales and the rank
        of the layer.

        Raises:
            ValueError: if they are not.
        """
        for name in _CHANGES:
            own = self._parameters.get(name)
            value = state_dict.get(f'{prefix}{name}')
            if not isinstance(value, Tensor) or (
                    own is not None and value.shape == own.shape):
                continue
            shape = tuple(value.shape)
            if name != CHANGE_IN and (
                    own is not None and shape[1:] == own.shape[1:]):
                raise ValueError(
                    f'The checkpoint has {shape[0] + 1} scales in '
                    f'{prefix}{name}, but the model has {len(self.scales)} '
                    f'({self.scales}). Set `scales` to those of the '
                    'checkpoint.')
            raise ValueError(
                f'The checkpoint has a change of shape {shape} in '
                f'{prefix}{name}, but the model has rank={self.rank} there. '
                'Set the `rank` of WithSSBN to that of the checkpoint.')


def unit_of(weight: Tensor) -> Tensor:
    """The root mean square of the weights of each output, (C, 1)."""
    matrix = weight.detach().flatten(1)
    return torch.linalg.vector_norm(
        matrix, dim=1, keepdim=True, dtype=torch.promote_types(
            weight.dtype, torch.float32)) / math.sqrt(matrix.shape[1])


def shapes_of_change(weight: Sequence[int], rank: int,
                     scales: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters that change a weight, by name.

    The whole kernel changes where it is depthwise, or at most twice as large
    as the change of low rank (our choice).

    Args:
        weight: its shape, (C, C_in, ...).
        scales: how many, the base included.
    """
    out, inputs = weight[0], math.prod(weight[1:])
    depthwise = len(weight) > 2 and weight[1] == 1
    if depthwise or out * inputs <= 2 * rank * (out + inputs):
        return {CHANGE_WHOLE: (scales - 1, out, inputs)}
    return {CHANGE_IN: (rank, inputs), CHANGE_OUT: (scales - 1, out, rank)}


def check_rank(rank: int) -> int:
    """``rank`` of the changes; 0 for none.

    Raises:
        TypeError, ValueError: if it is no int, or negative.
    """
    return check_int('rank', rank, 0, 'Write e.g. rank=8, or 0 for none.')


def changed_layers(model: nn.Module) -> list[ChangedLayer]:
    """The layers of ``model`` with a change, in the order of its modules."""
    return [m for m in model.modules() if isinstance(m, ChangedLayer)]


@contextmanager
def noting_unread(model: nn.Module) -> Iterator[list[str]]:
    """Fill a list, at the end of a ``with`` block, with the names of the
    layers whose change was not applied: no pass at a smaller scale within the
    block has called the layer, but the module that it belongs to, which so
    reads the weight itself.

    The passes must be pinned with ``record=True``, as
    :func:`~sct_mm.calibrate` runs them, and the first of ``model``. A layer
    of a module that did not run, as a head that serves the training alone, is
    none of them.
    """
    ran: set[nn.Module] = set()
    handles = [module.register_forward_pre_hook(
        lambda module, args: ran.add(module)) for module in model.modules()]
    unread: list[str] = []
    try:
        yield unread
    finally:
        for handle in handles:
            handle.remove()
    unread += [name for name, layer in model.named_modules()
               if isinstance(layer, ChangedLayer)
               and not len(layer.extents.known())
               and _owner(model, name) in ran]


def _owner(model: nn.Module, name: str) -> nn.Module:
    """The module that runs the layer of this ``name``: no list or dict of
    modules, which are never called."""
    while name:
        name = name.rpartition('.')[0]
        module = model.get_submodule(name)
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return module
    return model


def layers_to_change(model: nn.Module, scales: Sequence[int], rank: int,
                     unchanged: Sequence[str] = ()) -> list[nn.Module]:
    """The convolutions and linear layers of ``model`` that add_changes() is
    to change. Left as they are, for all scales: transposed convolutions,
    layers whose weight is shared with another layer, or is no parameter of
    its own (parametrized, pruned), and those that are not called, or not
    always: the projection of ``nn.MultiheadAttention``, those of
    :data:`_READERS`, and ``unchanged``, names of layers
    (:func:`noting_unread`).

    Raises:
        TypeError: for a lazy layer, whose weight has no shape yet.
        ValueError: for fewer than two scales, a model without such layers,
            and one that has changes of another rank; for a name of none.
    """
    layers = dict(model.named_modules())
    for name in unchanged:
        if name not in layers:
            raise ValueError('`unchanged` must name layers of the network, '
                             f'but {type(model).__name__} has no {name!r}. '
                             'Leave it out.')
    if len(scales) < 2:
        raise ValueError('`rank` needs a scale below the base, but `scales` '
                         f'is {tuple(scales)}. Add smaller ones.')
    for layer in changed_layers(model):
        if layer.rank != rank:
            raise ValueError('`rank` must be that of the changes that the '
                             f'model has, {layer.rank}, but got {rank}.')
    uses = Counter(id(p) for m in model.modules()
                   for p in m._parameters.values() if p is not None)
    read = [getattr(m, name, None) for m in model.modules()
            for kind in type(m).__mro__
            for name in _READERS.get(kind.__name__, ())]
    read += [layers[name] for name in unchanged]
    found: list[nn.Module] = [
        m for m in model.modules()
        if isinstance(m, (_ConvNd, nn.Linear)) and m not in read
        and not isinstance(m, (_ConvTransposeNd, ChangedLayer,
                               NonDynamicallyQuantizableLinear))
        and m._parameters.get('weight') is not None
        and uses[id(m.weight)] == 1]
    if not found and not changed_layers(model):
        raise ValueError('`rank` changes convolutions and linear layers, but '
                         f'{type(model).__name__} has none. Leave it out.')
    for module in found:
        check_own(module)
    return found


def add_changes(layers: Sequence[nn.Module], scales: Sequence[int],
                rank: int) -> None:
    """Give each of ``layers`` a change of ``rank`` at each of ``scales`` below
    the base, in place: they stay the same objects, of another class."""
    for module in layers:
        form = _changed_form(type(module))
        module.__class__ = form
        cast(ChangedLayer, module).start_changes(scales, rank)


_FORMS: dict[type, type[ChangedLayer]] = {}


def _changed_form(plain: type[nn.Module]) -> type[ChangedLayer]:
    """The class that stands in for ``plain``. It has its name and its bases,
    by which mmengine finds the layers that it initialises."""
    if plain not in _FORMS:
        _FORMS[plain] = type(
            plain.__name__, (ChangedLayer, plain, *plain.__bases__),
            dict(plain_type=plain, __reduce__=_reduce))
    return _FORMS[plain]


def _reduce(layer: ChangedLayer) -> tuple:
    """Pickle a layer by the class that it stands in for: pickle does not find
    a class that is made here."""
    return _blank, (layer.plain_type, ), layer.__getstate__()


def _blank(plain: type[nn.Module]) -> ChangedLayer:
    form = _changed_form(plain)
    return form.__new__(form)
