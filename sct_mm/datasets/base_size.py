"""Which size is it: what the base scale is in training and in a test."""
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..utils.arguments import check_int
from ..utils.config_walk import host_model, pipelines_in
from .rescale_pipeline import nominal_size


def _rounded(value: float) -> int:
    return max(int(value + 0.5), 1)


class BaseSize(NamedTuple):
    """The edges in pixels that the network sees at its base scale.

    Objects have the size of training only in a test at ``test`` pixels: of
    109 of the 192 configs of mmsegmentation, which train on crops and test
    whole images, the two differ. Sizes that a user names are those of a test.

    Attributes:
        train: edge of the training images, which names the scales.
        test: edge of the test images.
        scales: that are trained.
    """
    train: int
    test: int
    scales: tuple[int, ...] = ()

    def scale_at(self, size: int) -> int:
        """The scale, trained or not, that serves a test at ``size``."""
        for scale in self.scales:  # rounded twice, it may be another
            if self.size_of(scale) == size:
                return scale
        return _rounded(size * self.train / self.test)

    def size_of(self, scale: int) -> int:
        """The size of the test that ``scale`` serves."""
        return _rounded(scale * self.test / self.train)


def window_of(model: dict) -> int | None:
    """The shorter edge in pixels of the windows of sliding inference (mmseg),
    which are what the network sees; None without."""
    settings: Any = host_model(model).get('test_cfg')
    return min(settings['crop_size']) if slides(settings) else None


def slides(settings: Any) -> bool:
    """Whether a segmentor's ``test_cfg`` is that of sliding inference."""
    return (isinstance(settings, dict) and bool(settings.get('crop_size'))
            and settings.get('mode') in ('slide', 'slide_flip'))


def test_base(cfg: dict, dataset: Any) -> int:
    """The size in pixels at which ``cfg`` tests its network: the windows of
    sliding inference, else the images that the pipelines of ``dataset`` make,
    else ``test_base`` of the config.

    Raises:
        ValueError: if none of them sets it, or two contradict each other.
    """
    named: Any = cfg.get('test_base')
    if named is not None:
        named = check_int('test_base', named, 1, 'Give the shorter edge of '
                          'the test images in pixels.')
    window = window_of(cfg.get('model') or {})
    if window is not None:
        found = {window}
    else:
        found = set()
        for _, pipeline in pipelines_in(dataset):
            try:
                found.add(nominal_size(pipeline))
            except ValueError:
                if named is None:
                    raise
    if len(found) > 1:
        raise ValueError('All test sets must have images of one size, but '
                         f'got {sorted(found)}. Test each by a config of its '
                         'own.')
    if named is not None and found - {named}:
        raise ValueError('`test_base` must be the size of the test images, '
                         f'{found.pop()} pixels, but got {named}. Leave it '
                         'out.')
    return min(found or {named})


def base_size(cfg: dict, scales: Sequence[int] | None,
              dataset: Any = None) -> BaseSize:
    """The base of a network with ``scales``, by its config.

    Args:
        scales: of its SSBN, the largest first; None: it has one size alone,
            that of its test.
        dataset: the config of the test images; None: that of ``cfg``; a
            config without any is taken to test at the training's size.

    Raises:
        ValueError: as :func:`test_base`.
    """
    if dataset is None:
        dataset = (cfg.get('test_dataloader') or {}).get('dataset')
        if dataset is None and scales:
            return BaseSize(scales[0], cfg.get('test_base') or scales[0],
                            tuple(scales))
    test = test_base(cfg, dataset)
    return BaseSize(scales[0] if scales else test, test, tuple(scales or ()))
