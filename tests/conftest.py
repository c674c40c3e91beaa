"""Shared pieces of the tests: a small model, and data of a moment."""
import os
import os.path as osp
import sys

import pytest
import torch
from hypothesis import settings
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import sct_mm  # noqa: F401  (with it torch reads mmengine's checkpoints)

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
os.environ.setdefault('MPLBACKEND', 'Agg')
SCALES = (16, 12, 8)
# A slow machine is no failure, and each draws the same examples.
settings.register_profile('same', deadline=None, derandomize=True,
                          database=None)
settings.load_profile('same')
settings.register_profile('fuzz', max_examples=2000,  # see tests/test_fuzz
                          derandomize=False)
# The first process would take the one GPU, the second find none.
two_processes = pytest.mark.skipif(
    torch.cuda.device_count() == 1,
    reason='two processes need two GPUs, or none')


def meeting_place():
    """The store at which two processes meet, as torchrun holds one: who keeps
    it keeps its port, which nobody else can take meanwhile."""
    return torch.distributed.TCPStore('127.0.0.1', 0, is_master=True,
                                      wait_for_workers=False)


def become_one_of_two(rank, port):
    """What torchrun sets in a process of two."""
    os.environ.update(RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank),
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
                      TORCHELASTIC_USE_AGENT_STORE='True')
    torch.set_num_threads(1)


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


@pytest.fixture
def run_tool():
    """Run a tool as a user does; returns (exit code, all its output)."""
    import subprocess

    def run(tool, *args, cwd=ROOT):
        done = subprocess.run(
            [sys.executable, osp.join(ROOT, 'tools', tool), *map(str, args)],
            cwd=cwd, capture_output=True, text=True,
            env={**os.environ, 'PYTHONPATH': ROOT, 'COLUMNS': '120'})
        return done.returncode, done.stdout + done.stderr

    return run
