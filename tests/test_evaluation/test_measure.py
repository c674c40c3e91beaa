"""Times in turns; the stride that a size should be a multiple of."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ssbn_model
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from sct_mm.apis.test import workload
from sct_mm.evaluation import measure
from sct_mm.evaluation.measure import (
    compared,
    flops_of,
    kept_batch,
    network_stride,
    spread_of,
    take_turns,
)
from sct_mm.models.pinning import use_scale
from sct_mm.models.size_selection import ssbn_layers


class Queries(nn.Module):
    """As mmdet's Deformable DETR, whose queries are halves of a parameter."""

    def __init__(self):
        super().__init__()
        self.conv, self.queries = nn.Conv2d(3, 4, 3), nn.Embedding(10, 8)
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        first, second = self.queries.weight.split(4, 1)
        return self.conv(x).sum() + self.layer(first).sum() + second.sum()


def test_flops_of_a_part_of_a_parameter():
    x = torch.rand(2, 3, 8, 8)
    assert flops_of(lambda: Queries()(x)) == (2 * 6 * 6 * 4 * 3 * 9
                                              + 10 * 4 * 2)


class Timed(nn.Module):
    """A model whose calls take the seconds that its input says."""

    def __init__(self, name, calls):
        super().__init__()
        self.net, self.name, self.calls = ssbn_model(), name, calls

    def test_step(self, batch):
        pin, = {layer.pinned_size for layer in ssbn_layers(self)}
        self.calls.append((self.name, pin, len(batch['inputs'])))
        return batch['seconds']


def at_a_size(model, size, one, batch):
    """The workload of a loop whose sizes are scales."""
    loop = SimpleNamespace(at=lambda size, timed: use_scale(
        model, size, freeze=timed), fp16=False)
    return workload(loop, size, model, one, batch)


def timers_of(workloads):
    return [timer for each in workloads for timer in each]


def test_models_and_sizes_take_turns(monkeypatch):
    monkeypatch.setattr(measure, 'timed', lambda run: run())
    monkeypatch.setattr(measure, 'ROUNDS', 3)
    calls = []
    models = [Timed(name, calls) for name in 'ab']
    one, batch = (dict(inputs=range(n), seconds=n / 40) for n in (1, 4))
    workloads = [at_a_size(model, size, one, batch)
                 for model in models for size in (16, 8)]
    shares = list(take_turns(timers_of(workloads)))
    turn = [[(name, size, n) for n in (1, 1, 1, 4)]  # two that warm up
            for name, size in (('a', 16), ('a', 8), ('b', 16), ('b', 8))]
    assert calls == [call for _ in range(4) for each in turn for call in each]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert {layer.pinned_size for model in models
            for layer in ssbn_layers(model)} == {None}
    for each in workloads:  # the first round, which warms up, does not count
        assert [len(timer.seconds) for timer in each] == [3, 3]
        assert each.times() == dict(
            latency_ms=25.0, latency_ms_quartiles=[25.0, 25.0],
            latency_reliable=True, images_per_s=40.0,
            images_per_s_quartiles=[40.0, 40.0], images_reliable=True)


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have passed, which only a test lets pass."""
    now = [0.0]
    monkeypatch.setattr(measure.time, 'perf_counter', lambda: now[0])
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    return now


def test_rounds_go_on_until_the_time_is_spent_for_all(monkeypatch, clock):
    model = Timed('a', [])

    def tick(batch):
        clock[0] += batch['seconds']

    monkeypatch.setattr(model, 'test_step', tick)
    works = [at_a_size(model, 16, *[dict(inputs=range(1), seconds=s)] * 2)
             for s in (0.004, 0.1)]
    timers = timers_of(works)
    monkeypatch.setattr(measure, 'SECONDS', 0.5)
    monkeypatch.setattr(measure, 'ROUNDS', 2)
    list(take_turns(timers))
    # A round takes 0.032 and 0.4 s; 2 s are to be spent.
    assert [len(timer.seconds) for timer in timers] == [5 * 5, 5, 5, 5]
    assert clock[0] == pytest.approx(6 * 0.432)


def test_a_file_and_the_stock_network_are_compared_round_by_round(
        monkeypatch, clock):
    monkeypatch.setattr(measure, 'ROUNDS', 7)
    seconds = iter([9, 9, 9, 1, 9, 2, 9, 4, 9, 1, 9, 2, 9, 4, 9, 2])
    threads = []

    def file():
        threads.append(torch.get_num_threads())
        clock[0] += next(seconds)

    def stock():
        clock[0] += 2.0

    before = torch.get_num_threads()
    got = compared(file, stock)
    assert got == dict(latency_ms=2e3, stock_latency_ms=2e3,
                       latency_ratio=[0.5, 1.0, 2.0])
    assert set(threads) == {1} and torch.get_num_threads() == before


@pytest.mark.parametrize('values, reliable', [
    ([10.0, 10.1, 10.2, 10.3, 90.0], False), ([9.0, 10.0, 11.0], True),
    ([10.0] * 9 + [500.0], True), ([1.0, 650.0] * 5, False)])
def test_a_spread_that_makes_a_median_worthless(values, reliable):
    got = spread_of('latency', 'ms', values)
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75),
                                    method='weibull')
    assert got['latency_ms'] == pytest.approx(middle)
    assert got['latency_ms_quartiles'] == pytest.approx([low, high])
    assert got['latency_reliable'] is reliable


def test_of_a_large_batch_a_part_is_kept():
    images = [torch.full((3, 8, 8), i, dtype=torch.uint8)
                for i in range(10)]
    loader = SimpleNamespace(dataset=[dict(inputs=p) for p in images],
                             collate_fn=lambda items: dict(
                                 inputs=[i['inputs'] for i in items]))
    batch = dict(inputs=images)
    assert kept_batch(loader, batch, 10 * 192) is batch
    assert kept_batch(loader, batch, 4 * 192 + 1)['inputs'] == images[:4]
    assert kept_batch(loader, batch, 5)['inputs'] == images[:1]
    stacked = dict(inputs=torch.stack(images))
    assert kept_batch(loader, stacked, 10 * 192) is stacked


def mmdet(name, change=lambda model: None):
    pytest.importorskip('mmdet')
    init_default_scope('mmdet')
    model = get_config(f'mmdet::{name}').model
    model.backbone.init_cfg = None
    change(model)
    return MODELS.build(model)


def thin_detr(model):
    model.backbone.depth, model.neck.in_channels = 18, [512]
    model.encoder.num_layers = model.decoder.num_layers = 1


# mmdet's DETR names arguments as mmcv once did.
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('name, change, want', [
    ('detr/detr_r50_8xb2-150e_coco.py', thin_detr, 32),
    ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', lambda model: None, 32),
    ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', lambda model: None, 32)])
def test_detectors_whose_head_needs_samples(name, change, want):
    model = mmdet(name, change)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [module.training for module in model.train().modules()]
    assert network_stride(model, 3) == want
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize('name, want', [
    ('resnet18', 32), ('vit_tiny_patch16_224', None)])
def test_timm_within_mmpretrain(name, want):
    pytest.importorskip('timm')
    init_default_scope('mmpretrain')
    model = MODELS.build(dict(
        type='TimmClassifier', model_name=name, pretrained=False,
        loss=dict(type='CrossEntropyLoss')))
    assert network_stride(model, 3) == want


@pytest.mark.parametrize('layers, want', [
    ([nn.Conv2d(3, 2, 3, 2, 1), nn.Conv2d(2, 2, 3, 4, 1)], 8),
    ([nn.Conv2d(3, 2, 3, 2, 1), nn.AdaptiveAvgPool2d(1),
      nn.Conv2d(2, 2, 1)], 2),
    ([nn.Conv2d(3, 2, 3, 2), nn.Conv2d(2, 2, 3, 2)], None),  # 63 pixels
    ([nn.Conv2d(3, 2, 3, 2, 1), nn.Flatten(), nn.Linear(5, 2)], None),
    ([nn.Flatten(), nn.Linear(3 * 256**2, 2)], None)])
def test_networks_of_torch(layers, want):
    assert network_stride(nn.Sequential(*layers), 3) == want
