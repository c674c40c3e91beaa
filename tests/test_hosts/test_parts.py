"""Parts of siblings that the tools change for another size do what the host
makes of them at that size."""
import json

import cv2
import numpy as np
import pytest
import torch
from cases import HOSTS_OWN, folder_of, need
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.testing import assert_close

from sct_mm.datasets.image_folder import folder_dataset
from sct_mm.datasets.real_images import RealImages
from sct_mm.datasets.size_switch import SizeSwitch
from sct_mm.models.host_sizes import host_sizes
from sct_mm.utils.errors import UserError

pytestmark = HOSTS_OWN


def test_the_factor_of_associative_embedding_with_udp():
    """Of mmpose: its stride of aligned corners is not that of the base."""
    need('mmpose')
    from mmpose.codecs import AssociativeEmbedding

    def codec(ratio):
        return AssociativeEmbedding((round(512 * ratio), round(512 * ratio)),
                                    (round(128 * ratio), round(128 * ratio)),
                                    use_udp=True)

    model = nn.Module()
    model.head = nn.Module()
    model.head.decoder = codec(1)
    before = model.head.decoder.scale_factor.copy()
    for ratio in (0.5, 0.75, 1.25):
        want = codec(ratio)
        assert (want.scale_factor != before).any()
        with host_sizes(model, ratio):
            np.testing.assert_array_equal(model.head.decoder.scale_factor,
                                          want.scale_factor)
    np.testing.assert_array_equal(model.head.decoder.scale_factor, before)


def test_heatmaps_that_mspn_resizes():
    """Of mmpose: keypoints were twice as far from the corner."""
    need('mmpose')
    from mmpose.models import MSPNHead

    def head(ratio):
        torch.manual_seed(0)
        return MSPNHead(
            num_stages=1, num_units=1, unit_channels=8, out_channels=17,
            out_shape=(64 // ratio, 48 // ratio), level_indices=[0],
            decoder=dict(type='MegviiHeatmap', kernel_size=11, input_size=(
                192 // ratio, 256 // ratio), heatmap_size=(
                    48 // ratio, 64 // ratio))).eval()

    features, base = [[torch.rand(1, 8, 32, 24)]], head(1)
    with host_sizes(base, 0.5):
        got = base.predict(features, [])[0].keypoints
    want = head(2).predict(features, [])[0].keypoints
    np.testing.assert_array_equal(got, want)
    assert (base.predict(features, [])[0].keypoints != want).any()


def test_windows_of_a_segmentor():
    """Of mmseg, with the settings of a config."""
    need('mmseg')
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='EncoderDecoder', backbone=dict(
            type='ResNetV1c', depth=18, stem_channels=4, base_channels=4,
            num_stages=1, out_indices=(0, ), strides=(1, ), dilations=(1, )),
        decode_head=dict(type='FCNHead', in_channels=4, channels=4,
                         num_convs=1, num_classes=3, align_corners=False),
        test_cfg=ConfigDict(mode='slide', crop_size=(32, 32),
                            stride=(20, 20))))
    model.eval()
    image, meta = torch.rand(1, 3, 32, 48), [dict(ori_shape=(32, 48))]
    with torch.no_grad(), host_sizes(model, 0.5):
        got = model.inference(image, meta)
    model.test_cfg.update(crop_size=(16, 16), stride=(10, 10))
    with torch.no_grad():
        assert_close(got, model.inference(image, meta))


def test_shapes_of_batches_in_multiples_of_64(tmp_path_factory):
    """Of mmyolo's networks with six levels."""
    folder = folder_of('mmyolo', tmp_path_factory)
    init_default_scope('mmyolo')
    config = dict(
        type='YOLOv5CocoDataset', data_root=str(folder), test_mode=True,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        batch_shapes_cfg=dict(type='BatchShapePolicy', batch_size=2,
                              img_size=256, size_divisor=64),
        pipeline=[dict(type='LoadImageFromFile'),
                  dict(type='YOLOv5KeepRatioResize', scale=(256, 256)),
                  dict(type='LetterResize', scale=(256, 256),
                       allow_scale_up=False, pad_val=dict(img=114)),
                  dict(type='mmdet.PackDetInputs', meta_keys=('img_shape', ))])
    switch = SizeSwitch(dataset := DATASETS.build(config), config,
                        (256, 160, 128))
    # Images are 4:3, to which half a multiple is added.
    for size, want in ((256, (256, 320)), (160, (192, 256)),
                       (128, (128, 192))):
        with switch.at(size):
            assert dataset[0]['inputs'].shape[1:] == want


def test_one_pipeline_of_several_data_sets(tmp_path):
    """mmocr's ConcatDataset hands its pipeline to them."""
    need('mmocr')
    init_default_scope('mmocr')
    image = np.random.default_rng(0).integers(0, 256, (40, 100, 3), np.uint8)
    assert cv2.imwrite(str(tmp_path / 'a.png'), image)
    (tmp_path / 'a.txt').write_text(json.dumps(
        dict(filename='a.png', text='a')))
    part = dict(type='RecogTextDataset', data_root=str(tmp_path),
                ann_file='a.txt', pipeline=None)
    config = dict(
        type='ConcatDataset', datasets=[part, part], verify_meta=False,
        pipeline=[dict(type='LoadImageFromFile'),
                  dict(type='RescaleToHeight', height=32, min_width=32,
                       max_width=160),
                  dict(type='PadToWidth', width=160),
                  dict(type='PackTextRecogInputs')])
    dataset = DATASETS.build(config)
    switch = SizeSwitch(dataset, config, (32, 16))
    for size in (32, 16):
        with switch.at(size):
            for i in range(2):
                assert dataset[i]['inputs'].shape == (3, size, 5 * size)


def test_images_of_several_shapes(tmp_path):
    """mmseg's, as of ADE20K: its preprocessor refuses a batch of them."""
    need('mmseg')
    init_default_scope('mmseg')
    generator = np.random.default_rng(0)
    for i, width in enumerate((64, 50, 96)):
        assert cv2.imwrite(str(tmp_path / f'{i}.jpg'), generator.integers(
            0, 256, (64, width, 3), np.uint8))
    loader = dict(
        batch_size=1, num_workers=0, dataset=dict(
            type='BaseSegDataset', data_root=str(tmp_path), test_mode=True,
            metainfo=dict(classes=['a'], palette=[[0, 0, 0]]),
            data_prefix=dict(img_path=''), pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(256, 64), keep_ratio=True),
                dict(type='PackSegInputs')]),
        sampler=dict(type='DefaultSampler', shuffle=False))
    model = nn.Module()
    model.data_preprocessor = MODELS.build(dict(
        type='SegDataPreProcessor', mean=[120.] * 3, std=[60.] * 3,
        bgr_to_rgb=True))
    images = RealImages(Config(dict(
        default_scope='mmseg', model=dict(), test_dataloader=loader)),
        [64, 48], 8)
    for size in (64, 48):
        loader['dataset']['pipeline'][1]['scale'] = (4 * size, size)
        want = [model.data_preprocessor(batch, False)['inputs']
                for batch in Runner.build_dataloader(loader)]
        assert len({each.shape for each in want}) == 3
        assert_close(images.batches(model, size)[1:], want)


def test_a_folder_without_the_boxes_of_a_pose(tmp_path):
    """A top-down pipeline of mmpose needs them."""
    need('mmpose')
    init_default_scope('mmpose')
    assert cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((64, 64, 3),
                                                         np.uint8))
    data = DATASETS.build(folder_dataset(Config(dict(model=dict())), str(
        tmp_path), [dict(type='LoadImage'), dict(type='GetBBoxCenterScale'),
                    dict(type='TopdownAffine', input_size=(48, 64)),
                    dict(type='PackPoseInputs')]))
    with pytest.raises(UserError, match="no annotations, but the pipeline "
                       "needs 'bbox' of each. Leave --images out"):
        data[0]
