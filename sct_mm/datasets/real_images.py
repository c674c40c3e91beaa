"""Load real images of a config's test set, as the network gets them."""
import copy
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from ..utils.config import (
    check_test_data,
    check_test_set,
    set_loader_defaults,
)
from ..utils.config_walk import pipelines_in
from ..utils.errors import UserError
from .base_size import test_base
from .image_folder import is_loading, loads_images
from .rescale_pipeline import keeps_ratio
from .size_switch import SizeSwitch

_ALONE = 4  # how many images also make a batch by themselves


def training_images(cfg: Config, sizes: Sequence[int], count: int
                    ) -> 'RealImages':
    """Images of the training set of ``cfg``, which the test pipeline makes;
    it loads them as the training does where it loads none itself, as of a
    data set that holds arrays.

    Raises:
        UserError: without a training or a test set, and as
            :class:`RealImages`.
    """
    train = copy.deepcopy((cfg.get('train_dataloader') or {}).get('dataset'))
    if not train:
        raise UserError('The config must have a `train_dataloader`, whose '
                        'images are needed (int8 is calibrated on them), but '
                        'has none. Set it.')
    check_test_set(cfg)  # its pipeline makes the images
    cfg = copy.deepcopy(cfg)
    pipeline = next(pipelines_in(cfg.test_dataloader.dataset))[1]
    for _, other in pipelines_in(train):
        loading = [] if loads_images(pipeline) else [
            each for each in other if is_loading(each)]
        other[:] = copy.deepcopy([*loading, *pipeline])
    cfg.test_dataloader.dataset = train
    return RealImages(cfg, sizes, count, 'train_dataloader')


class RealImages:
    """Images of the test set of ``cfg``, at any of ``sizes``.

    Args:
        cfg: a config with a ``test_dataloader``.
        sizes: pixels.
        count: how many images, at least 2, which a graph with a dynamic
            batch is traced from.
        name: of the data loader, for an error.

    Raises:
        UserError, ValueError: for a test set that is missing or holds fewer,
            or whose pipeline cannot be rewritten.
    """

    def __init__(self, cfg: Config, sizes: Sequence[int], count: int,
                 name: str = 'test_dataloader') -> None:
        check_test_data(cfg)
        loader = copy.deepcopy(cfg.test_dataloader)
        set_loader_defaults(loader, cfg, pin_memory=False)
        loader.update(num_workers=0, persistent_workers=False)
        loader.pop('prefetch_factor', None)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            self.loader = Runner.build_dataloader(loader)
            self.switch = SizeSwitch(self.loader.dataset, loader.dataset,
                                     sizes, test_base(cfg, loader.dataset))
        total = len(self.loader.dataset)
        if total < 2:
            raise UserError(f'The data set of `{name}` must have at least 2 '
                            f'images, but has {total}. Name another.')
        # Spread evenly, since neighbours are often of the same class.
        count = min(count, total)
        self.indices = [index * total // count for index in range(count)]
        # Where images keep their aspect, height and width become dynamic.
        self.shapes_differ = any(
            keeps_ratio(pipeline)
            for _, pipeline in pipelines_in(loader.dataset))

    def batches(self, model: nn.Module, size: int) -> list[Tensor]:
        """All images as one batch (N, C, H, W) of ``size`` pixels, made by the
        data preprocessor of ``model``; then the first ones, a batch each.

        Where images of several shapes cannot be one batch, as in a test of
        one image a batch, the first one twice; then all, a batch each.
        """
        samples = self._samples(size)
        whole, alone = self._joined(model, samples), samples[:_ALONE]
        if whole is None:
            whole, alone = self._inputs(model, samples[:1]), samples
            whole = torch.cat([whole, whole])
        return [whole, *(self._inputs(model, [each]) for each in alone)]

    def whole(self, batches: list[Tensor]) -> Tensor:
        """The one of :meth:`batches` that holds all images.

        Raises:
            UserError: if they are of several shapes, and cannot be one batch.
        """
        if len(batches[0]) < len(self.indices):
            raise UserError('The images must have one shape to calibrate and '
                            'compare int8 on them, but the test pipeline '
                            'keeps their aspect. Crop or pad them there, or '
                            'leave int8 out.')
        return batches[0]

    def _samples(self, size: int) -> list:
        with self.switch.at(size):
            return [self.loader.dataset[index] for index in self.indices]

    def _joined(self, model: nn.Module, samples: list) -> Tensor | None:
        """``samples`` as one batch; None for images of several shapes that
        neither the loader nor the preprocessor pads."""
        try:
            return self._inputs(model, samples)
        except (RuntimeError, AssertionError):  # of torch, and of mmseg
            if len({str(getattr(each['inputs'], 'shape', ''))
                    for each in samples}) == 1:
                raise
            return None

    def labels(self) -> list[int] | None:
        """The class of each image; None if one has none, or several."""
        found = []
        for index in self.indices:
            read = getattr(self.loader.dataset, 'get_data_info', None)
            label = read(index).get('gt_label') if read else None
            if label is None or np.size(label) != 1:
                return None
            found.append(int(label))
        return found

    def _inputs(self, model: BaseModel, samples: list) -> Tensor:
        # A copy, since preprocessors change samples in place.
        data = self.loader.collate_fn(copy.deepcopy(samples))
        with torch.no_grad():
            inputs = model.data_preprocessor(data, False)['inputs']
        if not isinstance(inputs, Tensor) or inputs.dim() < 4:
            raise UserError('The data preprocessor must make one batch (N, '
                            'C, H, W) of images to export the network, but '
                            f'made a {type(inputs).__name__}. Test one view '
                            'of each image.')
        return inputs
