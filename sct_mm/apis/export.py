"""One scale of a trained network, or each of them, as ordinary files."""
import json
import os.path as osp

from mmengine.config import Config
from torch import nn

from ..engine.load_model import loaded_model, state_in, warn_one_row
from ..engine.loops import check_sizes
from ..engine.resume import find_checkpoint
from ..evaluation.results_file import read_result, rows_of
from ..export.files import MANIFEST, paths_of, told_of, write_all
from ..export.formats import WEIGHTS, check_format
from ..export.network import PARTS
from ..export.real_images import RealImages
from ..export.stock_config import config_text, plain_data
from ..export.verified_file import Made, Request, make
from ..utils.arguments import check_choice, check_int, check_number
from ..utils.checkpoint import check_checkpoint, check_outputs
from ..utils.config import config_name, load_config
from ..utils.errors import UserError
from ..utils.safe_load import protected_loading


def check_request(request: Request) -> None:
    """Refuse what cannot be made of any network.

    Raises:
        UserError, TypeError, ValueError: naming it.
    """
    check_format(request.kind)
    if request.part is not None:
        check_choice('part', request.part, PARTS)
    check_number('tolerance', request.tolerance, 0, 'Give e.g. 1e-4.')
    weights = request.kind in WEIGHTS
    if weights and (request.softmax or request.part):
        name = 'softmax' if request.softmax else 'part'
        raise UserError(f'`{name}` is for a graph, but the format '
                        f'{request.kind} holds weights. Leave it out'
                        + ('.' if request.softmax else
                           ', or set `prefix` to the name of a part.'))
    if request.prefix and not weights:
        raise UserError('`prefix` is for weights, but the format '
                        f'{request.kind} holds a graph. Leave it out, or set '
                        '`part`.')


def _meta(cfg: Config, size: int, checkpoint: dict,
          images: RealImages) -> dict:
    """What a checkpoint says beside its weights: the hosts' inferencers need
    no more than it, nor this package."""
    meta = checkpoint.get('meta')
    told = meta.get('dataset_meta') if isinstance(meta, dict) else None
    told = told or getattr(images.loader.dataset, 'metainfo', {})
    return dict(size=size, cfg=config_text(cfg, size),
                dataset_meta=plain_data(told))


def _made(cfg: Config, model: nn.Module, sizes: tuple[int, ...],
          request: Request, count: int, checkpoint: dict
          ) -> tuple[dict[int, Made], int]:
    """A file a size, none of which is on the disk yet; and on how many
    images they were compared."""
    images = RealImages(cfg, sizes, count)
    divisor = 0
    if images.shapes_differ:
        divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    return {size: make(model, size, images.batches(model, size), request,
                       divisor, _meta(cfg, size, checkpoint, images))
            for size in sizes}, len(images.indices)


@protected_loading()
def export(config: str, checkpoint: str, size: int | str, out: str,
           format: str = 'pth', *, part: str | None = None,
           fuse: bool = True, softmax: bool = False, prefix: str = '',
           images: int = 8, tolerance: float = 1e-4,
           result: str | None = None, force: bool = False,
           cfg_options: dict | None = None) -> dict:
    """Write one size of a trained network as an ordinary file: what
    tools/export.py does, on the CPU.

    Each file is run by its own runtime and compared with the network, pinned
    to the size, on real images, before it is written.

    Args:
        config: path of the config.
        checkpoint: path or address of the checkpoint, or a work directory,
            whose newest whole one is taken.
        size: in pixels, or 'all': each trained scale.
        out: path of the file; for 'all', of a folder, which gets a file a
            size and ``manifest.json``.
        format: 'pth' or 'safetensors': weights that the stock network takes;
            'onnx', 'torchscript' or 'pt2': a graph whose batch is dynamic,
            and height and width where the test pipeline keeps the aspect of
            images.
        part: of a graph, 'network' or 'features' (backbone and neck); None:
            the network where it runs on images alone.
        fuse: whether norms are fused into convolutions in a graph.
        softmax: whether a classifier's graph gives scores, not logits.
        prefix: of weights, the module that they are for: 'backbone' or, as
            timm names them, 'backbone.timm_model'.
        images: how many the outputs are compared on.
        tolerance: the largest difference of a graph, as a share of the
            largest output. Weights must be equal to the bit.
        result: path of the scales.json of a test, whose metrics go into the
            manifest.
        force: whether files that exist are replaced.
        cfg_options: ``{'a.b': value}``, settings that override the config.

    Returns:
        dict: the manifest: ``label``, ``config``, ``checkpoint``, ``format``
        ``images``, how many were compared on, and ``files``, one a size
        from the largest down; and ``notes``.

    Raises:
        UserError, ValueError, RuntimeError: for what is missing, does not
            fit, cannot be exported, or does not compute the same.
    """
    request = Request(format, part, fuse, softmax, prefix, tolerance)
    check_request(request)
    check_int('images', images, 2, 'Give e.g. 8.')
    cfg = load_config(config, cfg_options)
    checkpoint = find_checkpoint(checkpoint, cfg)
    weights = check_checkpoint(checkpoint)
    rows = rows_of(read_result(result), checkpoint, result) if result else []
    model = loaded_model(cfg, weights, checkpoint)
    warn_one_row(model, state_in(weights, checkpoint), checkpoint)
    every = size == 'all'
    sizes = check_sizes(None if every else (size, ), model, 'size')
    if len(sizes) > 1 and not every:
        raise UserError(f"`size` must be one size or 'all', but got {size!r}. "
                        'Export each by itself.')
    label = config_name(config)
    paths = paths_of(out, format, sizes, label, every)
    manifest = osp.join(out, MANIFEST)
    check_outputs([*paths.values(), *([manifest] if every else [])], force)
    made, compared = _made(cfg, model, sizes, request, images, weights)
    told = dict(label=label, config=config, checkpoint=checkpoint,
                format=format, images=compared,
                files=_told_of_each(made, paths, rows))
    files = {paths[size]: each.data for size, each in made.items()}
    if every:
        files[manifest] = json.dumps(told, indent=2).encode()
    write_all(files)
    return dict(told, notes=[note for each in made.values()
                             for note in each.notes])


def _told_of_each(made: dict[int, Made], paths: dict[int, str],
                  rows: list[dict]) -> list[dict]:
    """What the manifest says of each file."""
    tested = {row['scale']: row for row in rows}
    return [dict(size=size, **told_of(each.data, paths[size]), **each.entry,
                 metrics=tested.get(size, {}).get('metrics'),
                 gflops=tested.get(size, {}).get('gflops'))
            for size, each in made.items()]
