"""Write one size of a trained network, or each, as an ordinary file."""
import json
import os.path as osp
from functools import partial
from numbers import Integral

from mmengine.config import Config
from torch import Tensor, nn

from ..datasets.base_size import base_size
from ..datasets.real_images import RealImages, training_images
from ..engine.load_model import loaded_model, state_in, warn_one_row
from ..engine.loops import check_sizes
from ..engine.resume import find_checkpoint
from ..evaluation.results_file import read_result, rows_of
from ..export.any_size_file import make_any_size, sizes_to_check
from ..export.files import MANIFEST, file_entry, paths_of, write_all
from ..export.formats import ANY_SIZE, WEIGHTS, check_format
from ..export.int8 import POINTS, check_enough, make_int8
from ..export.network import PARTS, is_multi_label
from ..export.preparation import preparation
from ..export.stock_config import config_text, plain_data
from ..export.verified_file import Request, VerifiedFile, make_file
from ..models.size_selection import scales_of
from ..utils.arguments import (
    StrPath,
    check_choice,
    check_int,
    check_number,
    check_path,
    optional_path,
)
from ..utils.checkpoint import check_checkpoint, check_outputs, meta_of
from ..utils.config import config_name, load_config
from ..utils.errors import UserError
from ..utils.safe_load import protected_loading

TOLERANCE = 1e-4  # of a graph's outputs
CALIBRATION = 128  # training images: MinMax needs few
IMAGES, INT8_IMAGES = 8, 512  # of the test set: 8 answers tell nothing
Size = int | str  # pixels, or 'any'


def check_request(request: Request, size: int | str) -> None:
    """Refuse arguments that do not fit each other, for whatever network.

    Raises:
        UserError, TypeError, ValueError: naming the argument.
    """
    if isinstance(size, bool) or not isinstance(size, (str, Integral)):
        raise UserError("`size` must be one size in pixels, 'all' or 'any', "
                        f'but got {size!r}. Export each by itself.')
    check_format(request.kind)
    if request.calibration and request.kind != 'onnx':
        raise UserError('`int8` is for the format onnx, but got '
                        f'{request.kind}. Give --format onnx.')
    if request.part is not None:
        check_choice('part', request.part, PARTS)
    if request.calibration and request.part == 'features':
        raise UserError("`int8` is for classifiers, but `part` is 'features', "
                        'which give no classes. Leave one of them out.')
    check_number('tolerance', request.tolerance, 0, 'Give e.g. 1e-4.')
    weights = request.kind in WEIGHTS
    if weights and (request.softmax or request.part):
        name = 'softmax' if request.softmax else 'part'
        raise UserError(f'`{name}` is for a graph, but the format '
                        f'{request.kind} holds weights. Leave it out'
                        + ('.' if request.softmax else
                           ', or set `prefix` to the name of a part.'))
    if size == 'any' and request.kind not in ANY_SIZE:
        raise UserError("`size='any'` needs a graph whose shapes are dynamic, "
                        f'but the format is {request.kind}. Set it to '
                        f'{" or ".join(ANY_SIZE)}, or give a size in pixels.')
    if size == 'any' and request.calibration:
        raise UserError("`int8` is for one size, but `size` is 'any'. Give a "
                        'size in pixels.')
    if request.prefix and not weights:
        raise UserError('`prefix` is for weights, but the format '
                        f'{request.kind} holds a graph. Leave it out, or set '
                        '`part`.')


def _dataset_meta(checkpoint: dict, images: RealImages) -> dict:
    """The class names and what else the data set says of itself."""
    return plain_data(meta_of(checkpoint).get('dataset_meta') or getattr(
        images.loader.dataset, 'metainfo', {}))


def _meta(cfg: Config, size: int, dataset_meta: dict) -> dict:
    """The ``meta`` of a file of weights: with its config and classes, the
    hosts' inferencers need no other file, and not this package."""
    return dict(size=size, cfg=config_text(cfg, size),
                dataset_meta=dataset_meta)


def _about_images(cfg: Config, size: int, model: nn.Module,
                  batches: list[Tensor], dataset_meta: dict) -> dict:
    """What the metadata of a graph says of its images and classes."""
    scales = scales_of(model)
    images = batches[0]  # of a video, (N, M, C, H, W) or (N, M, C, T, H, W)
    found = preparation(cfg, size, images.shape[1 if images.dim() == 4 else 2],
                        getattr(model, 'data_preprocessor', None))
    if scales:
        base = base_size(cfg, scales)
        found['scales'] = sorted({base.size_of(each) for each in scales},
                                 reverse=True)
    if isinstance(dataset_meta.get('classes'), list):
        found['classes'] = dataset_meta['classes']
    return found


def _make_files(cfg: Config, model: nn.Module, sizes: tuple[int, ...],
                request: Request, count: int, checkpoint: dict
                ) -> tuple[dict[Size, VerifiedFile], int]:
    """A file for each size, in memory; and the number of images that they
    were compared on."""
    images = RealImages(cfg, sizes, count)
    if request.calibration:
        check_enough(len(images.indices), request.tolerance)
    divisor = 0
    if images.shapes_differ:
        divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    base = base_size(cfg, scales_of(model))
    names = _dataset_meta(checkpoint, images)
    training = (training_images(cfg, sizes, request.calibration)
                if request.calibration else None)
    found: dict[Size, VerifiedFile] = {}
    for size in sizes:
        batches = images.batches(model, size)
        meta = (_meta(cfg, size, names) if request.kind in WEIGHTS else
                _about_images(cfg, size, model, batches, names))
        few = batches
        if training:
            # The float file is compared with the network, int8 with that
            # file.
            tested = images.whole(batches)
            seen = training.whole(training.batches(model, size))
            few = [tested[:IMAGES], *batches[1:]]
        found[size] = make_file(
            model, size, few, request._replace(tolerance=TOLERANCE)
            if training else request, divisor, meta, base.scale_at(size))
        if training:
            found[size] = make_int8(
                found[size], seen, tested, images.labels(),
                is_multi_label(model), request.tolerance)
    count = len(images.indices)
    return found, min(count, IMAGES) if training else count


def _make_any(cfg: Config, model: nn.Module, request: Request, count: int,
              checkpoint: dict) -> tuple[dict[Size, VerifiedFile], int]:
    """The file for all sizes, in memory; and the number of images that it was
    compared on."""
    scales = scales_of(model)
    if scales is None:
        raise UserError(f'{type(model).__name__} has no SSBN, whose scales a '
                        'file for any size mixes. Export one size by '
                        '--size N.')
    base = base_size(cfg, scales)
    images = RealImages(cfg, sum(sizes_to_check(base), ()), count)
    divisor = 0
    if images.shapes_differ:
        divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    about = _about_images(cfg, base.test, model,
                          images.batches(model, base.test),
                          _dataset_meta(checkpoint, images))
    made = make_any_size(model, base, partial(images.batches, model), request,
                         divisor, about)
    return {'any': made}, len(images.indices)


def _entries(files: dict[Size, VerifiedFile], paths: dict[Size, str],
             rows: list[dict]) -> list[dict]:
    """The manifest's entry of each file, with what ``rows``, of a test's
    result, say of its size, or of each of its sizes."""
    tested = {row['scale']: row for row in rows}

    def measured(size: Size, made: dict) -> dict:
        row = {'metrics': None, 'gflops': made.get('gflops'),
               **tested.get(size, {})}
        return {name: row[name] for name in ('metrics', 'gflops')}

    entries = []
    for size, each in files.items():
        entry = dict(size=size, **file_entry(each.data, paths[size]),
                     **each.entry)
        if size == 'any':
            entry['sizes'] = [{**row, **measured(row['size'], row)}
                              for row in entry['sizes']]
        else:
            entry.update(measured(size, entry))
        entries.append(entry)
    return entries


def _sizes(cfg: Config, model: nn.Module, size: int | str
           ) -> tuple[int, ...]:
    """The sizes of the test that get a file each.

    Raises:
        UserError: for more than one, but 'all', and as :func:`check_sizes`.
    """
    scales = scales_of(model)
    sizes = check_sizes(None if size == 'all' else (size, ), model, 'size',
                        base_size(cfg, scales) if scales else None)
    if len(sizes) > 1 and size != 'all':
        raise UserError("`size` must be one size, 'all' or 'any', but got "
                        f'{size!r}. Export each by itself.')
    return sizes


@protected_loading()
def export(config: StrPath, checkpoint: StrPath, size: int | str,
           out: StrPath, format: str = 'pth', *, part: str | None = None,
           fuse: bool = True, softmax: bool = False, prefix: str = '',
           images: int | None = None, tolerance: float | None = None,
           int8: bool = False, calibration: int = CALIBRATION,
           result: StrPath | None = None, force: bool = False,
           cfg_options: dict | None = None) -> dict:
    """Write one size of a trained network as an ordinary file: what
    tools/export.py calls. It runs on the CPU.

    Before a file is written, it is run by its own runtime and compared with
    the network at that size on real images.

    Args:
        config: path of the config.
        checkpoint: path or address of the checkpoint, or a work directory,
            whose newest whole one is taken.
        size: of the test images in pixels; 'all': each that a trained scale
            serves; 'any': one file, an ONNX or pt2 graph, for every size.
        out: path of the file; for 'all', of a folder, which gets a file a
            size and ``manifest.json``.
        format: 'pth' or 'safetensors': weights that the stock network takes;
            'onnx', 'torchscript' or 'pt2': a graph. Its batch is dynamic, and
            so are height and width for any size, or if the test pipeline
            keeps the aspect of images.
        part: which part becomes a graph, 'network' or 'features' (backbone
            and neck); None: the network if it runs on images alone.
        fuse: whether the norms of a graph are fused into convolutions.
        softmax: whether a classifier's graph gives scores, not logits.
        prefix: write the weights of this module alone, by its own names:
            'backbone', or 'backbone.timm_model' for timm.
        images: how many images of the test set the outputs are compared on;
            None: 8, or 512 with ``int8``.
        tolerance: the largest difference of a graph, as a share of the
            largest output; None: 1e-4. Weights must be equal to the bit. With
            ``int8``, the most points that it may lose of top-1 or, where the
            test images have no labels, the share in % that it may lose of the
            top-1 that the float file expects of itself; None: 1.
        int8: whether a classifier's 'onnx' computes in int8.
        calibration: how many training images int8 finds the ranges of
            activations on.
        result: path of the scales.json of tools/test.py, whose metrics go
            into the manifest.
        force: whether files that exist are replaced.
        cfg_options: ``{'a.b': value}``, settings that override the config.

    Returns:
        dict: the manifest: ``label``, ``config``, ``checkpoint``,
        ``format``, ``images`` (their number) and ``files``, the largest size
        first; and ``notes``, sentences for the user.

    Raises:
        UserError, ValueError, RuntimeError: for what is missing, does not
            fit, cannot be exported, or does not compute the same.
    """
    config, out = check_path('config', config), check_path('out', out)
    checkpoint = check_path('checkpoint', checkpoint)
    result = optional_path('result', result)
    check_int('calibration', calibration, 2, 'Give e.g. 128.')
    images = (INT8_IMAGES if int8 else IMAGES) if images is None else images
    check_int('images', images, 2, 'Give e.g. 8.')
    if tolerance is None:
        tolerance = POINTS if int8 else TOLERANCE
    request = Request(format, part, fuse, softmax, prefix, tolerance,
                      calibration if int8 else 0)
    check_request(request, size)
    cfg = load_config(config, cfg_options)
    checkpoint = find_checkpoint(checkpoint, cfg)
    weights = check_checkpoint(checkpoint)
    rows = rows_of(read_result(result), checkpoint, result) if result else []
    model = loaded_model(cfg, weights, checkpoint)
    warn_one_row(model, state_in(weights, checkpoint), checkpoint)
    every = size == 'all'
    pixels = () if size == 'any' else _sizes(cfg, model, size)
    label = config_name(config)
    paths = paths_of(out, format, pixels or ('any', ), label, every)
    manifest_path = osp.join(out, MANIFEST)
    check_outputs([*paths.values(), *([manifest_path] if every else [])],
                  force)
    if size == 'any':
        files, count = _make_any(cfg, model, request, images, weights)
    else:
        files, count = _make_files(cfg, model, pixels, request, images,
                                   weights)
    manifest = dict(label=label, config=config, checkpoint=checkpoint,
                    format=format, images=count,
                    files=_entries(files, paths, rows))
    data = {paths[size]: each.data for size, each in files.items()}
    if every:
        data[manifest_path] = json.dumps(plain_data(manifest),
                                         indent=2).encode()
    write_all(data)
    return dict(manifest, notes=[note for each in files.values()
                                 for note in each.notes])
