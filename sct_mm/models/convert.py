"""Replace the batch normalization of any torch model by SSBN."""
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .guards import check_before_wrapping, check_own
from .replace_modules import refresh_averages, replace_modules
from .row_mix import Row
from .size_selection import DEFAULT_SCALES, check_scales, ssbn_layers
from .ssbn import SSBN, ScaleSpecificNorm, SSBN1d, SSBN3d, SyncSSBN
from .weight_change import add_changes, check_rank, layers_to_change


class _Activated(nn.Module):
    """Adds the dropout and the activation of timm's norms."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for name in ('drop', 'act'):
            layer = self._modules.get(name)
            if layer is not None:
                x = layer(x)
        return x


class _Foreign(ScaleSpecificNorm):
    """Any other norm: its own ``forward`` runs on the tensors of one row."""

    def _check_shape(self, shape: torch.Size) -> None:
        """Leave the check to the norm itself."""

    def _with_row(self, x: Tensor, row: Row) -> Tensor:
        layer = self._plain_with(row)
        y = layer.forward(x)
        for name in self._buffers:
            given, left = row.get(name), layer._buffers[name]
            if name not in row:
                self._buffers[name] = left
            elif left is not None and given is not None and left is not given:
                given.copy_(left)  # a norm may rebind it
        return y


def _reduce(layer: ScaleSpecificNorm) -> tuple:
    """Pickle a layer by the norm that it stands in for: pickle does not find
    a class that is made here."""
    return _blank, (layer.plain_type, ), layer.__getstate__()


def _blank(plain: type[_BatchNorm]) -> ScaleSpecificNorm:
    """An empty layer that stands in for ``plain``."""
    form = _form_of(plain)
    return form.__new__(form)


# {class of a norm: class of the layer that stands in for it}
_FORMS: dict[type, type[ScaleSpecificNorm]] = {
    nn.BatchNorm1d: SSBN1d, nn.BatchNorm2d: SSBN, nn.BatchNorm3d: SSBN3d,
    nn.SyncBatchNorm: SyncSSBN,
}


# {type in a host's `norm_cfg`: type that builds the extracted layer}
_PLAIN_NAMES = dict(SSBN='BN', SSBN1d='BN1d', SSBN3d='BN3d',
                    SyncSSBN='SyncBN')


def _form_of(plain: type[_BatchNorm]) -> type[ScaleSpecificNorm]:
    """The class that stands in for ``plain``: a subclass of it, but of no
    ``nn.SyncBatchNorm`` (see :class:`SyncSSBN`).

    Raises:
        TypeError: for an unknown subclass of ``nn.SyncBatchNorm``.
    """
    if plain in _FORMS:
        return _FORMS[plain]
    base: Any = next((b for b in plain.__mro__ if b in _FORMS), nn.BatchNorm2d)
    activated = plain.__module__ == 'timm.layers.norm_act'
    same = plain.forward in (base.forward, _BatchNorm.forward)
    if base is nn.SyncBatchNorm:
        if not same and not activated:
            raise TypeError(f'`model` has a {plain.__name__}, which does more '
                            'than nn.SyncBatchNorm. Replace it by '
                            'nn.SyncBatchNorm, and what else it does, first.')
        bases: tuple[type, ...] = (_FORMS[base], nn.BatchNorm2d, _BatchNorm)
    else:
        bases = (ScaleSpecificNorm if same or activated else _Foreign, plain,
                 _BatchNorm)
    _FORMS[plain] = type(
        f'SSBN_{plain.__name__}', (_Activated, *bases) if activated else bases,
        dict(plain_type=plain, dims=_FORMS[base].dims, __reduce__=_reduce))
    return _FORMS[plain]


def _with_rows(bn: _BatchNorm, scales: Sequence[int]) -> ScaleSpecificNorm:
    """``bn`` with a row for each scale. Options, hooks, frozen parameters and
    evaluation mode are those of ``bn``."""
    check_own(bn)
    layer = _blank(type(bn))
    layer.__dict__ = dict(bn.__dict__, _parameters=dict(bn._parameters),
                          _buffers=dict(bn._buffers))
    layer.start(scales)
    layer.converted = True
    return layer


def _left_behind(model: nn.Module) -> str:
    """Number and class of the norms with statistics that are no batch
    normalization of torch: '53 FrozenBatchNorm2d'; '' if there is none."""
    found = Counter(
        type(m).__name__ for m in model.modules()
        if not isinstance(m, _BatchNorm)
        and isinstance(getattr(m, 'running_mean', None), Tensor)
        and isinstance(getattr(m, 'running_var', None), Tensor))
    return ', '.join(f'{n} {name}' for name, n in sorted(found.items()))


@torch.inference_mode(False)  # or the network could not be trained
def convert_to_ssbn(model: nn.Module,
                    scales: Sequence[int] = DEFAULT_SCALES,
                    rank: int = 0,
                    unchanged: Sequence[str] = ()) -> nn.Module:
    """Replace every batch normalization of any torch model by SSBN, in place.

    Each scale starts from the present weights and statistics. Options, hooks,
    evaluation mode and frozen parameters stay. ``nn.SyncBatchNorm`` becomes
    :class:`SyncSSBN`; a norm that does more, such as timm's
    ``BatchNormAct2d``, goes on doing it; SSBN layers stay as they are. Norms
    that are no batch normalization of torch (torchvision's
    ``FrozenBatchNorm2d``) stay as they are, for all scales: a warning names
    them. A norm is replaced in lists, tuples and dicts too, and norms that
    shared a tensor still share it. Returns the model, which is another object
    only if ``model`` itself was a norm layer.

    With ``rank``, each convolution and linear layer gets a private change of
    that rank at each scale below the base, which starts at zero
    (:class:`~sct_mm.models.weight_change.ChangedLayer`), but those that
    ``unchanged`` names. At the base the weights are those of the network.

    The norms have other tensors afterwards. Build whatever refers to tensors
    (an optimizer, an averaged copy, a wrapper such as DDP) after this call.

    Raises:
        TypeError: for a lazy, pruned or parametrized norm, with ``rank`` for
            any lazy layer, for a subclass of ``nn.SyncBatchNorm`` that does
            more than it, and for a model that is wrapped already.
        ValueError: for a model without batch normalization, or with SSBN of
            other scales, for a norm that shares a tensor with another kind
            of layer, and for a ``rank`` that no layer can have. The model is
            then as before.
    """
    scales, rank = check_scales(scales), check_rank(rank)
    if not isinstance(model, nn.Module):
        raise TypeError('`model` must be an nn.Module, but got a '
                        f'{type(model).__name__}. Build it first.')
    check_before_wrapping(model, 'convert_to_ssbn')
    for built in {layer.scales for layer in ssbn_layers(model)} - {scales}:
        raise ValueError('`scales` must be those of the SSBN layers, '
                         f'{built}, but got {scales}. Convert the plain '
                         'network, or give a size rows by add_scale().')
    others = _left_behind(model)
    if not any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise ValueError('`model` must have batch normalization to give each '
                         f'scale its own, but {type(model).__name__} has '
                         f'{others or "none"}. Build it with '
                         'nn.BatchNorm2d, or train it without SSBN: '
                         'SCTLossHook(scales=...).')
    changing = (layers_to_change(model, scales, rank, unchanged) if rank
                else [])
    model = replace_modules(
        model, lambda m: _with_rows(m, scales) if isinstance(m, _BatchNorm)
        and not isinstance(m, ScaleSpecificNorm) else None)
    add_changes(changing, scales, rank)
    refresh_averages(model)
    if others:
        warnings.warn(f'{type(model).__name__} keeps {others}, the same for '
                      'all scales: only batch normalization of torch becomes '
                      'SSBN.', stacklevel=2)
    return model


@MODELS.register_module()
def WithSSBN(model: dict | nn.Module,
             scales: Sequence[int] = DEFAULT_SCALES,
             data_preprocessor: Any | None = None,
             rank: int = 0,
             unchanged: Sequence[str] = ()) -> nn.Module:
    """Build the model of another config and convert its norms to SSBN. It
    serves norms that no ``norm_cfg`` reaches (timm, torchvision), and norms
    with options that a ``norm_cfg`` of one's own would drop. No wrapper stays.

    Args:
        model: config of the model, or the model.
        scales: see :class:`SSBN`.
        data_preprocessor: of the inner model, if its config has none:
            mmengine's Runner gives it to the outermost config.
        rank: of a private change of the weights at each scale below the
            base, see :func:`convert_to_ssbn`; 0: none.
        unchanged: names of layers without such a change, whose weights their
            module reads itself; tools/adapt.py finds them.

    Raises:
        TypeError: for a model that is neither, and as
            :func:`convert_to_ssbn`.
    """
    scales = check_scales(scales)
    if isinstance(model, dict) and 'type' in model:
        config = dict(model)
        if data_preprocessor is not None:
            config.setdefault('data_preprocessor', data_preprocessor)
        return convert_to_ssbn(MODELS.build(config), scales, rank,
                               unchanged)
    if not isinstance(model, nn.Module) or data_preprocessor is not None:
        got = type(model).__name__
        raise TypeError('`model` of WithSSBN must be the config of a model, '
                        f'but got a {got}. Write model=_base_.model; a model '
                        'that is built has its data_preprocessor.')
    return convert_to_ssbn(model, scales, rank, unchanged)
