"""The forms that a preprocessed batch has in OpenMMLab: where its images are,
how many and how large they are, and how it is cut into shares.

| ``inputs`` | of |
|---|---|
| (N, C, H, W) | most networks |
| (N, S, C, H, W), (N, C, T, H, W), (N, M, C, T, H, W) | mmaction2 |
| a list of views (N, C, H, W), also of several sizes | self-supervised |
| a dict with one of these tensors, and lists of N | mmdet3d, mmaction2 |

``data_samples`` is a list of N samples, or mmyolo's dict (``_COLLATED``).
"""
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .data_samples import content_of, is_padded
from .sample_fields import Geometry, Shape, boxes_at, unchanged

_IMAGES = ('imgs', 'img', 'images', 'image')  # in a dict
# mmpretrain's, whose lists hold views of the same images.
_VIEWS = ('SelfSupDataPreprocessor', 'TwoNormDataPreprocessor')
_FIX = ('Use a model and a data preprocessor whose batches have one of the '
        'forms of docs/batches.md.')


def views_of(batch: dict) -> list[Tensor]:
    """The tensors of ``inputs`` that hold images, (N, ..., H, W) each."""
    inputs = batch['inputs']
    if isinstance(inputs, dict):
        return [inputs[key] for key in _IMAGES if key in inputs]
    return list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]


def with_views(batch: dict, change: Callable[[Tensor], Tensor]) -> dict:
    """``batch`` with each of its views changed, in the same form."""
    inputs = batch['inputs']
    if isinstance(inputs, dict):
        inputs = {key: change(value) if key in _IMAGES else value
                  for key, value in inputs.items()}
    elif isinstance(inputs, (list, tuple)):
        inputs = type(inputs)(map(change, inputs))
    else:
        inputs = change(inputs)
    return {**batch, 'inputs': inputs}


def number_of_images(batch: dict) -> int:
    return len(views_of(batch)[0])


def image_shape(batch: dict) -> Shape:
    """(H, W) of the largest view in pixels, with padding; its shorter edge is
    the size at which a network runs."""
    height, width = max((view.shape[-2:] for view in views_of(batch)),
                        key=lambda shape: (min(shape), max(shape)))
    return height, width


def contents_of(batch: dict) -> list[tuple[Shape, Shape]]:
    """For each image :func:`content_of`; of several views, without padding."""
    samples, shape = batch.get('data_samples'), image_shape(batch)
    if not isinstance(samples, (list, tuple)) or len(views_of(batch)) > 1:
        return [((0, 0), shape)] * number_of_images(batch)
    return [content_of(sample, shape) for sample in samples]


def pads_images(batch: dict) -> bool:
    """Whether images are padded as in detection, see :func:`is_padded`."""
    samples = batch.get('data_samples')
    return (isinstance(samples, (list, tuple)) and len(samples) > 0
            and is_padded(samples[0]))


def nominal_shapes(batch: dict) -> list[Shape]:
    """(H, W) of what is compared with a scale: of each image without its
    padding if :func:`pads_images`, else of the largest view."""
    if pads_images(batch):
        return [shape for _, shape in contents_of(batch)]
    return [image_shape(batch)]


def share_of(batch: dict, images: slice) -> dict:
    """The images and samples of ``batch`` in a slice."""
    part = with_views(batch, lambda view: view[images])
    if isinstance(part['inputs'], dict):
        part['inputs'] = {key: value if key in _IMAGES else value[images]
                          for key, value in part['inputs'].items()}
    samples: Any = batch.get('data_samples')
    if is_collated(samples):
        part['data_samples'] = _share_of_collated(
            samples, images, number_of_images(batch))
    elif samples is not None:
        part['data_samples'] = samples[images]
    return part


def _collated_boxes(rows: Tensor, geometry: Geometry) -> Tensor:
    return torch.cat([rows[:, :2].to(torch.promote_types(
        rows.dtype, torch.float32)), boxes_at(rows[:, 2:], geometry)], 1)


def _collated_masks(masks: Tensor, geometry: Geometry) -> Tensor:
    """Masks (n, h, w), which mmyolo may make at a part of the image's size,
    padded as the image."""
    shape = [max(round(edge * factor), 1) for edge, factor in zip(
        masks.shape[-2:], geometry.factor[::-1], strict=True)]
    padded = [max(round(edge * after / before), old) for edge, after, before,
              old in zip(masks.shape[-2:], geometry.padded, geometry.batch,
                         shape, strict=True)]
    resized = F.interpolate(masks[None].float(), shape, mode='nearest')[0]
    return F.pad(resized, (0, padded[1] - shape[1], 0,
                           padded[0] - shape[0])).to(masks.dtype)


# What mmyolo's yolov5_collate packs of n instances: (n, 6) of image, class
# and box, or (n, 7) if boxes are rotated; masks (n, h, w) or, if they overlap,
# (N, h, w).
_COLLATED: dict[str, Callable[[Any, Geometry], Any]] = dict(
    bboxes_labels=_collated_boxes,
    masks=_collated_masks,
    keypoints=lambda points, geometry: geometry.moved(points),
    keypoints_visible=unchanged,
    img_metas=lambda metas, geometry: [
        {**meta, 'batch_input_shape': geometry.padded} for meta in metas])


def is_collated(samples: Any) -> bool:
    """Whether ``data_samples`` are mmyolo's of a whole batch."""
    return (isinstance(samples, dict)
            and isinstance(samples.get('bboxes_labels'), Tensor))


def resized_collated(samples: dict, geometry: Geometry) -> dict:
    return {name: _COLLATED[name](value, geometry)
            for name, value in samples.items()}


def _share_of_collated(samples: dict, images: slice, count: int) -> dict:
    start, stop, _ = images.indices(count)
    rows = samples['bboxes_labels']
    chosen = (rows[:, 0] >= start) & (rows[:, 0] < stop)
    part = {}
    for name, value in samples.items():
        # An image has one mask, or each of its instances has one.
        by_image = name == 'img_metas' or name == 'masks' and (
            len(value) == count and (len(rows) != count or value.max() > 1))
        part[name] = value[images] if by_image else value[chosen]
    part['bboxes_labels'][:, 0] -= start
    return part


def check_batch(batch: dict) -> None:
    """Refuse a batch that :class:`MultiScaleBatch` cannot resize.

    Raises:
        TypeError: for images or samples of another form, and for other keys.
        ValueError: for a batch without images.
    """
    if not isinstance(batch, dict):
        raise TypeError('A batch at several scales must be a dict, but got '
                        f'a {type(batch).__name__}. {_FIX}')
    other = sorted(map(str, set(batch) - {'inputs', 'data_samples', 'mode'}))
    if other or 'inputs' not in batch:
        raise TypeError('A batch at several scales has the keys inputs, '
                        'data_samples and mode, but got '
                        f'{other or sorted(batch)}. {_FIX}')
    if not _is_known(batch['inputs']):
        raise TypeError(
            '`inputs` of a batch at several scales must be a tensor '
            '(N, C, H, W), (N, S, C, H, W) or (N, M, C, T, H, W), a list of '
            f'such views of the same images, or a dict with one of {_IMAGES} '
            f'and lists of N, but got {_form_of(batch["inputs"])}. {_FIX}')
    for view in views_of(batch):
        if not view.is_floating_point():
            raise TypeError('`inputs` must be floating point to be resized, '
                            f'but got {view.dtype}. Let the data '
                            'preprocessor normalise the images.')
        if not view.numel():
            raise ValueError('`inputs` of a batch at several scales must hold '
                             f'images, but got shape {tuple(view.shape)}. '
                             'Leave empty batches out.')
    _check_samples(batch.get('data_samples'), number_of_images(batch))


def check_views(batch: dict, model: Any) -> None:
    """Whether a list of ``inputs`` comes from a data preprocessor whose lists
    are views: another may list images, frames or pairs.

    Raises:
        TypeError: if it does not.
    """
    kind = type(getattr(model, 'data_preprocessor', None))
    if isinstance(batch['inputs'], (list, tuple)) and not any(
            base.__name__ in _VIEWS for base in kind.__mro__):
        raise TypeError(
            f'`inputs` of {type(model).__name__} must be a tensor, or views '
            f'that one of {_VIEWS} makes, but got '
            f'{_form_of(batch["inputs"])} from a {kind.__name__}. Derive the '
            'data preprocessor from one of these if the list holds views of '
            'the same images (docs/batches.md).')


def _is_known(inputs: Any) -> bool:
    """Whether ``inputs`` have a form of the table above."""
    if isinstance(inputs, dict):
        images = [inputs[key] for key in _IMAGES if key in inputs]
        others = [inputs[key] for key in inputs if key not in _IMAGES]
        return (len(images) == 1 and isinstance(images[0], Tensor)
                and _is_known(images[0]) and all(
                    isinstance(value, (list, tuple, Tensor))
                    and len(value) == len(images[0])
                    and getattr(value, 'ndim', 1) < 4 for value in others))
    views = inputs if type(inputs) in (list, tuple) else [inputs]
    return len(views) > 0 and all(
        isinstance(view, Tensor) and 4 <= view.dim() <= 6
        and len(view) == len(views[0]) for view in views)


def _form_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return f'shape {tuple(value.shape)}'
    if isinstance(value, (list, tuple)) and value:
        inner = ', '.join(dict.fromkeys(map(_form_of, value[:9])))
        return f'a {type(value).__name__} of {inner}'
    if isinstance(value, dict):
        return f'a dict of {sorted(map(str, value))}'
    return f'a {type(value).__name__}'


def _check_samples(samples: Any, images: int) -> None:
    if samples is None:
        return
    if is_collated(samples):
        other = sorted(map(str, set(samples) - set(_COLLATED)))
        rows = samples['bboxes_labels']
        if other or rows.dim() != 2 or rows.shape[1] not in (6, 7):
            raise TypeError('`data_samples` of a whole batch must be those of '
                            "mmyolo's yolov5_collate, bboxes_labels (n, 6) "
                            f'or (n, 7) and any of {list(_COLLATED)[1:]}, but '
                            f'got {other or _form_of(rows)}. {_FIX}')
        return
    if not isinstance(samples, (list, tuple)):
        raise TypeError('`data_samples` of a batch at several scales must be '
                        f'a list, but got a {type(samples).__name__}. {_FIX}')
    if len(samples) != images:
        raise TypeError('`data_samples` must be one for each image, but got '
                        f'{len(samples)} for {images} images. {_FIX}')
