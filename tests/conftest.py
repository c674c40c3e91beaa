"""Shared pieces of the tests: a small model, and data of a moment."""
import functools
import gc
import glob
import math
import os
import os.path as osp
import sys

import forks
import mmengine.config
import numpy as np
import pytest
import torch
from adaptations import all_gain, killed, stock  # noqa: F401  (fixtures)
from hypothesis import settings
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import sct_mm  # noqa: F401  (with it torch reads mmengine's checkpoints)
from sct_mm.evaluation import measure
from sct_mm.runtime import latency

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
os.environ.setdefault('MPLBACKEND', 'Agg')
SCALES = (16, 12, 8)
# A slow machine is no failure, and each draws the same examples.
settings.register_profile('same', deadline=None, derandomize=True,
                          database=None)
settings.load_profile('same')
settings.register_profile('fuzz', max_examples=2000,  # see tests/test_fuzz
                          derandomize=False)
# For each config, mmengine reads all metafiles of its host, and formats it by
# yapf, for up to a second. Here programs alone read what it writes.
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)
mmengine.config.config.FormatCode = lambda text, **style: (text, True)
# As few calls as there may be: no test looks at a time.
measure.SECONDS = latency.SECONDS = 0.0
# The first process would take the one GPU, the second find none.
two_processes = pytest.mark.skipif(
    torch.cuda.device_count() == 1,
    reason='two processes need two GPUs, or none')


def meeting_place():
    """The store at which two processes meet, as torchrun holds one: who keeps
    it keeps its port, which nobody else can take meanwhile."""
    return torch.distributed.TCPStore('127.0.0.1', 0, is_master=True,
                                      wait_for_workers=False)


def one_of_two(rank, port):
    """What torchrun sets in the environment of a process of two."""
    return dict(RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank),
                MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
                TORCHELASTIC_USE_AGENT_STORE='True')


def become_one_of_two(rank, port):
    os.environ.update(one_of_two(rank, port))
    torch.set_num_threads(1)


def pytest_collection_finish(session):
    """Each data set of mmengine collects garbage: leave out what the hosts
    and the tests have imported, which takes half a second each time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    yield
    DefaultScope._instance_dict.clear()  # a Runner leaves its scope behind


@pytest.fixture
def double_precision():
    """Rounding does not grow over the steps to what a test could see."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@MODELS.register_module(force=True)
class TinyModel(BaseModel):
    """conv, norm, conv, norm, global pooling, norm, classifier."""

    def __init__(self, norm, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor, init_cfg)
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), norm(4), nn.ReLU(),
            nn.Conv2d(4, 6, 3, 1, 1), norm(6), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), norm(6), nn.Flatten(), nn.Linear(6, 5))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.net(inputs)
        if mode != 'loss':
            return logits
        target = logits.new_tensor([int(s.gt_label) for s in data_samples],
                                   dtype=torch.long)
        accuracy = (logits.argmax(1) == target).float().mean()
        return dict(loss=nn.functional.cross_entropy(logits, target),
                    accuracy=accuracy)


@pytest.fixture(scope='session')
def small_root(tmp_path_factory):
    """The repository, but its Fashion-MNIST has the first 256 images alone:
    a host reads all of them for two seconds, however few a test uses."""
    root = tmp_path_factory.mktemp('root')
    for name in ('configs', 'tools'):
        (root / name).symlink_to(osp.join(ROOT, name))
    folder = root / 'data' / 'fashion-mnist'
    folder.mkdir(parents=True)
    for path in glob.glob(osp.join(ROOT, 'data/fashion-mnist/*-ubyte')):
        with open(path, 'rb') as file:
            kind = file.read(4)
            sizes = file.read(4 * kind[3])[4:]
            bytes_each = math.prod(np.frombuffer(sizes, '>i4'))
            (folder / osp.basename(path)).write_bytes(
                kind + (256).to_bytes(4, 'big') + sizes
                + file.read(256 * bytes_each))
    return root


@pytest.fixture(scope='session')
def start_tool():
    """Run a tool as a user does; returns (exit code, all its output)."""
    import subprocess

    def run(tool, *args, cwd=ROOT):
        done = subprocess.run(
            [sys.executable, osp.join(ROOT, 'tools', tool), *map(str, args)],
            cwd=cwd, capture_output=True, text=True,
            env={**os.environ, 'PYTHONPATH': ROOT, 'COLUMNS': '120'})
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture(scope='session')
def run_tool():
    """As ``start_tool``, in a process that need not import torch. One test of
    each kind of tool starts it."""
    return lambda tool, *args, **options: forks.run(
        osp.join('tools', tool), *args, **options)
