"""The passes of the first step that only record leave nothing behind."""
import random
import threading
from collections import deque

import numpy as np
import pytest
import torch
from conftest import SCALES, TinyModel
from helpers import batch, ssbn_model
from mmengine.hooks import Hook
from mmengine.runner.activation_checkpointing import (
    turn_on_activation_checkpointing,
)
from torch import nn
from torch.testing import assert_close

from sct_mm import SSBN, SCTLossHook
from sct_mm.evaluation.measure import network_stride
from sct_mm.models.scratch_copy import scratch_copy
from sct_mm.models.size_selection import ssbn_layers


class Head:
    """Plain Python, as the assigners and samplers of detectors are."""
    calls = 0

    def __init__(self):
        self.sizes, self.queue = [], deque(maxlen=2)


class Remembers(TinyModel):
    """A model that leaves traces of each pass, of all kinds."""

    def __init__(self):
        super().__init__(lambda c: SSBN(c, SCALES))
        self.head, self.calls, self.seen = Head(), 0, {}
        self.register_buffer('bank', torch.zeros(1))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        size = inputs.shape[-1]
        self.calls += 1
        self.head.calls += 1
        self.head.sizes.append(size)
        self.head.queue.append(inputs.mean())
        self.seen[size] = self.seen.get(size, 0) + 1
        self.bank = torch.cat([self.bank, inputs.new_ones(1)])
        self.head.drawn = (torch.rand(1), np.random.rand(), random.random())
        return super().forward(inputs, data_samples, mode)


class Follows(TinyModel):
    """A model with an encoder that each pass moves, as mmengine's averaged
    models are: frozen parameters."""

    def __init__(self):
        super().__init__(lambda c: SSBN(c, SCALES))
        self.encoder = nn.Linear(2, 2).requires_grad_(False)
        self.encoder.weight.zero_()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.encoder.weight.add_(1)
        return super().forward(inputs, data_samples, mode)


def traces(model):
    return (model.calls, model.head.calls, model.head.sizes,
            len(model.head.queue), model.seen, len(model.bank))


def drawn():
    return (torch.rand(1).item(), np.random.rand(), random.random())


def seed():
    torch.manual_seed(0), np.random.seed(0), random.seed(0)


@pytest.mark.parametrize('options', [
    dict(scales_per_step=1), dict(scales_per_step=2, between=1.0)])
def test_a_pass_that_records_leaves_no_trace(options):
    model, counted = Remembers(), []
    model.net[0].register_forward_hook(lambda *args: counted.append(args))
    model.net[1].register_forward_pre_hook(lambda *args: counted.append(args))
    hook = SCTLossHook(**options)
    hook.attach(model)
    seed()
    model(**batch(), mode='loss')
    passes = len(hook.sct.schedule.passes(8, 0))
    assert traces(model) == (passes, passes, model.head.sizes, passes,
                             dict.fromkeys(model.head.sizes, 1), passes + 1)
    assert len(counted) == 2 * passes
    for layer in ssbn_layers(model):
        assert set(layer.extents) == set(SCALES)
    after = drawn()
    seed()
    for _ in range(passes):
        drawn()
    assert after == drawn()


def test_it_is_the_same_step_as_that_of_a_model_that_knows_its_extents():
    models = [ssbn_model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for layer in ssbn_layers(models[1]):
        for scale in SCALES:
            layer.extents.add(scale, scale)
    for model in models:
        SCTLossHook(scales_per_step=1).attach(model)
        model(**batch(), mode='loss')['loss'].backward()
    for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=0, atol=0)
    for ours, theirs in zip(*(m.buffers() for m in models), strict=True):
        assert torch.equal(ours, theirs)


class Counter(Hook):
    """One of a Runner, which cannot be copied."""
    calls = 0

    def __init__(self):
        self.runner = threading.Lock()

    def count(self, *args):
        self.calls += 1


def test_hooks_of_a_runner_count_nothing():
    model, counter = ssbn_model(), Counter()
    model.register_forward_hook(counter.count)
    SCTLossHook(scales_per_step=1).attach(model)
    model(**batch(), mode='loss')
    assert counter.calls == 1


@pytest.mark.parametrize('change', [
    lambda model: setattr(model, 'lock', threading.Lock()),
    lambda model: setattr(model, 'forward', model.forward)])
def test_a_model_that_cannot_be_copied_records_itself(change):
    """A `forward` that is bound or compiled is that of the model."""
    model = ssbn_model()
    change(model)
    before = {k: v.clone() for k, v in model.state_dict().items()
              if k.endswith(('running_mean', 'weight'))}
    hook = SCTLossHook(scales_per_step=1)
    hook.attach(model)
    model(**batch(), mode='loss')
    trained = hook.sct.schedule.passes(8, 0)[0].scale
    for index, layer in enumerate(ssbn_layers(model)):
        assert set(layer.extents) == set(SCALES) and layer.training
        assert layer.num_batches_tracked.tolist() == [
            int(scale == trained) for scale in SCALES], index
    for name, value in before.items():
        if not name.endswith('running_mean'):
            assert torch.equal(model.state_dict()[name], value)


@pytest.mark.filterwarnings('ignore:None of the inputs have requires_grad')
def test_a_copy_of_which_a_part_runs_the_model():
    records = []
    for wraps in (False, True):
        model = ssbn_model()
        model.net = nn.Sequential(model.net[:3], model.net[3:])
        if wraps:
            turn_on_activation_checkpointing(model, 'net.1')
        SCTLossHook(scales_per_step=1).attach(model)
        model(**batch(), mode='loss')
        records.append([layer.get_extra_state().tolist()
                        for layer in ssbn_layers(model)])
    assert records[0] == records[1]


@pytest.mark.parametrize('copied', [True, False])
def test_frozen_parameters_move_by_the_step_alone(copied):
    model = Follows()
    if not copied:
        model.lock = threading.Lock()
    hook = SCTLossHook(scales_per_step=1)
    hook.attach(model)
    model(**batch(), mode='loss')
    assert (model.encoder.weight == 1).all()
    assert set(ssbn_layers(model)[0].extents) == set(SCALES)


def test_a_copy_shares_parameters_and_records_only():
    model = Remembers()
    copied = scratch_copy(model)
    for ours, theirs in zip(copied.parameters(), model.parameters(),
                            strict=True):
        assert ours is theirs
    for ours, theirs in zip(copied.buffers(), model.buffers(), strict=True):
        assert ours is not theirs and torch.equal(ours, theirs)
    for ours, theirs in zip(ssbn_layers(copied), ssbn_layers(model),
                            strict=True):
        assert ours is not theirs and ours.extents is theirs.extents


def test_the_stride_is_measured_without_a_trace():
    model = Remembers()
    before = traces(model)
    seed()
    assert network_stride(model, 3) == 2 and traces(model) == before
    after = drawn()
    seed()
    assert after == drawn()
