"""What a host's model holds, beside its weights, for one size of its input."""
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from ..datasets.base_size import slides
from ..datasets.rescale_pipeline import nominal_size, rescale_pipeline
from ..utils.config_walk import pipelines_in
from ..utils.errors import UserError

# mmsegmentation: the windows of sliding inference.
_WINDOWS = ('crop_size', 'stride')
# mmpose: a codec that decodes keypoints knows its input and its heatmaps.
_CODEC = ('input_size', 'heatmap_size')
# mmpose: MSPN and RSN resize their heatmaps to (H, W).
_GRID = 'out_shape'


def _scaled(value: Any, ratio: float) -> Any:
    """Pixels, or a tuple or an array of them, times ``ratio``."""
    if isinstance(value, np.ndarray):
        return np.maximum(np.rint(value * ratio), 1).astype(value.dtype)
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(each, ratio) for each in value)
    return max(round(value * ratio), 1)


def _is_made(retriever: nn.Module) -> Callable:
    return lambda *args: hasattr(retriever, 'prototype_vecs')


def _udp_factor(codec: Any, value: Any, ratio: float) -> np.ndarray:
    """The stride of aligned corners, by the sizes that ``codec`` has."""
    size, grid = (np.array(getattr(codec, name)) - 1 for name in _CODEC)
    return (size / grid).astype(value.dtype)


def _windows(settings: Any, ratio: float) -> Any:
    """A copy of a segmentor's ``test_cfg`` with windows of another size."""
    settings = copy.deepcopy(settings)
    # A ConfigDict, as segmentors keep it, takes no pairs.
    settings.update({name: _scaled(settings[name], ratio)
                     for name in _WINDOWS if name in settings})
    return settings


def _gallery(prototype: Any, ratio: float) -> dict:
    """The data loader of a retriever's gallery, for another size.

    Raises:
        UserError: for a gallery that is no config of a data loader.
    """
    if not isinstance(prototype, dict):
        raise UserError('The gallery of a retriever must be the config of a '
                        'data loader to be made at several sizes, but got a '
                        f'{type(prototype).__name__}. Set `prototype` to a '
                        'dict.')
    prototype = copy.deepcopy(prototype)
    for _, pipeline in pipelines_in(prototype['dataset']):
        size = max(round(nominal_size(pipeline) * ratio), 1)
        pipeline[:] = rescale_pipeline(pipeline, size)
    return prototype


def _changes(model: nn.Module) -> Iterator[tuple[Any, str, Callable]]:
    """Each object with a setting for one size, its name, and the function
    (value, ratio) that makes that of another size."""
    for module in model.modules():
        if slides(getattr(module, 'test_cfg', None)):
            yield module, 'test_cfg', _windows
        if hasattr(module, 'prototype_inited'):  # of mmpretrain's retrievers
            yield module, 'prototype', _gallery
        if isinstance(module.__dict__.get(_GRID), (list, tuple)):
            yield module, _GRID, _scaled
        decoder = module.__dict__.get('decoder')
        for codec in (decoder, *vars(decoder).values()
                      ) if hasattr(decoder, '__dict__') else ():
            for name in _CODEC:
                if getattr(codec, name, None) is not None:
                    yield codec, name, _scaled
            if getattr(codec, 'use_udp', False) and hasattr(codec,
                                                            'scale_factor'):
                yield codec, 'scale_factor', partial(_udp_factor, codec)


@contextmanager
def host_sizes(model: nn.Module, ratio: float,
               galleries: bool = True) -> Iterator[None]:
    """Within a ``with`` block, ``model`` has the settings for an input
    ``ratio`` times as large as that of its config: the windows of sliding
    inference (mmsegmentation), the codecs that decode keypoints and a fixed
    shape of heatmaps (mmpose), and the gallery of a retriever (mmpretrain),
    which is made anew.

    Args:
        galleries: whether galleries are made anew. A timer takes the one that
            is there, whatever its size.

    Raises:
        UserError: for a gallery that cannot be made at another size.
    """
    before = []
    try:
        for owner, name, change in (list(_changes(model)) if ratio != 1
                                    else ()):
            if name == 'prototype' and not galleries:
                name, change = 'prototype_inited', _is_made(owner)
            value = getattr(owner, name)
            scaled = change(value, ratio)
            before.append((owner, name, value))
            setattr(owner, name, scaled)
        _forget_galleries(before)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        _forget_galleries(before)


def _forget_galleries(changed: list[tuple[Any, str, Any]]) -> None:
    for owner, name, _ in changed:
        if name == 'prototype':
            owner.prototype_inited = False


def host_sizes_config(model: Any, ratio: float) -> Any:
    """A copy of a model's config with the settings of :func:`host_sizes`."""
    if isinstance(model, (list, tuple)):
        return type(model)(host_sizes_config(each, ratio) for each in model)
    if not isinstance(model, dict):
        return model
    new = {name: host_sizes_config(value, ratio)
           for name, value in model.items()}
    if slides(new.get('test_cfg')):
        new['test_cfg'] = _windows(new['test_cfg'], ratio)
    if isinstance(new.get(_GRID), (list, tuple)):
        new[_GRID] = _scaled(new[_GRID], ratio)
    gallery = new.get('prototype')
    if isinstance(gallery, dict) and isinstance(gallery.get('dataset'), dict):
        new['prototype'] = _gallery(gallery, ratio)
    for codec in _codecs(new.get('decoder')):
        codec.update((name, _scaled(codec[name], ratio)) for name in _CODEC
                     if codec.get(name) is not None)
    return new


def _codecs(decoder: Any) -> list[dict]:
    return ([each for each in decoder if isinstance(each, dict)]
            if isinstance(decoder, (list, tuple))
            else [decoder] if isinstance(decoder, dict) else [])
