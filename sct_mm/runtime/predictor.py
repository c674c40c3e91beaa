"""Classify images by exported files, with numpy and onnxruntime alone."""
import json
import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..utils.arguments import (
    StrPath,
    check_choice,
    check_int,
    check_number,
    check_path,
)
from ..utils.cascades import check_cascade_sizes, check_thresholds
from ..utils.errors import UserError
from .latency import largest_within, latencies_ms, sizes_in
from .network_file import CHANNELS, NetworkFile, files_in
from .prepare import padded, prepare, steps_at
from .resize import Array, resize


class Prediction(NamedTuple):
    """The answers for N images.

    Attributes:
        scores: (N, classes), from 0 to 1.
        labels: (N,), the class of the largest score.
        sizes: (N,), the pixels at which each image was decided.
        gflops: (N,), 1e9 multiply-adds that each image cost, at all sizes
            that it ran through, so that their mean is that of tools/test.py
            --cascade. NaN if one is no size of a scale, of which alone files
            say it.
    """
    scores: Array
    labels: Array
    sizes: Array
    gflops: Array


def softmax(logits: Array) -> Array:
    """Scores (N, classes) that add up to 1."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(logits: Array) -> Array:
    """A score for each class alone."""
    return np.exp(-np.logaddexp(0, -logits))  # without an overflow


SCORES = {'softmax': softmax, 'sigmoid': sigmoid, None: lambda scores: scores}


def read_cascade(path: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The sizes and the thresholds in a cascade.json of tools/test.py.

    Raises:
        UserError: for a file that is missing, or another one.
    """
    try:
        with open(path, encoding='utf-8') as file:
            found = json.load(file)['models'][0]['cascade']
        sizes, thresholds = tuple(found['sizes']), tuple(found['thresholds'])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError('The thresholds must be those of a cascade.json that '
                        f'tools/test.py --cascade wrote, but {path!r} cannot '
                        f'be read as one ({error}). Name it, or give numbers.'
                        ) from None
    sizes = check_cascade_sizes(sizes)
    return sizes, check_thresholds(thresholds, sizes)


def check_image(image: Any, channels: str) -> Array:
    """``image`` as (H, W, C), if a network of ``channels`` takes it.

    Raises:
        TypeError: if it is no array of uint8.
        ValueError: for another shape.
    """
    count = CHANNELS[channels]
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, 'dtype', type(image).__name__)
        mode = 'L' if count == 1 else 'RGB'
        raise TypeError(f'`image` must be an array of uint8, but got {kind}. '
                        'Decode it, e.g. by numpy.asarray(PIL.ImageOps.exif_'
                        f"transpose(PIL.Image.open(...)).convert('{mode}')).")
    shape = image.shape
    if image.ndim == 2 and count == 1:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] != count or not image.size:
        wanted = '(H, W) or (H, W, 1)' if count == 1 else '(H, W, 3)'
        raise ValueError(f'`image` must be {wanted}, but got {shape}. Convert '
                         'it first.')
    return image


class Predictor:
    """Classify images by what ``tools/export.py --format onnx`` wrote.

    ::

        predictor = Predictor('net.onnx')
        scores = predictor(image)

    Args:
        path: of a file, or of the folder that ``--size all`` wrote.
        size: of the images in pixels; None: the largest of the files.
        budget_ms: take the largest size whose network takes at most so many
            milliseconds for one image; it is measured here, once.
        cascade: sizes, the smallest first: an image is decided at the first
            at which it has a score above the threshold, or at the last. The
            smaller images are those of the largest, resized as in training
            (:class:`sct_mm.Cascade`).
        thresholds: of the cascade: a number, one for each size but the last,
            or the path of a cascade.json.
        channels: of the images: 'RGB', as Pillow gives them, or 'BGR', as
            OpenCV does; grey ones have none.
        threads: of the CPU; None: those that onnxruntime takes.
        providers: of onnxruntime, the preferred one first.

    Attributes:
        sizes: pixels, one, or those of the cascade.
        classes: their names, or None.
        latencies: {size: milliseconds} that ``budget_ms`` measured.

    Raises:
        UserError: for a file or a folder of another kind or version, a size
            that no file serves, and a budget that no size keeps to.
        TypeError, ValueError: for arguments of another kind.
    """

    def __init__(self, path: StrPath, size: int | None = None,
                 budget_ms: float | None = None,
                 cascade: Sequence[int] | None = None,
                 thresholds: float | Sequence[float] | StrPath | None = None,
                 channels: str = 'RGB', threads: int | None = None,
                 providers: Sequence[str] = ('CPUExecutionProvider', )
                 ) -> None:
        path = check_path('path', path)
        check_choice('channels', channels, ('RGB', 'BGR'))
        if threads is not None:
            check_int('threads', threads, 1, 'Leave it out for all cores.')
        if sum(each is not None for each in (size, budget_ms, cascade)) > 1:
            raise UserError('A Predictor takes one of `size`, `budget_ms` and '
                            '`cascade`, but got several. Leave the others '
                            'out.')
        self.channels = channels
        self.latencies: dict[int, float] = {}
        self.sizes: tuple[int, ...] = ()
        self.thresholds: tuple[float, ...] = ()
        if cascade is not None or thresholds is not None:
            self.sizes, self.thresholds = _cascade(cascade, thresholds)
        if size is not None:
            self.sizes = check_int('size', size, 1, 'Give it in pixels.'),
        files = [NetworkFile(each, threads, providers)
                 for each in files_in(path)]
        for file in files:
            file.check_classifier()
        self._files = sizes_in(files)
        if budget_ms is not None:
            check_number('budget_ms', budget_ms, 0, 'Give milliseconds.')
            self.latencies = latencies_ms(self._files)
            self.sizes = largest_within(self.latencies, budget_ms),
        self.sizes = self.sizes or (next(iter(self._files)), )
        for each in self.sizes:
            self._file_at(each)
        about = self._file_at(self.sizes[-1]).metadata
        self.classes: list[str] | None = about.get('classes')
        if self.thresholds and about.get('scores') == 'sigmoid':
            raise UserError('A cascade serves classifiers of one label an '
                            f'image, but {path!r} gives several. Name one '
                            '`size`.')
        if self.thresholds and self._file_at(self.sizes[0]).outputs == 1:
            raise UserError('A cascade serves classifiers of two classes or '
                            f'more, but {path!r} gives one score an image, '
                            'which is always 1. Name one `size`.')

    def __call__(self, image: Array) -> Array:
        """The scores (classes,) of one image, (H, W, 3) or grey (H, W)."""
        return self.predict([image]).scores[0]

    def predict(self, images: Sequence[Array]) -> Prediction:
        """Classify N images of any sizes, as one batch.

        Raises:
            TypeError, ValueError: for images of another kind or shape, and
                where the file keeps the aspect of images, for several.
        """
        if not len(images):
            raise ValueError('`images` must be at least one, but got none. '
                             'Give a list of arrays.')
        base = self.sizes[-1]
        made = [self._normalized(image, base) for image in images]
        shapes = {each.shape[1:] for each in made}
        if len(shapes) > 1:
            raise ValueError('`images` must have one shape when they are '
                             f'prepared, but got {sorted(shapes)}. Classify '
                             'each by itself.')
        inputs = np.stack(made)
        left = np.arange(len(inputs))
        sizes, gflops = np.full(len(inputs), base), np.zeros(len(inputs))
        scores: Array | None = None
        for place, size in enumerate(self.sizes):
            found = self._scores(_at(inputs[left], size, base,
                                     self._file_at(size)), size)
            if scores is None:
                scores = np.zeros((len(inputs), found.shape[1]), found.dtype)
            scores[left], sizes[left] = found, size
            gflops[left] += self._file_at(size).gflops.get(size, np.nan)
            if size == base:
                break
            left = left[~(found.max(1) > self.thresholds[place])]
            if not len(left):
                break
        assert scores is not None  # there is one size, at least
        return Prediction(scores, scores.argmax(1), sizes, gflops)

    def prepare(self, image: Array, size: int) -> Array:
        """The input (C, H, W), float32, that the network takes for ``image``
        at ``size`` pixels."""
        return self._padded(self._normalized(image, size), size)

    def _normalized(self, image: Array, size: int) -> Array:
        """:meth:`prepare` without padding, which is not resized."""
        about = self._file_at(size).metadata
        image = check_image(image, about['channels'])
        least = min(about.get('scales') or [about['size']])
        if min(image.shape[:2]) < least:
            warnings.warn(
                f'An image should have a shorter edge of at least {least} '
                'pixels, the smallest scale of the network, but got '
                f'{image.shape[:2]}: it is enlarged, and the network has seen '
                'none like it.', stacklevel=2)
        if about['channels'] not in ('GRAY', self.channels):
            image = image[..., ::-1]
        made = prepare(image, steps_at(about['steps'], size / about['size']))
        divisor = about.get('pad_size_divisor', 1)
        if min(made.shape[:2]) < 1 or any(
                isinstance(edge, int) and edge != own + -own % divisor
                for edge, own in zip(self._file_at(size).edges, made.shape,
                                     strict=False)):
            raise ValueError(f'`image` must be large enough for {size} '
                             f'pixels, but {image.shape[:2]} is cut to '
                             f'{made.shape[:2]}. Enlarge it first.')
        floats = made.astype(np.float32)
        for name, function in (('mean', np.subtract), ('std', np.divide)):
            if about.get(name) is not None:
                floats = function(floats, np.float32(about[name]))
        return np.ascontiguousarray(floats.transpose(2, 0, 1))

    def _padded(self, inputs: Array, size: int) -> Array:
        """``inputs`` (..., H, W) as large as the file of ``size`` takes
        them."""
        about = self._file_at(size).metadata
        return padded(inputs, about.get('pad_size_divisor', 1),
                      about.get('pad_value', 0))

    def _scores(self, inputs: Array, size: int) -> Array:
        """(N, classes) of inputs (N, C, H, W)."""
        file = self._file_at(size)
        inputs = np.ascontiguousarray(self._padded(inputs, size))
        outputs = file.run(inputs, size).astype(np.float32)
        return SCORES[file.metadata.get('scores')](outputs)

    def _file_at(self, size: int) -> NetworkFile:
        """The file that serves ``size``.

        Raises:
            UserError: if none does.
        """
        if size in self._files:
            return self._files[size]
        for file in self._files.values():
            if file.any_size:
                return file
        known = ', '.join(map(str, self._files))
        raise UserError(f'`size` must be one that a file is for, {known}, but '
                        f'got {size}. Export that one by tools/export.py.')


def _cascade(sizes: Any, thresholds: Any
             ) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The checked sizes and thresholds of a cascade."""
    if thresholds is None or sizes is None:
        have, lack = (('cascade', 'thresholds') if thresholds is None
                      else ('thresholds', 'cascade'))
        raise UserError(f'`{have}` needs `{lack}`, but got none. Give both: '
                        "e.g. cascade=(128, 224), thresholds='cascade.json'.")
    sizes = check_cascade_sizes(sizes)
    if not isinstance(thresholds, (str, os.PathLike)):
        return sizes, check_thresholds(thresholds, sizes)
    thresholds = check_path('thresholds', thresholds)
    own, found = read_cascade(thresholds)
    if own != sizes:
        raise UserError(f'`cascade` must have the sizes of {thresholds!r}, '
                        f'{own}, but got {sizes}. Name those, or give '
                        'numbers.')
    return own, found


def _at(inputs: Array, size: int, base: int, file: NetworkFile) -> Array:
    """Inputs (N, C, H, W) of ``base`` pixels at ``size``, as training makes
    them: antialiased bilinear. Of an oblong image, half a pixel may be rounded
    otherwise than in the test pipeline, whose edges ``file`` may fix."""
    if size == base:
        return inputs
    pads = file.metadata.get('pad_size_divisor', 1) > 1
    height, width = (
        edge if isinstance(edge, int) and not pads
        else max(int(own * size / base + 0.5), 1)
        for own, edge in zip(inputs.shape[2:], file.edges, strict=True))
    count, channels = inputs.shape[:2]
    # All images and channels are the channels of one.
    flat = inputs.reshape(count * channels, *inputs.shape[2:])
    made = resize(flat.transpose(1, 2, 0), height, width)
    return made.transpose(2, 0, 1).reshape(count, channels, height, width)
