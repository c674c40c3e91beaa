"""Parts of siblings that the tools change for another size do what the host
makes of them at that size."""
import json

import cv2
import numpy as np
from cases import HOSTS_OWN, folder_of, need
from mmengine.registry import DATASETS, init_default_scope
from torch import nn

from sct_mm.datasets.size_switch import SizeSwitch
from sct_mm.models.host_sizes import host_sizes

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
