"""Graphs of detectors: images of all shapes, and which part is exported."""
import os.path as osp

import pytest
import torch
from conftest import ROOT
from exports import built, clothes
from mmengine.config import Config

from sct_mm import use_scale
from sct_mm.apis import export
from sct_mm.export.formats import graph_run
from sct_mm.export.network import relative_difference
from sct_mm.export.verified_file import Request, make_graph
from sct_mm.utils.errors import UserError

ONE_STAGE = osp.join(ROOT,
                     'configs/sct_retinanet_r18_fpn_1xb8_fashion-det.py')
SHAPES = ((3, 64, 80), (1, 80, 64), (2, 96, 112))
# Two orders of adding the n = 512 * 3 * 3 products of a convolution differ by
# some n**0.5 * eps / 2 of their size, 4e-6, and some 20 convolutions follow
# each other.
ROUNDING = 20 * 4608**0.5 * torch.finfo(torch.float32).eps / 2  # 8e-5


def images(channels, factor=1):
    torch.manual_seed(1)
    return [torch.randn(n, channels, height * factor, width * factor)
            for n, height, width in SHAPES]


def two_stage():
    cfg = Config.fromfile(osp.join(
        ROOT, 'configs/sct_faster-rcnn_r50_fpn_8xb2-1x_coco.py'))
    cfg.model.backbone.update(depth=18, init_cfg=None, norm_cfg=dict(
        type='SSBN', scales=(160, 128)))
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    return built(cfg.model, 'mmdet')


def check(model, size, made, kind, x, part):
    with use_scale(model, size), torch.no_grad():
        want = (model.extract_feat(x) if part == 'features' else [
            each for level in model(x, mode='tensor') for each in level])
    got = graph_run(kind, made.data)(x)
    assert relative_difference(got, list(want)) < ROUNDING
    assert made.entry['part'] == part and made.entry['norms'] == 0


@pytest.mark.parametrize('kind', ['onnx', 'pt2', 'torchscript'])
def test_the_maps_of_a_one_stage_detector(kind):
    model = built(Config.fromfile(ONE_STAGE).model, 'mmdet')
    made = make_graph(model, 64, images(1), Request(kind), 16)
    assert made.entry['outputs'] == [
        f'output_{what}_{level}' for what in (0, 1) for level in range(3)]
    assert not made.notes
    for x in images(1)[1:] + [torch.randn(4, 1, 128, 64)]:
        check(model, 64, made, kind, x, 'network')


@pytest.mark.parametrize('kind', ['onnx', 'pt2', 'torchscript'])
def test_the_features_of_a_two_stage_detector(kind):
    model = two_stage()
    batches = images(3, 2)
    made = make_graph(model, 128, batches, Request(kind), 32)
    assert made.notes[0].startswith('FasterRCNN does not run on images ')
    assert made.notes[0].endswith('its backbone and neck are exported.')
    assert made.entry['outputs'] == [f'feature_{i}' for i in range(5)]
    for x in batches[1:]:
        check(model, 128, made, kind, x, 'features')


def test_a_two_stage_detector_that_is_asked_for_as_a_whole():
    with pytest.raises(UserError, match='The network of FasterRCNN cannot be '
                       'exported: it does not run on images alone'):
        make_graph(two_stage(), 128, images(3, 2), Request(
            'onnx', part='network'), 32)


def test_real_images_of_all_shapes(tmp_path):
    model = built(Config.fromfile(ONE_STAGE).model, 'mmdet')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    found = export(ONE_STAGE, str(tmp_path / 'a.pth'), 64,
                  str(tmp_path / 'b.pt'), 'torchscript',
                  cfg_options=clothes(tmp_path))
    assert found['files'][0]['difference'] < ROUNDING
