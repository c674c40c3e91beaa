"""What the tests of a GPU share. They are skipped, with that reason, where
torch sees none; `SCT_TEST_DEVICE=cpu` runs on the CPU what needs no GPU.
"""
import os
from contextlib import contextmanager

import pytest
import torch
from conftest import SCALES
from mmengine.registry import MODELS
from torch import nn

from sct_mm import SSBN, use_scale

DEVICE = os.environ.get('SCT_TEST_DEVICE', 'cuda')
GPU = DEVICE == 'cuda'
pytestmark = [
    pytest.mark.skipif(GPU and not torch.cuda.is_available(),
                       reason='torch sees no GPU'),
    # mmengine's AMP asks torch for names of before.
    pytest.mark.filterwarnings('ignore:.torch.cuda.amp:FutureWarning'),
]
needs_gpu = pytest.mark.skipif(not GPU, reason='SCT_TEST_DEVICE is no GPU')


@contextmanager
def no_synchronisation():
    before = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode('error')
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.fixture(autouse=True)
def exact():
    """Convolutions that give the same twice, in full single precision."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True,
                                    allow_tf32=False):
        yield


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), SSBN(8, SCALES), nn.ReLU(),
        nn.Conv2d(8, 5, 3, 1, 1), SSBN(5, SCALES)).to(DEVICE)


def classifier(norm='SSBN'):
    import mmpretrain.models  # noqa: F401
    norm_cfg = dict(type=norm, **(dict(scales=SCALES) if norm == 'SSBN'
                                  else {}))
    return MODELS.build(dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=8,
                      stem_channels=8, norm_cfg=norm_cfg),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=64,
                  loss=dict(type='CrossEntropyLoss')))).to(DEVICE).train()


def labelled(inputs):
    from mmpretrain.structures import DataSample
    return dict(inputs=inputs, data_samples=[
        DataSample().set_gt_label(i % 5).to(DEVICE)
        for i in range(len(inputs))])


def images(n=8, size=16):
    return torch.randn(n, 3, size, size).to(DEVICE)


def trained():
    """A small network that has seen each of its scales."""
    net = small_net()
    for scale in SCALES:
        with use_scale(net, scale):
            net(images(size=scale) * scale)
    return net
