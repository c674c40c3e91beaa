"""One image at several sizes: what is drawn is what the network gets."""
import os.path as osp

import cv2
import exports
import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from show_sizes import as_pixels, samples_of, show_sizes, views_of
from torch import nn

from sct_mm import Cascade, use_scale
from sct_mm.datasets.base_size import BaseSize
from sct_mm.utils.errors import UserError

DETECTOR = osp.join(ROOT, 'configs',
                    'sct_retinanet_r18_fpn_1xb8_fashion-det.py')


@pytest.fixture
def demo(tmp_path):
    """show_sizes(image, ...) of a network of random weights."""
    config, checkpoint, options = exports.fashion(tmp_path)

    def show(image, **more):
        return show_sizes(config, checkpoint, image, cfg_options=options,
                          **{'out': str(tmp_path / 'a.png'), 'force': True,
                             **more})
    show.config, show.checkpoint = config, checkpoint
    show.images = np.frombuffer((tmp_path / 't10k-images-idx3-ubyte')
                                  .read_bytes()[16:], np.uint8).reshape(
                                      -1, 28, 28)
    return show


def test_a_classifiers_views_are_a_cascades(demo, tmp_path):
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(demo.config)
    model = MODELS.build(dict(cfg.model,
                              data_preprocessor=cfg.data_preprocessor))
    model.load_state_dict(torch.load(demo.checkpoint)['state_dict'])
    image = torch.from_numpy(demo.images[3].copy())[None]
    inputs = model.data_preprocessor(dict(inputs=[image]))['inputs']
    found = demo(3, thresholds=0.0)
    assert [view.size for view in found['views']] == [14, 21, 28]
    assert found['stop'] == 0 and found['classes'] == tuple('abcdefghij')
    for view in found['views']:
        limits = [1.0 if size < view.size else 0.0 for size in (14, 21)]
        want = Cascade(model, (14, 21, 28), limits)(inputs)
        assert int(want.sizes) == view.size
        torch.testing.assert_close(view.scores, want.scores[0])
    np.testing.assert_allclose(found['views'][-1].pixels, demo.images[3],
                               atol=1e-3)
    confidences = [float(v.scores.max()) for v in found['views']]
    assert demo(3, thresholds=1.0)['stop'] == 2
    assert demo(3, thresholds=[1.0, confidences[1] - 1e-4])['stop'] == 1
    assert demo(3)['stop'] is None
    assert osp.getsize(tmp_path / 'a.png') > 3000


def test_a_file_is_the_image_of_the_test_set(demo, tmp_path):
    path = str(tmp_path / 'bag.png')
    cv2.imwrite(path, demo.images[5])
    found, want = demo(path, sizes='14:28:7'), demo(5)
    assert found['truth'] is None and want['truth'] is not None
    for got, view in zip(found['views'], want['views'], strict=True):
        torch.testing.assert_close(got.scores, view.scores)
        np.testing.assert_array_equal(got.pixels, view.pixels)


def test_a_detectors_boxes_are_mmdets(tmp_path):
    pytest.importorskip('mmdet')
    options = exports.clothes(tmp_path)
    cfg = Config.fromfile(DETECTOR)
    model = exports.built(cfg.model, 'mmdet')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'd.pth')
    from mmdet.apis import inference_detector
    out = str(tmp_path / 'a.png')
    found = show_sizes(DETECTOR, str(tmp_path / 'd.pth'), 1, out, [64, 128],
                       least=0.0, cfg_options=options)
    assert [view.size for view in found['views']] == [64, 128]
    assert found['views'][0].pixels.shape[0] == 64 and osp.getsize(out) > 3000
    assert found['classes'] == cfg.clothes
    name = sorted((tmp_path / 'val').iterdir())[1]
    model.cfg = cfg
    init_default_scope('mmdet')
    with use_scale(model, 128):
        want = inference_detector(model, str(name)).pred_instances
    got = found['views'][1].boxes
    torch.testing.assert_close(got.bboxes, want.bboxes)
    torch.testing.assert_close(got.scores, want.scores)
    with pytest.raises(UserError, match='RetinaNet finds boxes. Leave --casc'):
        show_sizes(DETECTOR, str(tmp_path / 'd.pth'), 1, out, [64, 128], 0.5,
                   force=True, cfg_options=options)


def test_pixels():
    grey = torch.tensor([[[-1.0, 0.0], [0.5, 1.0]]])
    np.testing.assert_allclose(as_pixels(grey, object()),
                               [[0, 127.5], [191.25, 255]])
    assert as_pixels(torch.zeros(3, 2, 4)).shape == (2, 4, 3)


@pytest.mark.parametrize('loads', [True, False])
@pytest.mark.parametrize('to_rgb', [True, False])
def test_a_file_is_shown_in_its_own_colours(to_rgb, loads, tmp_path):
    """The network gets what its data set gives: BGR of files that mmcv loads,
    RGB of arrays, as of CIFAR; each turned round by ``to_rgb``."""
    init_default_scope('mmpretrain')
    rgb = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    path = str(tmp_path / 'a.png')
    Image.fromarray(rgb).save(path)
    mean, std = [10., 20., 30.], [2., 3., 4.]
    model = MODELS.build(dict(
        type='ImageClassifier', backbone=dict(
            type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4),
        neck=dict(type='GlobalAveragePooling'), head=dict(
            type='LinearClsHead', num_classes=3, in_channels=32),
        data_preprocessor=dict(mean=mean, std=std, to_rgb=to_rgb))).eval()
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[
        *[dict(type='LoadImageFromFile')] * loads,
        dict(type='Resize', scale=8), dict(type='mmpretrain.PackInputs')]))))
    view, = views_of(model, cfg, path, BaseSize(8, 8), (8, ), None,
                     0.3)['views']
    np.testing.assert_allclose(view.pixels, rgb, atol=1e-3)
    order = rgb if to_rgb == loads else rgb[..., ::-1]
    x = (torch.from_numpy(order.copy()) - torch.tensor(mean)
         ) / torch.tensor(std)
    with torch.no_grad():
        want = model(x.permute(2, 0, 1)[None], mode='tensor').softmax(1)
    torch.testing.assert_close(view.scores, want[0])


@pytest.mark.parametrize('image, options, match', [
    (12, {}, 'one of 12 of the test set, but got 12'),
    ('no.png', {}, "must be a file, but got 'no.png'"),
    (__file__, {}, 'a file that OpenCV reads'),
    (1, dict(sizes='x'), '`sizes` must be positive ints'),
    (1, dict(thresholds=2.0), 'from 0 to 1'),
    (1, dict(least=-1), '`least` must be a finite number from 0 to 1'),
    (1, dict(out='a.jpg'), "must be a .png, but got 'a.jpg'"),
    (1, dict(out=__file__ + '.png', thresholds=[0.1] * 3),
     'but got 3 for 3 sizes')])
def test_what_is_refused(demo, image, options, match):
    with pytest.raises(ValueError, match=match):
        demo(image, **options)
    assert not osp.exists(__file__ + '.png')


def test_a_file_is_read_as_the_pipeline_reads(tmp_path):
    """As grey, where it says so; an empty file is refused."""
    path = str(tmp_path / 'a b.png')
    cv2.imwrite(path, np.random.default_rng(0).integers(
        0, 255, (8, 9, 4)).astype(np.uint8))
    reading = dict(type='LoadImageFromFile', color_type='grayscale',
                   backend_args=dict(backend='petrel'))
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[
        reading, dict(type='Resize', scale=6),
        dict(type='mmpretrain.PackInputs')]))))
    init_default_scope('mmpretrain')
    grey, = samples_of(cfg, path, [6], 3)
    assert grey['inputs'].shape == (1, 6, 6)
    (tmp_path / 'empty.png').touch()
    with pytest.raises(UserError, match='a file that OpenCV reads'):
        samples_of(cfg, str(tmp_path / 'empty.png'), [6], 3)


def test_the_tool(demo, tmp_path, run_tool):
    out = tmp_path / 'shown.png'
    args = ('visualizations/show_sizes.py', demo.config, demo.checkpoint, 2,
            '--cascade', 1, '--out', out, '--cfg-options',
            f'test_dataloader.dataset.data_root={tmp_path}')
    code, text = run_tool(*args)
    assert code == 0 and text.endswith(
        'the image at 14, 21, 28 pixels; the cascade stops at 28.\n'), text
    before = out.read_bytes()
    code, text = run_tool(*args)
    assert code == 2 and 'exists already.' in text
    assert out.read_bytes() == before


def test_a_file_needs_a_test_pipeline(demo, tmp_path):
    with pytest.raises(UserError, match='must have a `test_dataloader`'):
        show_sizes(demo.config, demo.checkpoint, 'a.png',
                   str(tmp_path / 'a.png'),
                   cfg_options={'test_dataloader': None})


@pytest.mark.parametrize('channels', [2, 4])
def test_images_that_are_neither_grey_nor_in_colour(channels):
    model = nn.Conv2d(channels, 2, 1)
    model.data_preprocessor = None
    with pytest.raises(UserError, match='1 or 3 channels to be shown, but '
                       f'the network takes {channels}'):
        views_of(model, None, 0, BaseSize(8, 8), (8, ), None, 0.3)
