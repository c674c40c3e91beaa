"""Outputs, gradients and statistics of two networks, compared."""
import copy
import random
import warnings
from typing import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn


class Wrong(Exception):
    """A check has failed; the text says what."""


def seed() -> None:
    for each in (random.seed, np.random.seed, torch.manual_seed):
        each(0)


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The norm of the difference of two lists of tensors over that of
    ``theirs``; inf where they are not of the same shapes."""
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return float('inf')
    apart = total = 0.0
    for a, b in zip(ours, theirs):
        a, b = a.detach().double(), b.detach().double()
        same = (a == b) | (a.isnan() & b.isnan())
        apart += float(torch.where(same, 0, a - b).pow(2).sum())
        total += float(torch.where(same & ~b.isfinite(), 0, b).pow(2).sum())
    return (apart / max(total, 1e-30))**0.5


def expect_equal(ours, theirs, tolerance: float, what: str) -> None:
    found = difference(ours, theirs)
    if not found <= tolerance:
        raise Wrong(f'{what} differ by {found:.1e} of their norm')


def told(run: Callable, *args):
    """What ``run`` returns where no layer says that it cannot tell sizes
    apart; a network says it once."""
    with warnings.catch_warnings():
        warnings.filterwarnings('error', '.*sees the same at several')
        try:
            return run(*args)
        except UserWarning as error:
            if 'sees the same at several' not in str(error):
                raise
            raise Wrong('unpinned it cannot tell sizes apart, and warns so: '
                        'its first norm stands behind a pooling') from error


def said(error: BaseException) -> str:
    """An error in one line."""
    text = ' '.join(str(error).split())
    name = '' if isinstance(error, Wrong) else f'{type(error).__name__}: '
    return name + (text if len(text) < 160 else text[:157] + '...')


def takes_plain_dicts(model: nn.Module) -> bool:
    """Whether the host's network loads its own weights without the metadata
    of a state dict; torchvision's MNASNet does not."""
    try:
        copy.deepcopy(model).load_state_dict(dict(model.state_dict()))
    except ValueError:
        return False
    return True
