"""The stride that a size should be a multiple of."""
import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from sct_mm.evaluation.measure import network_stride


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
