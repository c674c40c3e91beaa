"""A momentum encoder moves as often as in a network of one size."""
import copy

import torch
from conftest import SCALES
from helpers import Classifier, batch
from mmengine.model import ExponentialMovingAverage
from torch.testing import assert_close

from sct_mm import SCTLossHook


class Momentum(Classifier):
    """Updates an average of its weights in each pass, as BYOL does."""

    def __init__(self, **options):
        super().__init__(**options)
        self.target = ExponentialMovingAverage(self.net, momentum=0.25)

    def forward(self, *args, mode='tensor', **kwargs):
        if mode == 'loss':
            self.target.update_parameters(self.net)
        return super().forward(*args, mode=mode, **kwargs)


def test_a_step_of_several_scales_is_one_update():
    net = Momentum().train()
    hook = SCTLossHook()
    hook.attach(net)
    net(**batch(), mode='loss')['loss'].backward()
    before = copy.deepcopy(net.target.module)
    with torch.no_grad():
        for parameter in net.net.parameters():
            parameter.add_(1)
    net(**batch(), mode='loss')['loss'].backward()
    hook.detach()
    assert net.target.steps == 2 and net.target.interval == 1
    for new, old in zip(net.target.module.parameters(),
                        before.parameters(), strict=True):
        assert_close(new, old + 0.25)
    assert len(SCALES) == 3
