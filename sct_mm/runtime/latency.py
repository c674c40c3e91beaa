"""Measure exported files on this machine, and choose a size by it."""
import statistics
import time
from collections.abc import Sequence

import numpy as np

from ..utils.errors import UserError
from .network_file import NetworkFile
from .prepare import steps_at

SECONDS = 0.3  # for each size
ROUNDS = 5  # at least


def input_shape(file: NetworkFile, size: int) -> list[int]:
    """The shape of the input of one image of ``size`` pixels: a square, unless
    the last step of its preparation makes another."""
    about, shape = file.metadata, file.session.get_inputs()[0].shape
    steps = steps_at(about['steps'] or (), size / about['size'])
    last: dict = steps[-1] if steps else {}
    divisor = about.get('pad_size_divisor', 1)
    edges = [last.get(name, size) for name in ('height', 'width')]
    return [edge if isinstance(edge, int) else own for edge, own in zip(
        shape, [*[1] * (len(shape) - 2),
                *(each + -each % divisor for each in edges)], strict=True)]


def latencies_ms(files: dict[int, NetworkFile]) -> dict[int, float]:
    """The median milliseconds of one image at each size, without its
    preparation.

    The sizes are measured by turns, so that what else the machine does slows
    all alike.

    Args:
        files: {size in pixels: its file}.
    """
    images = {size: np.zeros(input_shape(file, size), np.float32)
              for size, file in files.items()}
    spent: dict[int, list[float]] = {size: [] for size in files}
    start = time.perf_counter()
    rounds = -1  # the first one warms up
    while rounds < ROUNDS or (time.perf_counter() - start
                              < SECONDS * len(files)):
        for size, file in files.items():
            before = time.perf_counter()
            file.run(images[size], size)
            if rounds >= 0:
                spent[size].append(time.perf_counter() - before)
        rounds += 1
    return {size: 1e3 * statistics.median(times)
            for size, times in spent.items()}


def largest_within(latencies: dict[int, float], budget_ms: float) -> int:
    """The largest size that takes at most ``budget_ms``.

    Raises:
        UserError: if none does, naming the nearest.
    """
    fitting = [size for size, spent in latencies.items()
               if spent <= budget_ms]
    if fitting:
        return max(fitting)
    size = min(latencies, key=latencies.__getitem__)
    raise UserError(f'No size takes at most {budget_ms:g} ms an image here: '
                    f'the nearest is {size} pixels, {latencies[size]:.3g} ms. '
                    'Allow more, or export a smaller size.')


def sizes_in(files: Sequence[NetworkFile]) -> dict[int, NetworkFile]:
    """{size in pixels: the file that serves it}, the largest first."""
    found = {size: file for file in files for size in file.sizes}
    return dict(sorted(found.items(), reverse=True))
