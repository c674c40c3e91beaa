"""The images that a network ended its training on, without those that no test
shows."""
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..utils.config_walk import host_model, pipelines_of, type_name
from .rescale_pipeline import (
    nominal_size,
    sized_part,
    smallest_size,
    train_sizes,
)
from .size_transforms import edges_of, paths_in

# Hooks that exchange the pipeline at an epoch -> the pipelines, in order.
STAGES: dict[str, Callable[[dict], list]] = {
    # mmdetection, mmyolo
    'PipelineSwitchHook': lambda hook: [hook.get('switch_pipeline')],
    # mmyolo; that of mmdetection has names of transforms to skip
    'YOLOXModeSwitchHook': lambda hook: [hook.get('new_train_pipeline')],
    # mmpose
    'YOLOXPoseModeSwitchHook': lambda hook: [hook.get('new_train_pipeline')],
    'RTMOModeSwitchHook': lambda hook: [],
    # mmpretrain
    'SwitchRecipeHook': lambda hook: [
        recipe.get('train_pipeline') for recipe in sorted(
            hook.get('schedule') or (), key=lambda r: r['action_epoch'])],
}
# Data sets that show an image of another several times in an epoch.
_REPEATS = ('RepeatDataset', 'ClassBalancedDataset')
# Transforms that mix images, or cover parts of them.
_MIXES = (
    'Mosaic', 'CachedMosaic', 'Mosaic9', 'MixUp', 'CachedMixUp', 'YOLOXMixUp',
    'YOLOv5MixUp', 'CopyPaste', 'YOLOv5CopyPaste', 'RandomErasing', 'CutOut',
    'Cutout', 'RandomCutOut', 'RandomMosaic', 'GridMask')
# What does so to a batch, or resizes it, by the path of its setting.
_BATCH = (
    ('train_cfg', 'augments'),  # mmpretrain
    ('data_preprocessor', 'batch_augments'),  # mmpretrain, mmdetection
    ('data_preprocessor', 'blending'),  # mmaction2
)
# mmdetection, mmyolo: resize each batch to a size drawn by chance.
BATCH_RESIZES = ('BatchSyncRandomResize', 'YOLOXBatchSyncRandomResize',
                 'PPYOLOEBatchRandomResize')


def later_pipelines(cfg: dict) -> Iterator[list]:
    """The pipelines to which hooks of ``cfg`` switch, in their order."""
    for hook in cfg.get('custom_hooks') or ():
        stages = STAGES.get(type_name(hook)) if isinstance(hook,
                                                           dict) else None
        for pipeline in stages(hook) if stages else ():
            if pipeline:
                yield pipeline


def all_pipelines(cfg: dict) -> list[list]:
    """The pipelines of the training of ``cfg``: its first, then later ones."""
    return [*pipelines_of(cfg.get('train_dataloader') or {}),
            *later_pipelines(cfg)]


def _is_left_out(transform: Any, skipped: tuple[str, ...]) -> bool:
    """A ``border`` below 0 cuts a mosaic, which is twice as large."""
    if not isinstance(transform, dict):
        return False
    border = transform.get('border')
    return type_name(transform) in (*_MIXES, *skipped) or (
        isinstance(border, (list, tuple)) and min(border) < 0)


def _cleaned(transform: Any, skipped: tuple[str, ...]
             ) -> tuple[list, list[str]]:
    """``transform`` in a list, empty if it is left out, without those that it
    holds and that are left out; and the names of all of these. A choice loses
    the alternatives that have one."""
    if _is_left_out(transform, skipped):
        return [], [type_name(transform)]
    inner = transform.get('transforms') if isinstance(transform, dict) else ()
    if not isinstance(inner, (list, tuple)):
        return [copy.deepcopy(transform)], []
    names: list[str] = []
    kept: list = []
    for each in inner:
        group = isinstance(each, (list, tuple))
        parts = [_cleaned(one, skipped) for one in (each if group
                                                    else [each])]
        found = [name for _, left_out in parts for name in left_out]
        names += found
        new = [one for part, _ in parts for one in part]
        if not (found and type_name(transform) == 'RandomChoice'):
            kept += [new] if group else new
    return [dict(transform, transforms=kept)] if kept or not inner else [
    ], names


def _without(pipeline: list, skipped: tuple[str, ...],
             test: list | None) -> tuple[list, list[str]]:
    """``pipeline`` without transforms that no test shows, and their names. If
    one of them had set the size, those of the ``test`` pipeline do."""
    kept: list = []
    names: list[str] = []
    place = None
    for transform in pipeline:
        new, found = _cleaned(transform, skipped)
        names += found
        if found and place is None:
            place = len(kept)
        kept += new
    ways = [way for way in paths_in(test or []) if way]
    if place is not None and ways and not train_sizes(kept):
        kept[place:place] = copy.deepcopy(sized_part(ways[0]))
    return kept, names


def last_stage(cfg: dict) -> tuple[dict, list[str]]:
    """The training set of ``cfg`` with the pipeline that its network ended
    the training on, and the names of the transforms that are left out, since
    test images never show what they do: mosaics, mixed and erased images.
    Each image counts once (:func:`_without_repeats`).

    Returns:
        A copy of the config of the data set, and the names.
    """
    dataset = _without_repeats(copy.deepcopy(
        cfg['train_dataloader'].get('dataset')))
    hooks = [hook for hook in cfg.get('custom_hooks') or ()
             if isinstance(hook, dict)]
    skipped = tuple(name for hook in hooks
                    if type_name(hook) == 'YOLOXModeSwitchHook'
                    for name in hook.get('skip_type_keys') or ())
    test = next(iter(pipelines_of(cfg.get('test_dataloader') or {})), None)
    later = list(later_pipelines(cfg))
    names: list[str] = []
    for part, outer in _parts(dataset):
        pipeline = part['pipeline']
        part['pipeline'], left_out = _without(pipeline, skipped, test)
        names += left_out
        if later and outer:
            part['pipeline'], left_out = _without(later[-1], skipped, test)
            names += left_out
    return dataset, list(dict.fromkeys(names))


def _without_repeats(dataset: Any) -> Any:
    """The config ``dataset`` without data sets that repeat images: of an
    image with several indices one might be held out, and another train."""
    while isinstance(dataset, dict) and type_name(dataset) in _REPEATS:
        dataset = dataset['dataset']
    if isinstance(dataset, dict):
        if dataset.get('dataset') is not None:
            dataset['dataset'] = _without_repeats(dataset['dataset'])
        if dataset.get('datasets'):
            dataset['datasets'] = list(map(_without_repeats,
                                           dataset['datasets']))
    return dataset


def _parts(dataset: Any, outer: bool = True) -> Iterator[tuple[dict, bool]]:
    """Each data set within ``dataset`` that has a pipeline, and whether none
    around it has: ``MultiImageMixDataset`` adds one to that of its images."""
    if not isinstance(dataset, dict):
        return
    has = dataset.get('pipeline') is not None
    if has:
        yield dataset, outer
    for child in (dataset.get('dataset'), *(dataset.get('datasets') or ())):
        yield from _parts(child, outer and not has)


def without_batch_mixes(cfg: dict) -> tuple[dict, list[str]]:
    """A copy of ``cfg`` that trains on each image as it is: without mixes of
    a batch's images and sizes drawn for a batch; and their names. Where no
    transform sets a size (PPYOLOE), all batches get that of a test."""
    cfg = copy.deepcopy(cfg)
    names: list[str] = []
    for owner, (holder, name) in itertools.product(
            (host_model(cfg['model']), cfg), _BATCH):
        settings: Any = owner.get(holder) or {}
        found = settings.get(name)
        if isinstance(found, (list, tuple)) and name == 'batch_augments':
            names += [type_name(each) for each in found
                      if type_name(each) in BATCH_RESIZES]
            settings[name] = _of_one_size(found, cfg)
        elif found:
            inner = (found.get('augments', found)
                     if isinstance(found, dict) else found)
            each = inner if isinstance(inner, (list, tuple)) else [inner]
            names += [type_name(one) if isinstance(one, dict) else str(one)
                      for one in each]
            del settings[name]
    return cfg, names


def _batch_augments(cfg: dict) -> list[dict]:
    host = host_model(cfg.get('model') or {})
    preprocessor = host.get('data_preprocessor') or cfg.get(
        'data_preprocessor') or {}
    augments = preprocessor.get('batch_augments')
    return list(augments) if isinstance(augments, (list, tuple)) else []


def _of_one_size(augments: Sequence[dict], cfg: dict) -> list[dict]:
    """``augments`` of a batch without those that draw its size, or with the
    size of a test if the pipelines of ``cfg`` leave the size to them."""
    if not any(type_name(each) in BATCH_RESIZES for each in augments):
        return list(augments)
    test = next(iter(pipelines_of(cfg.get('test_dataloader') or {})), None)
    if any(map(train_sizes, all_pipelines(cfg))) or not test:
        return [each for each in augments
                if type_name(each) not in BATCH_RESIZES]
    size = nominal_size(test)
    return [{**each, 'random_size_range': (size, size)}
            if type_name(each) in BATCH_RESIZES else each
            for each in augments]


def batch_resize(cfg: dict) -> str | None:
    """The name of a batch augment that draws the size of each batch."""
    return next((type_name(each) for each in _batch_augments(cfg)
                 if type_name(each) in BATCH_RESIZES
                 and len(_drawn_sizes(each)) != 1), None)


def _drawn_sizes(resize: dict) -> set[int]:
    """The smallest and the largest size in pixels that one of
    ``BATCH_RESIZES`` draws."""
    divisor = resize.get('size_divisor', 32)
    return {round(edge / divisor) * divisor
            for edge in resize.get('random_size_range') or ()}


def _fixed_size(cfg: dict) -> int | None:
    """The shorter edge in pixels of the one size to which ``cfg`` resizes
    each batch behind its pipeline: by mmdetection's ``BatchResize``
    (CrowdDet), or by one of ``BATCH_RESIZES`` that draws a single size."""
    for each in _batch_augments(cfg):
        if type_name(each) == 'BatchResize':
            return int(min(edges_of(each['scale'])))
        if type_name(each) in BATCH_RESIZES and len(_drawn_sizes(each)) == 1:
            return _drawn_sizes(each).pop()
    return None


def sizes_in_training(cfg: dict) -> list[tuple[int, ...]]:
    """The nominal sizes in pixels of the images of each training pipeline of
    ``cfg``, later ones included (:func:`train_sizes`), or the one to which
    batches are resized behind all of them."""
    fixed = _fixed_size(cfg)
    if fixed:
        return [(fixed, )]
    return [train_sizes(pipeline) for pipeline in all_pipelines(cfg)]


def smallest_in_training(cfg: dict) -> int:
    """The nominal size in pixels of the smallest training images of ``cfg``;
    0 if they may have any (:func:`smallest_size`). A batch is resized with
    its padding, so that an image of it may be smaller."""
    if _fixed_size(cfg):
        return 0
    return min(map(smallest_size, all_pipelines(cfg)), default=0)
