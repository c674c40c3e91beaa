"""Adaptations of small networks, for the tests of adapt()."""
import itertools
import os
import os.path as osp
import sys

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from sct_mm.apis import adapt
from sct_mm.engine.adaptation import keeping
from sct_mm.utils.config import load_config

STOCK = 'resnet18_1xb128_fashion-mnist-28px.py'
CONFIG = osp.join('tools', 'benchmarks', 'experiments', 'configs', STOCK)
FEW = {'train_dataloader.batch_size': 16,
       'train_dataloader.dataset.indices': 96}
SCALES = (28, 21, 14)
module = sys.modules['sct_mm.apis.adapt']  # hidden by its function


def let_all_gain():
    """Let statistics that were estimated serve better, and let each size keep
    what came last, since no network of a few images gains."""
    falling = itertools.count(0, -1)
    keeping.score = lambda metrics: next(falling)
    keeping.best = lambda found: list(found)[-1]


@pytest.fixture
def all_gain(monkeypatch, request):
    """A test by the name of `decides` decides by what was measured. Networks
    that are not trained may give all images one class."""
    for name in ('best', 'score'):  # put back afterwards
        monkeypatch.setattr(keeping, name, getattr(keeping, name))
    if 'one_class' not in request.node.name:
        monkeypatch.setattr(module.HeldOutImages, 'check_answers',
                            lambda self: None)
    if 'decides' not in request.node.name:
        let_all_gain()


@pytest.fixture
def stock(tmp_path, monkeypatch, small_root):
    """A checkpoint of the stock network; the network; a folder."""
    monkeypatch.chdir(small_root)
    init_default_scope('mmpretrain')
    model = MODELS.build(Config.fromfile(CONFIG).model)
    for name, value in model.state_dict().items():
        if name.endswith('running_var'):
            value.uniform_(0.5, 2)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    return str(tmp_path / 'a.pth'), model.eval(), str(tmp_path / 'out')


def adapt_stock(stock, epochs=1, scales=SCALES, **options):
    return adapt(CONFIG, stock[0], scales, epochs, stock[2],
                 cfg_options=FEW, **options)


def tensors(path):
    return torch.load(path, weights_only=True)['state_dict']


def rows_of(old, new, scales=3):
    """{name of a norm's tensor: (its value in the stock network, its rows)}"""
    return {name: (value, new[name].view(scales, -1))
            for name, value in old.items()
            if new[name].numel() == scales * value.numel() > scales}


def answers(result, size=14):
    """Of the network that was written, unpinned."""
    config = load_config(result['config'])
    init_default_scope('mmpretrain')
    model = MODELS.build(config.model)
    model.load_state_dict(tensors(result['checkpoint']))
    torch.manual_seed(0)
    return model.eval()(torch.randn(4, 1, size, size))


def folder_of(path, count, size=40):
    generator = np.random.default_rng(0)
    os.makedirs(path)
    for index in range(count):
        mmcv.imwrite(generator.integers(0, 256, (size, size, 3), np.uint8),
                     osp.join(path, f'{index}.png'))
    return str(path)


class Killed(BaseException):
    """The end of a process, which no part of a run catches."""


@pytest.fixture
def killed(stock, monkeypatch):
    """A run that was killed in its training."""
    def die(*args):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(module, 'train', die)
        adapt_stock(stock)
    return stock
