"""A folder of images without labels as the data set of any host's config."""
import copy
import os
import os.path as osp
import warnings
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import is_main_process
from mmengine.registry import DATASETS, TRANSFORMS
from rich.progress import track

from ..utils.config import check_indices, check_range
from ..utils.config_walk import host_model, pipelines_of, type_name
from ..utils.errors import UserError
from .rescale_pipeline import resizes

# Endings of the files that every decoder of mmcv reads.
IMG_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif',
                  '.tiff', '.webp')
# An image must be as wide in pixels, and as a share of its length: a resize
# to a small size would leave nothing of a narrower one.
_LEAST, _LEAST_SHARE = 8, 1 / 50
# Settings of a data loader that say nothing about its data set.
_LOADER = ('batch_size', 'num_workers', 'persistent_workers', 'pin_memory',
           'prefetch_factor', 'collate_fn')


def images_in(folder: str) -> list[str]:
    """The paths of all files within ``folder`` that have the ending of an
    image, relative to it, sorted. Hidden files, and those in hidden folders,
    are none. A folder that is linked to counts once, also where the link is
    within it.

    Raises:
        OSError: for a folder that cannot be read.
    """
    def refuse(error: OSError) -> None:
        raise error

    found: list[str] = []
    seen: set[str] = set()
    for path, folders, files in os.walk(folder, onerror=refuse,
                                        followlinks=True):
        real = osp.realpath(path)
        # Sorted, so that the name it has does not depend on the disk.
        folders[:] = () if real in seen else sorted(
            name for name in folders if name[0] != '.')
        found += (osp.relpath(osp.join(path, name), folder) for name in files
                  if name[0] != '.' and real not in seen
                  and name.lower().endswith(IMG_EXTENSIONS)
                  and osp.isfile(osp.join(path, name)))
        seen.add(real)
    return sorted(found)


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """The images within a folder, however deep, without labels.

    Args:
        folder: path of the folder.
        skip: paths relative to it that are left out (:func:`check_images`).

    The other arguments are those of mmengine's ``BaseDataset``, such as
    ``indices``.

    Raises:
        UserError: for ``indices`` of images that are not there, and for a
            pipeline that needs annotations, as the boxes of mmpose.
    """

    def __init__(self, folder: str, skip: Collection[str] = (),
                 **kwargs) -> None:
        self.folder, self.skip = folder, set(skip)
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        images = [name for name in images_in(self.folder)
                  if name not in self.skip]
        check_range(self._indices, len(images))
        return [dict(img_path=osp.join(self.folder, name), img_id=index)
                for index, name in enumerate(images)]

    def prepare_data(self, idx: int) -> Any:
        try:
            return super().prepare_data(idx)
        except KeyError as error:
            raise UserError('The images of a folder have no annotations, but '
                            f'the pipeline needs {error} of each. Leave '
                            '--images out.') from error


@TRANSFORMS.register_module()
class LoadRGBImageFromFile(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, which makes BGR, in the order RGB: that of
    the arrays in a data set such as CIFAR."""

    def transform(self, results: dict) -> dict | None:
        results = super().transform(results)
        if results is not None:
            results['img'] = np.ascontiguousarray(results['img'][..., ::-1])
        return results


def given_indices(options: dict | None, loader: str) -> Any:
    """The ``indices`` (mmengine's: the first N, the last -N, or those of a
    list) that ``--cfg-options`` give to the data set of ``loader``, or to one
    that it wraps; None if they give none. A config's own are of its images,
    not of a folder's.

    Args:
        options: ``{'a.b': value}``.
        loader: name of the setting, such as ``train_dataloader``.

    Raises:
        UserError: as :func:`~sct_mm.utils.config.check_indices`.
    """
    given = Config()
    given.merge_from_dict(options or {})
    part = given.get(loader)
    while isinstance(part, dict):
        if part.get('indices') is not None:
            check_indices(part)
            return part['indices']
        part = part.get('dataset')
    return None


def _edges(path: str) -> tuple[int, int] | None:
    """The shorter and the longer edge in pixels of the image at ``path``; None
    if mmcv does not decode it, or it is too small."""
    try:
        with open(path, 'rb') as file:  # in colour: of floats it reads none
            image = mmcv.imfrombytes(file.read())
    except Exception:  # each decoder has its own
        return None
    if image is None:
        return None
    short, long = sorted(image.shape[:2])
    return ((short, long) if short >= max(_LEAST, long * _LEAST_SHARE)
            else None)


def check_images(folder: str, edge: int | None = None) -> list[str]:
    """Decode each image within ``folder`` once; returns the paths, relative
    to it, of those that cannot be used, and warns of them.

    So no image ends a run of an hour, and all sizes have the same images.

    Args:
        edge: the shorter edge of all images in pixels, where no pipeline
            resizes them; None: it may be any.

    Raises:
        UserError: if there is no folder, or none that can be used in it, or
            one has another ``edge``.
    """
    if not osp.isdir(folder):
        raise UserError('The images must be in a folder, but got '
                        f'{folder!r}. Name the folder that holds them.')
    names = images_in(folder)
    with ThreadPoolExecutor() as pool:  # decoders let go of Python's lock
        found = list(track(
            pool.map(_edges, (osp.join(folder, name) for name in names)),
            'Reading images', len(names), transient=True,
            disable=not is_main_process()))
    edges = dict(zip(names, found, strict=True))
    skip = [name for name, size in edges.items() if size is None]
    if len(skip) == len(names):
        what = 'no file of ' + ', '.join(IMG_EXTENSIONS)
        if names:
            what = f'{len(names)} that cannot be read or are too small'
        raise UserError(f'The folder must hold images, but {folder!r} has '
                        f'{what}. Name another.')
    for name, size in edges.items() if edge else ():
        if size and size[0] != edge:
            raise UserError(
                f'The images must have a shorter edge of {edge} pixels, since '
                'no pipeline of the config resizes them, but that of '
                f'{osp.join(folder, name)!r} has {size[0]}. Add '
                f"dict(type='Resize', scale={edge}) to the test pipeline, or "
                'resize the images.')
    if skip:
        warnings.warn(
            f'{len(skip)} of {len(names)} images in {folder!r} are left out, '
            f'such as {skip[0]!r}: they cannot be read, or are narrower than '
            f'{_LEAST} pixels or a {1 / _LEAST_SHARE:.0f}th of their length.',
            stacklevel=2)
    return skip


def _is_grey(cfg: dict) -> bool:
    """Whether the network of ``cfg`` takes images of one channel."""
    model = host_model(cfg.get('model') or {})
    means = ((cfg.get('data_preprocessor') or {}).get('mean')
             or (model.get('data_preprocessor') or {}).get('mean') or ())
    channels = (model.get('backbone') or {}).get('in_channels')
    return (len(means) if channels is None else channels) == 1


def is_loading(transform: Any) -> bool:
    """Whether ``transform`` reads images or annotations."""
    return type_name(transform).startswith('Load')


def loads_images(pipeline: Sequence) -> bool:
    """Whether ``pipeline`` reads files by mmcv, as BGR; the images of a data
    set that holds arrays, as CIFAR, are RGB."""
    return any(map(is_loading, pipeline))


def with_plain_loading(pipeline: Sequence, grey: bool = False) -> list:
    """A copy of ``pipeline`` that loads files of images alone: a host's
    ``LoadImageFromFile`` keeps its arguments, and no annotation is loaded.

    Args:
        grey: whether images have one channel, where the pipeline does not
            load them (a data set that holds arrays).

    Raises:
        UserError: for a pipeline of videos.
    """
    names = [type_name(transform) for transform in pipeline]
    if any(name.endswith('Decode') for name in names):
        raise UserError('A folder of images serves networks of images, but '
                        'the pipeline decodes videos. Leave --images out.')
    load: dict[str, Any] = dict(type='LoadImageFromFile')
    if grey:
        load['color_type'] = 'grayscale'
    elif not loads_images(pipeline):
        load['type'] = 'LoadRGBImageFromFile'
    if 'LoadImageFromFile' in names:
        load = copy.deepcopy(pipeline[names.index('LoadImageFromFile')])
    for key in ('backend_args', 'file_client_args'):  # of a remote data set
        load.pop(key, None)
    return [load, *(copy.deepcopy(transform) for transform in pipeline
                    if not is_loading(transform))]


def _found_pipeline(cfg: Config) -> list:
    """What :func:`test_pipeline` returns; empty if there is none."""
    for name in ('test_dataloader', 'val_dataloader'):
        for pipeline in pipelines_of(cfg.get(name) or {}):
            return pipeline
    pipeline = cfg.get('test_pipeline')
    return list(pipeline) if isinstance(pipeline, (list, tuple)) else []


def test_pipeline(cfg: Config) -> list:
    """The pipeline of the test of ``cfg``, else of its validation, else its
    variable ``test_pipeline``.

    Raises:
        UserError: if there is none.
    """
    pipeline = _found_pipeline(cfg)
    if not pipeline:
        raise UserError('The config must have a test pipeline to prepare the '
                        'images of a folder, but has none. Set '
                        '`test_pipeline`, a list of transforms.')
    return pipeline


def train_pipeline(cfg: Config) -> list:
    """The pipeline of the training of ``cfg``; that of its test if it has
    none, or does not resize images, which a folder may have in any size, but
    the test does.

    Raises:
        UserError: as :func:`test_pipeline`.
    """
    pipeline = next(iter(pipelines_of(cfg.get('train_dataloader') or {})), [])
    if pipeline and (resizes(pipeline) or not resizes(_found_pipeline(cfg))):
        return pipeline
    return test_pipeline(cfg)


def folder_dataset(cfg: Config, folder: str, pipeline: list | None = None,
                   skip: Sequence[str] | None = None,
                   test_mode: bool = True, indices: Any = None) -> dict:
    """The config of a data set of the images within ``folder``, for the
    network of ``cfg``, whose own data sets need not be there.

    Args:
        pipeline: transforms of any host; None: those of the test. Loading is
            replaced by that of files (:func:`with_plain_loading`).
        skip: images to leave out; None: those that cannot be used
            (:func:`check_images`).
        test_mode: as mmengine's ``BaseDataset``; False for a training, where
            an image that the pipeline refuses is replaced by another.
        indices: mmengine's: the first N images, the last -N, or those of a
            list; None: all.

    Raises:
        UserError: as :func:`check_images`, :func:`test_pipeline` and
            :func:`with_plain_loading`.
    """
    if pipeline is None:
        pipeline = test_pipeline(cfg)
    pipeline = with_plain_loading(pipeline, _is_grey(cfg))
    return dict(type='ImageFolder', folder=folder,
                skip=check_images(folder) if skip is None else list(skip),
                pipeline=pipeline, test_mode=test_mode,
                **({} if indices is None else dict(indices=indices)))


def folder_loader(cfg: Config, folder: str,
                  skip: Sequence[str] | None = None,
                  indices: Any = None) -> dict:
    """The config of a data loader of :func:`folder_dataset`, in order, with
    the batch size and the workers of the test of ``cfg``."""
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    return {'batch_size': 1, 'num_workers': 2,  # images may differ in shape
            **{key: loader[key] for key in _LOADER if key in loader},
            'sampler': dict(type='DefaultSampler', shuffle=False),
            'dataset': folder_dataset(cfg, folder, skip=skip,
                                      indices=indices)}
