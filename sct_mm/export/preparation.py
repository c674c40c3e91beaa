"""Describe how a test pipeline prepares images, for users of a file who have
no pipeline: numpy in sct_mm.runtime, or C++ and JavaScript."""
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import Config

from ..datasets.base_size import test_base
from ..datasets.image_folder import loads_images
from ..datasets.rescale_pipeline import rescale_pipeline, sized_part
from ..datasets.size_transforms import paths_in
from ..utils.config_walk import pipelines_in, type_name

# What changes no pixel that the network gets.
_NO_STEP = ('LoadImageFromFile', 'PackInputs')


def _edges(value: Any) -> tuple[int, int]:
    """(width, height) of one number, or of both, as in mmcv."""
    return (value, value) if isinstance(value, int) else tuple(value)


def _way(transform: dict, interpolation: str) -> dict:
    """How mmcv resizes, by its defaults."""
    return dict(backend=transform.get('backend', 'cv2'),
                interpolation=transform.get('interpolation', interpolation))


def _resize(transform: dict) -> dict | None:
    if transform.get('keep_ratio') or 'scale' not in transform:
        return None
    width, height = _edges(transform['scale'])
    return dict(type='resize', height=height, width=width,
                **_way(transform, 'bilinear'))


def _resize_edge(transform: dict) -> dict | None:
    if transform.get('edge', 'short') != 'short':
        return None
    return dict(type='resize_short', edge=transform['scale'],
                **_way(transform, 'bilinear'))


def _center_crop(transform: dict) -> dict | None:
    if transform.get('auto_pad'):
        return None
    width, height = _edges(transform['crop_size'])
    return dict(type='center_crop', height=height, width=width)


def _efficientnet(transform: dict) -> dict | None:
    return dict(type='resized_center', edge=transform['crop_size'],
                padding=transform.get('crop_padding', 32),
                **_way(transform, 'bicubic'))


# {transform of mmcv or mmpretrain: its step of sct_mm.runtime}; None where its
# arguments ask for what is no step.
_STEPS: dict[str, Callable[[dict], dict | None]] = {
    'Resize': _resize, 'ResizeEdge': _resize_edge, 'CenterCrop': _center_crop,
    'EfficientNetCenterCrop': _efficientnet}


def steps_of(pipeline: Sequence[dict]) -> tuple[list[dict] | None, str]:
    """The steps of :mod:`sct_mm.runtime.prepare` that do what a test pipeline
    does to an image; None if there is no step for a part of it, and a clause
    that names this part."""
    sized = [part for way in paths_in(pipeline) if way
             for part in sized_part(way)]
    steps = []
    for transform in pipeline:
        name = type_name(transform)
        if name in _NO_STEP and not transform.get('to_float32'):
            continue
        step = _STEPS[name](transform) if name in _STEPS else None
        if step is None:
            return None, (f'{name} of the test pipeline has no step in '
                          'sct_mm.runtime')
        if not any(transform is each for each in sized):
            step['fixed'] = True  # as large at each size
        steps.append(step)
    return steps, ''


def channels_of(count: int, pipeline: Sequence[dict], preprocessor: Any
                ) -> str:
    """The order of ``count`` channels that the network takes: 'GRAY', 'RGB',
    'BGR', or '' for another number (:func:`loads_images`)."""
    if count not in (1, 3):
        return ''
    loads = loads_images(pipeline)
    turned = any(getattr(preprocessor, name, False)
                 for name in ('to_rgb', '_channel_conversion'))
    return 'GRAY' if count == 1 else 'BGR' if loads != turned else 'RGB'


def preparation(cfg: Config, size: int, count: int,
                preprocessor: Any) -> dict:
    """What the metadata of a graph's file says of how its images are made.

    Args:
        cfg: with a ``test_dataloader``.
        size: of the test images in pixels.
        count: channels of an image.
        preprocessor: the model's.
    """
    dataset = cfg.test_dataloader.dataset
    pipeline = rescale_pipeline(next(pipelines_in(dataset))[1], size,
                                test_base(cfg, dataset))
    steps, unknown = steps_of(pipeline)
    found: dict = dict(channels=channels_of(count, pipeline, preprocessor),
                       steps=steps)
    return {**found, 'unknown': unknown} if unknown else found
