"""Draw one image at several sizes, with the class or the boxes that a network
finds at each."""
import argparse
import copy
import os.path as osp
from collections.abc import Sequence
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, DefaultScope
from torch import nn

from sct_mm.datasets.base_size import BaseSize, base_size, test_base
from sct_mm.datasets.image_folder import loads_images
from sct_mm.datasets.multi_scale_batch import MultiScaleBatch, padding_of
from sct_mm.datasets.rescale_pipeline import rescale_pipeline
from sct_mm.datasets.size_switch import SizeSwitch
from sct_mm.engine.load_model import loaded_model
from sct_mm.engine.loops import check_sizes
from sct_mm.engine.resume import find_checkpoint
from sct_mm.evaluation.plots import new_figure, save_plot
from sct_mm.export.preparation import channels_of
from sct_mm.models.cascade import (
    check_cascade_sizes,
    check_thresholds,
    scores_in,
)
from sct_mm.models.pinning import use_scale
from sct_mm.models.size_selection import scales_of
from sct_mm.utils.arguments import check_number
from sct_mm.utils.checkpoint import check_checkpoint, check_outputs
from sct_mm.utils.cli import add_cfg_options, cli
from sct_mm.utils.config import check_test_data, check_test_set, load_config
from sct_mm.utils.config_walk import pipelines_in, type_name
from sct_mm.utils.errors import UserError
from sct_mm.utils.safe_load import protected_loading
from sct_mm.utils.sizes import Sizes, expand_sizes

PANEL = 2.6  # width of an image in the figure, inches


class View(NamedTuple):
    """An image at ``size`` pixels, and what the network finds.

    ``pixels`` are (H, W) or (H, W, 3), from 0 to 255; ``scores`` (classes,)
    are those of a classifier. The ``boxes`` of mmdet are in pixels of the
    original image, whose height and width are ``shape``.
    """
    size: int
    pixels: np.ndarray
    scores: torch.Tensor | None = None
    boxes: Any = None
    shape: tuple | None = None


def samples_of(cfg: Config, image: int | str, sizes: Sequence[int],
               channels: int) -> list[dict]:
    """The output of the test pipeline for the image at each of ``sizes``.

    Args:
        image: an index in the test set, or the path of a file, which has
            no annotations.
        channels: 1 for a grey image, 3 for color.

    Raises:
        UserError: for an index or a file that does not exist.
    """
    if isinstance(image, int):
        check_test_data(cfg)
        config = cfg.test_dataloader.dataset
        dataset = DATASETS.build(config)
        if not 0 <= image < len(dataset):
            raise UserError(f'The image must be one of {len(dataset)} of '
                            f'the test set, but got {image}. Name one from '
                            f'0 to {len(dataset) - 1}, or a file.')
        switch, samples = SizeSwitch(dataset, config, sizes,
                                     test_base(cfg, config)), []
        for size in sizes:
            with switch.at(size):
                samples.append(dataset[image])
        return samples
    if not osp.isfile(image):
        raise UserError(f'The image must be a file, but got {image!r}. '
                        'Name one, or the index of one of the test set.')
    pipeline = _pipeline_of(cfg)
    tested = test_base(cfg, cfg.test_dataloader.dataset)
    order = 'bgr' if loads_images(pipeline) else 'rgb'
    return [Compose(_of_a_file(rescale_pipeline(pipeline, size, tested)))(
        _read(image, channels, order)) for size in sizes]


def _pipeline_of(cfg: Config) -> list[dict]:
    return next(pipelines_in(cfg.test_dataloader.dataset))[1]


def _read(path: str, channels: int, order: str) -> dict:
    """The input of a pipeline for an image in a file.

    Args:
        order: of colours, 'bgr' or 'rgb'.

    Raises:
        UserError: for a file that OpenCV cannot read.
    """
    try:
        pixels = mmcv.imread(path, 'grayscale' if channels == 1 else 'color',
                             channel_order=order)
    except Exception:  # OpenCV raises several for an empty file
        pixels = None
    if pixels is None:
        raise UserError(f'The image must be a file that OpenCV reads, but '
                        f'got {path!r}. Convert it, e.g. to PNG.')
    return dict(img=pixels, img_shape=pixels.shape[:2], img_id=0,
                ori_shape=pixels.shape[:2], img_path=path)


def _of_a_file(pipeline: list[dict]) -> list[dict]:
    """``pipeline`` without annotations, and with a local file to read, in the
    way that it reads files (as grey, or as floats)."""
    for transform in pipeline:
        if type_name(transform) == 'LoadImageFromFile':
            for name in ('backend_args', 'file_client_args'):
                transform.pop(name, None)
    return [transform for transform in pipeline
            if type_name(transform) != 'LoadAnnotations']


def as_pixels(image: torch.Tensor, preprocessor: Any = None,
              order: str = 'RGB') -> np.ndarray:
    """(C, H, W) as (H, W) or (H, W, 3), from 0 to 255, without the
    normalization of ``preprocessor``.

    Args:
        order: of the channels (:func:`channels_of`); the result is RGB.
    """
    image = image.float().cpu()
    mean = getattr(preprocessor, 'mean', None)
    if mean is not None:
        image = image * preprocessor.std.cpu() + mean.cpu()
    elif preprocessor is not None:
        low, high = image.min(), image.max()
        image = 255 * (image - low) / (high - low).clamp(min=1e-12)
    if order == 'BGR':
        image = image.flip(0)
    pixels = image.clamp(0, 255).numpy()
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


@torch.no_grad()
def classified(model: nn.Module, sample: dict, sizes: Sequence[int],
               base: BaseSize, order: str) -> list[View]:
    """A view per size, the smallest first. ``sample`` has the largest size and
    is resized as by SCTLossHook and by Cascade; ``order`` is that of the
    network's channels."""
    preprocessor, views = model.data_preprocessor, []
    inputs = preprocessor(dict(inputs=[sample['inputs']]), False)['inputs']
    padding = padding_of(model)
    for size in sizes:
        resized = MultiScaleBatch(size, sizes[-1], **padding)(
            dict(inputs=inputs))['inputs']
        with use_scale(model, base.scale_at(size)):
            scores = scores_in(model(resized, mode='predict'))[0]
        views.append(View(size, as_pixels(resized[0], preprocessor, order),
                          scores))
    return views


@torch.no_grad()
def detected(model: nn.Module, samples: Sequence[dict],
             sizes: Sequence[int], base: BaseSize,
             least: float) -> list[View]:
    """A view per size, each of its sample, with the boxes whose score is at
    least ``least``.

    Raises:
        UserError: if the network does not find boxes.
    """
    views = []
    for size, sample in zip(sizes, samples, strict=True):
        with use_scale(model, base.scale_at(size)):
            found = model.test_step(dict(
                inputs=[sample['inputs']],
                data_samples=[copy.deepcopy(sample['data_samples'])]))[0]
        instances = getattr(found, 'pred_instances', None)
        if instances is None or 'bboxes' not in instances:
            raise UserError('The network must be a classifier or find boxes, '
                            f'but {type(model).__name__} gives neither. Use '
                            "its host's inferencer.")
        views.append(View(size, as_pixels(sample['inputs'], order='BGR'),
                          boxes=instances[instances.scores >= least],
                          shape=tuple(found.ori_shape)))
    return views


def stop_of(views: Sequence[View], thresholds: Sequence[float]) -> int:
    """Index of the view at which a cascade stops."""
    for index, threshold in enumerate(thresholds):
        if views[index].scores.max() > threshold:
            return index
    return len(views) - 1


def classes_of(cfg: Config, checkpoint: dict) -> Sequence[str]:
    """The names of the classes in the checkpoint or in the data set; empty if
    neither has them."""
    meta = checkpoint.get('meta') or {}
    known = dict(meta.get('dataset_meta') or {})
    config = next(iter(_parts(cfg.test_dataloader.dataset)))
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = config.get('type')
        kind = registry.get(kind) if isinstance(kind, str) else kind
    return (known.get('classes') or known.get('CLASSES')
            or dict(config.get('metainfo') or {}).get('classes')
            or (getattr(kind, 'METAINFO', None) or {}).get('classes') or ())


def _parts(dataset: dict) -> list[dict]:
    """The configs of the data sets within ``dataset``."""
    inner = dataset.get('datasets') or [dataset['dataset']
                                        ] if 'pipeline' not in dataset else []
    return [part for each in inner for part in _parts(each)] or [dataset]


@protected_loading()
def show_sizes(config: str, checkpoint: str, image: int | str,
               out: str, sizes: Sizes | None = None,
               thresholds: float | Sequence[float] | None = None,
               least: float = 0.3, force: bool = False,
               cfg_options: dict | None = None) -> dict:
    """Draw one image at several sizes into a PNG.

    For a classifier, the image is resized as by SCTLossHook and by Cascade;
    class and confidence are drawn, and with ``thresholds`` the size at which a
    Cascade stops. For a detector, the test pipeline resizes the image, and
    boxes are drawn.

    Args:
        image: an index in the test set, or the path of a file.
        out: path of the PNG.
        sizes: pixels, also as ranges (:func:`expand_sizes`); None: the
            trained sizes, else that of the config.
        thresholds: of a cascade over the sizes: one, or one for each size but
            the largest.
        least: score from which boxes are drawn; 0.3 is mmdet's default, too.
        force: overwrite ``out``.

    Returns:
        dict: ``views``, a :class:`View` per size, the smallest first;
        ``stop``, the index of the view at which a cascade stops, or None;
        ``classes``, their names; ``truth``, the class of the image, or None.

    Raises:
        UserError, TypeError, ValueError: for an argument that does not fit, a
            missing file, an ``out`` that exists, or a cascade of a detector.
    """
    check_outputs([out], force, ending='.png')
    check_number('least', least, 0, 'The default is 0.3.', 1)
    wanted = None if sizes is None else expand_sizes(sizes)
    cfg = load_config(config, cfg_options)
    check_test_set(cfg)
    checkpoint = find_checkpoint(checkpoint, cfg)
    weights = check_checkpoint(checkpoint)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = loaded_model(cfg, weights, checkpoint)
        base = base_size(cfg, scales_of(model))
        if wanted is None and scales_of(model) is None:
            wanted = [base.test]
        found = views_of(model, cfg, image, base, check_sizes(
            wanted, model, base=base)[::-1], thresholds, least)
        found['classes'] = classes_of(cfg, weights)
    draw(found, str(image), out)
    return found


def views_of(model: nn.Module, cfg: Config, image: int | str,
             base: BaseSize, sizes: Sequence[int],
             thresholds: float | Sequence[float] | None,
             least: float) -> dict:
    """The result of :func:`show_sizes` without ``classes``; ``sizes`` go from
    the smallest up."""
    limits = None if thresholds is None else check_thresholds(
        thresholds, check_cascade_sizes(sizes))
    mean = getattr(model.data_preprocessor, 'mean', None)
    first = next((p for p in model.parameters() if p.dim() == 4), None)
    channels = len(mean) if mean is not None else (
        3 if first is None else first.shape[1])
    if channels not in (1, 3):
        raise UserError('The images must have 1 or 3 channels to be shown, '
                        f'but the network takes {channels}. Test it by '
                        'tools/test.py.')
    samples = samples_of(cfg, image, sizes, channels)
    sample = samples[-1].get('data_samples')
    if not hasattr(sample, 'gt_instances'):  # every sample of mmdet has them
        views = classified(model, samples[-1], sizes, base, channels_of(
            channels, _pipeline_of(cfg), model.data_preprocessor))
    elif limits is None:
        views = detected(model, samples, sizes, base, least)
    else:
        raise UserError('A cascade serves classifiers, but '
                        f'{type(model).__name__} finds boxes. Leave '
                        '--cascade out.')
    truth = getattr(sample, 'gt_label', None)
    if truth is not None and truth.numel() != 1:
        truth = None  # several labels
    return dict(views=views, truth=None if truth is None else int(truth),
                stop=None if limits is None else stop_of(views, limits))


def class_name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else f'class {label}'


def draw(found: dict, title: str, path: str) -> None:
    """Draw the result of :func:`show_sizes` into a PNG, the smallest size on
    the left. All images are drawn equally large, which shows their pixels."""
    views, stop = found['views'], found['stop']
    height, width = views[-1].shape or views[-1].pixels.shape[:2]
    figure, axes = new_figure(PANEL * len(views),
                              PANEL * height / width + 0.9, len(views))
    for index, (view, axis) in enumerate(zip(views, axes, strict=True)):
        if view.scores is not None:
            axis.imshow(view.pixels / 255, cmap='gray', vmin=0, vmax=1,
                        interpolation='nearest')
            label = int(view.scores.argmax())
            text = (f'{class_name(label, found["classes"])} '
                    f'{float(view.scores[label]):.2f}')
        else:
            text = _draw_boxes(axis, view, found['classes'])
        axis.set_title(f'{view.size} pixels\n{text}', fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        if stop is not None:
            _mark(axis, index, stop)
    if found['truth'] is not None:
        title += f': {class_name(found["truth"], found["classes"])}'
    figure.suptitle(f'image {title}', fontsize=10)
    save_plot(figure, path, 100)


def _draw_boxes(axis: Any, view: Any, classes: Sequence[str]) -> str:
    """Draw the image and its boxes; return their number as a text."""
    height, width = view.shape[:2]
    # The boxes are in pixels of the original image.
    axis.imshow(view.pixels / 255, cmap='gray', vmin=0, vmax=1,
                interpolation='nearest', extent=(0, width, height, 0))
    boxes = view.boxes
    for box, label, score in zip(boxes.bboxes.tolist(),
                                 boxes.labels.tolist(),
                                 boxes.scores.tolist(), strict=True):
        color = f'C{label % 10}'
        axis.add_patch(Rectangle(box[:2], box[2] - box[0], box[3] - box[1],
                                 fill=False, color=color, linewidth=1.5))
        axis.text(box[0], box[1], f'{class_name(label, classes)} {score:.2f}',
                  fontsize=6, color='white', clip_on=True,
                  verticalalignment='bottom', bbox=dict(
                      facecolor=color, linewidth=0, pad=0.5, alpha=0.8))
    return f'{len(boxes)} boxes' if len(boxes) != 1 else '1 box'


def _mark(axis: Any, index: int, stop: int) -> None:
    """Frame the size at which a cascade stops, and label all sizes."""
    text = ('unsure, goes up' if index < stop
            else 'decided here' if index == stop else 'not run')
    color, width = ('C2', 4) if index == stop else ('0.4', 1)
    axis.set_xlabel(text, fontsize=10, color=color)
    for spine in axis.spines.values():
        spine.set(color=color, linewidth=width)


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint, or of a '
                        'work directory: its newest whole one')
    parser.add_argument('image', help='index in the test set, or a file')
    parser.add_argument(
        '--sizes', nargs='+', metavar='PIXELS',
        help='numbers, ranges such as 128:224:16, or both; default: the '
        'trained scales')
    parser.add_argument(
        '--cascade', nargs='+', type=float, metavar='THRESHOLD',
        help='show where a cascade over the sizes stops: one threshold, or '
        'one for each size but the largest')
    parser.add_argument(
        '--least', type=float, default=0.3, metavar='SCORE',
        help="of a detector's boxes that are drawn; default: 0.3")
    parser.add_argument(
        '--out', required=True, metavar='PNG', help='file to write')
    parser.add_argument(
        '--force', action='store_true', help='overwrite --out')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.image.isdecimal():
        args.image = int(args.image)
    return args


def main() -> None:
    args = parse_args()
    found = show_sizes(args.config, args.checkpoint, args.image, args.out,
                       args.sizes, args.cascade, args.least, args.force,
                       args.cfg_options)
    sizes = ', '.join(str(view.size) for view in found['views'])
    stop = ('' if found['stop'] is None else '; the cascade stops at '
            f'{found["views"][found["stop"]].size}')
    print(f'{args.out}: the image at {sizes} pixels{stop}.')


if __name__ == '__main__':
    cli(main)
