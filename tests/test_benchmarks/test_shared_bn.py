"""Less of SSBN than it has: shared last stages."""
import copy

import torch
from conftest import SCALES
from helpers import apart, batch, ssbn_model
from mmengine.registry import MODELS
from torch import nn

import tools.benchmarks.experiments.shared_bn  # noqa: F401
from sct_mm import use_scale
from sct_mm.models.size_selection import ssbn_layers


def test_a_part_with_plain_norms():
    net = ssbn_model()
    for layer in ssbn_layers(net):
        apart(layer)
    part = next(name for name, m in net.named_modules()
                if m in ssbn_layers(net))
    cfg = dict(type='WithSharedBN', shared=[part],
               model=dict(type=lambda: copy.deepcopy(net)))
    made = MODELS.build(cfg)
    assert type(made.get_submodule(part)) is nn.BatchNorm2d
    assert len(ssbn_layers(made)) == len(ssbn_layers(net)) - 1
    x = batch()['inputs']
    with use_scale(net.eval(), SCALES[0]), use_scale(made.eval(), SCALES[0]):
        torch.testing.assert_close(made(x), net(x))
