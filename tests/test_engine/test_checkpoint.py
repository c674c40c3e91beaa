"""Checkpoints load with the protection on, and are whole or absent."""
import io
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.logging import HistoryBuffer

import sct_mm  # noqa: F401


def load(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def test_what_mmengine_saves_loads():
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    loaded = load(dict(history=history, scalar=np.float64(2), flag=np.bool_(1),
                       whole=np.int64(3), array=np.ones(2, np.float32)))
    assert loaded['history'].statistics('mean') == 2
    assert loaded['scalar'] == 2 and loaded['whole'] == 3
    assert (loaded['array'] == 1).all()


class Attribute:
    """Pickles as getattr(owner, name)."""

    def __init__(self, owner, name):
        self.call = owner, name

    def __reduce__(self):
        return getattr, self.call


@pytest.mark.parametrize('attribute', [
    Attribute(HistoryBuffer, '__init__'), Attribute(np.ndarray, 'tofile')])
def test_getattr_is_not_let_in(attribute):
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
        load(attribute)


def test_other_types_stay_refused():
    with pytest.raises(pickle.UnpicklingError, match='posix'):
        load(type('Evil', (), {'__reduce__': lambda s: (
            os.system, ('true', ))})())


def test_a_write_that_fails_leaves_the_file_before(tmp_path, monkeypatch):
    backend = get_file_backend(
        'x', backend_args=dict(backend='atomic_local'))
    path = tmp_path / 'folder' / 'epoch_1.pth'
    backend.put(b'first', path)

    def full(*args):
        raise OSError('no space left')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='no space'):
        backend.put(b'second', path)
    assert path.read_bytes() == b'first'
