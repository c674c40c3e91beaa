"""Open an ONNX file that tools/export.py wrote, and run it."""
import json
import os.path as osp
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..utils.errors import UserError
from .prepare import check_steps
from .resize import Array

METADATA = 'sct_mm.json'  # the entry of an ONNX file's metadata
VERSION = 1  # of its content
MANIFEST = 'manifest.json'
# That a file for any size is opened for, beside one for each of its sizes;
# each holds the weights once more.
_MORE_SHAPES = 4
# What every version 1 says of a classifier; docs/export.md has all of it.
_NEEDED = ('size', 'channels', 'steps', 'outputs')


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _each(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


# {entry: whether a value is one}, of those that are read here; a file may have
# been edited.
_ENTRIES: dict[str, Callable[[Any], bool]] = {
    'size': _is_size,
    'sizes': lambda value: bool(value) and _each(_is_size)(value),
    'scales': _each(_is_size), 'gflops': _each(_is_number),
    'outputs': _each(_is_text), 'channels': _is_text,
    'steps': lambda value: value is None or _each(
        lambda step: isinstance(step, dict))(value),
    'mean': _each(_is_number),
    'std': _each(lambda value: _is_number(value) and value > 0),
    'pad_size_divisor': _is_size, 'pad_value': _is_number,
    'scores': ('softmax', 'sigmoid').__contains__,
    'classes': lambda value: isinstance(value, list)}
# {channels: their number}
CHANNELS = {'GRAY': 1, 'RGB': 3, 'BGR': 3}


def _onnxruntime() -> ModuleType:
    """onnxruntime, where it is installed.

    Raises:
        UserError: where it is not.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError('sct_mm.runtime needs onnxruntime, but it cannot be '
                        f"imported ({error}). Run pip install "
                        "'sct_mm[runtime]'.") from None
    return onnxruntime


def check_metadata(metadata: Any, path: str) -> dict:
    """``metadata`` of the file at ``path``, if it is of this version.

    Raises:
        UserError: otherwise.
    """
    again = 'Write it again by tools/export.py --format onnx.'
    if not isinstance(metadata, dict):
        raise UserError(f'The file {path!r} has no metadata of sct_mm. '
                        f'{again}')
    found = metadata.get('version')
    if found != VERSION:
        raise UserError(f'The metadata of {path!r} must be of version '
                        f'{VERSION}, but is of version {found!r}. '
                        + ('Update sct_mm.' if isinstance(found, int)
                           and found > VERSION else again))
    missing = [name for name in _NEEDED if name not in metadata]
    if missing:
        raise UserError(f'The metadata of {path!r} lacks {missing[0]!r}. '
                        f'{again}')
    for name, right in _ENTRIES.items():
        if name in metadata and not right(metadata[name]):
            raise UserError(f'The metadata of {path!r} has a {name!r} that '
                            f'no version writes, {metadata[name]!r}. '
                            f'{again}')
    return metadata


class NetworkFile:
    """A file of one network, for one size or for any.

    Attributes:
        metadata: what the file says of its images (docs/export.md).
        sizes: in pixels, the largest first: those of the scales of a file for
            any size; else the one that it is for.

    Args:
        path: of the file.
        threads: of the CPU; None: those that onnxruntime takes.
        providers: of onnxruntime, the preferred one first.

    Raises:
        UserError: for a file that is missing, that onnxruntime cannot read,
            or of another kind or version; for providers of which onnxruntime
            has none; and without onnxruntime.
    """

    def __init__(self, path: str, threads: int | None = None,
                 providers: Sequence[str] = ('CPUExecutionProvider', )
                 ) -> None:
        runtime = _onnxruntime()
        if not osp.isfile(path):
            raise UserError(f'The network must be a file, but got {path!r}. '
                            'Name the .onnx that tools/export.py wrote.')
        have = runtime.get_available_providers()
        if isinstance(providers, str) or not {
                each if isinstance(each, str) else each[0]
                for each in providers} & {*have}:  # it would run on the CPU
            raise UserError('`providers` must be a list with one that '
                            f'onnxruntime has here, {", ".join(have)}, but '
                            f'got {providers!r}. Install the onnxruntime of '
                            'another.')
        self._runtime, self._threads = runtime, threads
        self.path, self._providers = path, list(providers)
        self._fixed: dict[tuple[int, ...], Any] = {}  # session of a shape
        try:
            self.session = self._opened({})
        except Exception as error:  # its own, of no common class
            cause = (str(error).strip().splitlines() or ['?'])[0].rstrip('.')
            raise UserError(f'onnxruntime cannot read {path!r} ({cause}). '
                            'Name the .onnx that tools/export.py wrote.'
                            ) from None
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        try:
            content = json.loads(text) if text else None
        except ValueError:
            content = None
        self.metadata = check_metadata(content, path)
        self.sizes = tuple(sorted(
            self.metadata.get('sizes') or [self.metadata['size']],
            reverse=True))

    @property
    def gflops(self) -> dict[int, float]:
        """{size in pixels: 1e9 multiply-adds of one image}, as far as the
        file says."""
        sizes = self.metadata.get('sizes') or [self.metadata['size']]
        return dict(zip(sizes, self.metadata.get('gflops', ()),
                        strict=False))

    @property
    def edges(self) -> list[int | str]:
        """Height and width of the input; the name of one that is dynamic."""
        return self.session.get_inputs()[0].shape[-2:]

    @property
    def outputs(self) -> int | str:
        """How many numbers the network gives for an image; the name of that
        dimension where it is dynamic."""
        return self.session.get_outputs()[0].shape[-1]

    @property
    def any_size(self) -> bool:
        """Whether the file serves other sizes than :attr:`sizes`, too."""
        return 'sizes' in self.metadata

    def check_classifier(self) -> None:
        """Refuse a file that gives no scores of classes, or does not say how
        its images are prepared.

        Raises:
            UserError: for such a file.
        """
        outputs, steps = self.metadata['outputs'], self.metadata['steps']
        if outputs not in (['logits'], ['scores']):
            raise UserError('A Predictor runs classifiers, but the outputs '
                            f'of {self.path!r} are {", ".join(outputs)}. Run '
                            'it by onnxruntime.')
        if steps is None:
            raise UserError(f'The file {self.path!r} does not say how images '
                            'are prepared: '
                            f'{self.metadata.get("unknown", "?")}. Prepare '
                            'them yourself, and run it by onnxruntime.')
        check_steps(steps)
        count = CHANNELS.get(self.metadata['channels'])
        if count is None:
            raise UserError(f'The channels of images must be one of '
                            f'{", ".join(CHANNELS)}, but those of '
                            f'{self.path!r} are '
                            f'{self.metadata["channels"] or "others"!r}. '
                            'Prepare the images yourself, and run it by '
                            'onnxruntime.')
        for name in ('mean', 'std'):
            value = self.metadata.get(name)
            if value is not None and len(value) not in (1, count):
                raise UserError(f'The {name!r} in the metadata of '
                                f'{self.path!r} must be {count} numbers, but '
                                f'are {len(value)}. Export it again.')

    def run(self, inputs: Array, size: int | None = None) -> Array:
        """The first output for normalized images (N, C, H, W), float32.

        Args:
            size: pixels, for a file that has it as an input; None: that of
                the base.
        """
        names = [each.name for each in self.session.get_inputs()]
        pixels = np.array(size or self.metadata['size'], np.int64)
        session, parts = self.session, [inputs]
        if self.any_size and len(inputs):
            # A file for any size is as fast as one for one size where
            # onnxruntime knows the whole shape as it opens it
            # (docs/export.md): of one image, since batches vary.
            parts = np.split(inputs, len(inputs))
            session = self._session_for(parts[0].shape)
        return np.concatenate([session.run(None, dict(zip(
            names, (part, pixels), strict=False)))[0] for part in parts])

    def _session_for(self, shape: tuple[int, ...]) -> Any:
        """The session that is opened for one image of ``shape``, of the first
        shapes; for others, that of dynamic shapes."""
        names = self.session.get_inputs()[0].shape
        if shape not in self._fixed:
            if len(self._fixed) >= len(self.sizes) + _MORE_SHAPES:
                return self.session
            self._fixed[shape] = self._opened({
                name: length for name, length
                in zip(names, shape, strict=True) if isinstance(name, str)})
        return self._fixed[shape]

    def _opened(self, lengths: dict[str, int]) -> Any:
        """A session in which the dimensions of these names have lengths."""
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        for name, length in lengths.items():
            options.add_free_dimension_override_by_name(name, length)
        return self._runtime.InferenceSession(self.path, options,
                                              providers=self._providers)


def files_in(path: str) -> list[str]:
    """The files of a network: ``path`` itself, or those of the folder that
    ``tools/export.py --size all`` wrote.

    Raises:
        UserError: for a folder without a manifest, or of another format.
    """
    if not osp.isdir(path):
        return [path]
    try:
        with open(osp.join(path, MANIFEST), encoding='utf-8') as file:
            manifest = json.load(file)
        kind = manifest['format']
        names = [osp.join(path, each['file']) for each in manifest['files']]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'The folder {path!r} must have the {MANIFEST} of '
                        'tools/export.py --size all, but it cannot be read '
                        f'({error}). Name a file, or export again.') from None
    if kind != 'onnx':
        raise UserError(f'The files in {path!r} must be of the format onnx, '
                        f'but are {kind}. Export again by --format onnx.')
    if not names:
        raise UserError(f'The {MANIFEST} in {path!r} must name files, but '
                        'names none. Export again.')
    return names
