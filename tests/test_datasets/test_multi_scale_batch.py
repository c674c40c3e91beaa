"""The batch transform against torchvision, and what it leaves alone."""
import copy

import numpy as np
import pytest
import torch
from mmengine.registry import TRANSFORMS
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

from sct_mm import MultiScaleBatch
from sct_mm.datasets.data_samples import private_copy


def batch(size=16, n=3):
    samples = []
    for i in range(n):
        sample = DataSample(metainfo=dict(
            img_shape=(size, size), scale_factor=(0.5, 0.25), img_path='a'))
        sample.set_gt_label(i).set_gt_score(torch.rand(5))
        samples.append(sample)
    return dict(inputs=torch.rand(n, 3, size, size), data_samples=samples,
                mode='loss')


def test_it_is_torchvisions_antialiased_resize():
    data = batch()
    small = MultiScaleBatch(scale=12, base_scale=16)(data)
    want = tv.resize(data['inputs'], [12, 12], antialias=True)
    assert_close(small['inputs'], want)
    assert small['mode'] == 'loss'


def test_samples_follow_share_their_labels_and_keep_their_class():
    data = batch()
    small = MultiScaleBatch(scale=12, base_scale=16)(data)
    for old, new in zip(data['data_samples'], small['data_samples'],
                        strict=True):
        assert type(new) is DataSample
        assert new.gt_label is old.gt_label and new.gt_score is old.gt_score
        assert new.img_shape == (12, 12) and new.img_path == 'a'
        assert new.scale_factor == (0.375, 0.1875)


def test_nothing_of_the_input_is_changed():
    data = batch()
    before = copy.deepcopy(data)
    MultiScaleBatch(scale=8, base_scale=16)(data)
    assert_close(data['inputs'], before['inputs'])
    for old, new in zip(before['data_samples'], data['data_samples'],
                        strict=True):
        assert old.metainfo == new.metainfo


def test_the_base_scale_is_the_batch_itself():
    data = batch()
    assert MultiScaleBatch(scale=16, base_scale=16)(data) is data


def test_edges_are_padded_to_multiples_of_the_divisor():
    inputs = torch.rand(1, 3, 64, 96)
    small = MultiScaleBatch(scale=40, base_scale=64, size_divisor=8,
                            pad_value=7)(dict(inputs=inputs))
    assert small['inputs'].shape == (1, 3, 40, 64)
    assert_close(small['inputs'][..., :60],
                 tv.resize(inputs, [40, 60], antialias=True))
    assert (small['inputs'][..., 60:] == 7).all()
    assert 'data_samples' not in small


def test_other_interpolation_and_dtype():
    inputs = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    transform = TRANSFORMS.build(dict(
        type='MultiScaleBatch', scale=8, base_scale=16, antialias=False,
        interpolation='nearest'))
    small = transform(dict(inputs=inputs))['inputs']
    assert_close(small, inputs[..., ::2, ::2])


@pytest.mark.parametrize('name, value, match', [
    ('gt_flow', PixelData(data=torch.zeros(2, 16, 16)),
     'DataSample.gt_flow.data'),
    ('proposals', InstanceData(bboxes=torch.zeros(2, 4)),
     r'DataSample.proposals.bboxes` of shape \(2, 4\)'),
    ('gt_instances', InstanceData(keypoints=torch.zeros(2, 17, 2)),
     r'DataSample.gt_instances.keypoints` of shape \(2, 17, 2\)'),
    ('gt_instances', InstanceData(bboxes=torch.zeros(2, 6)),
     r'DataSample.gt_instances.bboxes` of shape \(2, 6\)'),
    ('gt_instances', InstanceData(masks=torch.zeros(2, 16, 16)),
     r'DataSample.gt_instances.masks` of shape \(2, 16, 16\)'),
    ('depth', torch.zeros(16, 16), r'DataSample.depth` of shape \(16, 16\)'),
    ('mask', [[1, 2]], 'DataSample.mask` of list')])
def test_fields_with_pixels_are_refused(name, value, match):
    data = batch()
    data['data_samples'][0].set_field(value, name)
    with pytest.raises(TypeError, match=match):
        MultiScaleBatch(scale=8, base_scale=16)(data)


def test_a_semantic_map_of_another_size_is_refused():
    data = batch()
    data['data_samples'][0].gt_sem_seg = PixelData(
        sem_seg=torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r'\(16, 16\), but got shape'):
        MultiScaleBatch(scale=8, base_scale=16)(data)


def test_samples_that_are_no_data_elements_are_refused():
    with pytest.raises(TypeError, match='but got a Tensor'):
        MultiScaleBatch(scale=8, base_scale=16)(dict(
            inputs=torch.rand(2, 3, 16, 16),
            data_samples=torch.zeros(2, dtype=torch.long)))


def test_other_keys_are_refused():
    with pytest.raises(TypeError, match=r"\['mask'\]"):
        MultiScaleBatch(scale=8, base_scale=16)(
            dict(inputs=torch.rand(1, 3, 16, 16), mask=torch.rand(1, 16, 16)))


def test_antialias_needs_a_smooth_interpolation():
    with pytest.raises(ValueError, match="but got 'nearest'"):
        MultiScaleBatch(scale=8, base_scale=16, interpolation='nearest')


def test_inputs_must_be_stacked():
    with pytest.raises(TypeError, match='but got a list'):
        MultiScaleBatch(scale=8, base_scale=16)(
            dict(inputs=[torch.rand(3, 16, 16)]))


@pytest.mark.parametrize('batch, match', [
    (dict(inputs=dict(sup=torch.rand(1, 3, 16, 16))), 'but got a dict'),
    (dict(inputs=torch.rand(3, 16, 16)), r'shape \(3, 16, 16\)'),
    (dict(inputs=np.zeros((1, 3, 16, 16))), 'but got a ndarray'),
    (dict(inputs=torch.zeros(1, 3, 16, 16, dtype=torch.uint8)),
     'floating point to be resized, but got torch.uint8'),
    (dict(inputs=torch.rand(1, 3, 16, 16), data_samples=dict(sup=[])),
     '`data_samples` .* must be a list, but got a dict'),
    (dict(inputs=torch.rand(2, 3, 16, 16), data_samples=[None]),
     'but got 1 for 2 images'),
    (dict(images=torch.rand(1, 3, 16, 16)), r"\['images'\]")])
def test_batches_of_another_form(batch, match):
    with pytest.raises(TypeError, match=match):
        MultiScaleBatch(scale=8, base_scale=16)(batch)


@pytest.mark.parametrize('options, error, match', [
    (dict(scale='8'), TypeError, "`scale` must be an int, but got '8'"),
    (dict(base_scale=0), ValueError, '`base_scale` .* from 1 .*, but got 0'),
    (dict(size_divisor=1.5), TypeError, '`size_divisor`'),
    (dict(pad_value=None), TypeError, '`pad_value` must be a number'),
    (dict(seg_pad_value=float('nan')), TypeError, '`seg_pad_value`'),
    (dict(interpolation='linear'), ValueError, "bilinear, .* got 'linear'"),
    (dict(antialias='yes'), TypeError, '`antialias` must be True or False')])
def test_bad_arguments(options, error, match):
    with pytest.raises(error, match=match):
        MultiScaleBatch(**{'scale': 8, 'base_scale': 16, **options})


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_resized_in_single(dtype):
    inputs = torch.rand(2, 3, 16, 16).to(dtype)
    small = MultiScaleBatch(scale=8, base_scale=16)(dict(inputs=inputs))
    want = tv.resize(inputs.float(), [8, 8], antialias=True).to(dtype)
    assert_close(small['inputs'], want, rtol=0, atol=0)


@pytest.mark.parametrize('name, dtype', [
    ('gt_sem_seg', torch.long), ('gt_edge_map', torch.uint8),
    ('gt_depth_map', torch.float32)])
def test_maps_of_mmseg_follow_their_image(name, dtype):
    data = batch()
    labels = torch.randint(0, 200, (1, 16, 16)).to(dtype)
    sample = data['data_samples'][0]
    sample.set_field(PixelData(data=labels), name)
    labels[:, 14:], labels[:, :, 12:] = 255, 255
    sample.set_metainfo(dict(padding_size=(0, 4, 0, 2)))
    small = MultiScaleBatch(scale=8, base_scale=16)(data)
    got = small['data_samples'][0]
    assert torch.equal(got.get(name).data, labels[:, ::2, ::2])
    assert got.padding_size == (0, 2, 0, 1)
    assert torch.equal(sample.get(name).data, labels)


def test_a_private_copy_shares_nothing():
    data = batch()
    sample = data['data_samples'][0]
    sample.gt_instances = InstanceData(
        bboxes=torch.rand(2, 4), names=['a', 'b'],
        areas=torch.rand(2).numpy())
    before = copy.deepcopy(sample)
    other = private_copy([sample])[0]
    assert type(other) is DataSample and other.img_path == 'a'
    other.gt_label.zero_().sub_(1)
    other.gt_instances.bboxes.zero_()
    other.gt_instances.areas[:] = 0
    other.gt_instances.names.append('c')
    del other.gt_instances.bboxes, other.gt_score
    other.set_metainfo(dict(img_path='b'))
    assert torch.equal(sample.gt_label, before.gt_label)
    assert torch.equal(sample.gt_score, before.gt_score)
    assert torch.equal(sample.gt_instances.bboxes, before.gt_instances.bboxes)
    assert (sample.gt_instances.areas == before.gt_instances.areas).all()
    assert sample.gt_instances.names == ['a', 'b']
    assert sample.img_path == 'a'


@pytest.mark.parametrize('boxes, want', [
    (torch.tensor([[2, 4, 10, 12]]), [[1., 2., 5., 6.]]),
    (torch.tensor([[3., 5., 9., 11.]]), [[1.5, 2.5, 4.5, 5.5]])])
def test_boxes_of_whole_pixels_are_not_rounded(boxes, want):
    data = batch(n=1)
    data['data_samples'][0].gt_instances = InstanceData(bboxes=boxes)
    small = MultiScaleBatch(scale=8, base_scale=16)(data)
    assert small['data_samples'][0].gt_instances.bboxes.tolist() == want


@pytest.mark.parametrize('metainfo, error, match', [
    (dict(img_shape='ab'), TypeError, '`img_shape` .* 2 or 3 numbers'),
    (dict(img_shape=(0, 4)), ValueError, r'`img_shape` .* got \(0, 4\)'),
    (dict(scale_factor=1.0), TypeError, '`scale_factor` .* 2 or 4 numbers'),
    (dict(padding_size=(1, )), TypeError, '`padding_size` .* be 4 numbers'),
    (dict(homography_matrix='x'), TypeError, '`homography_matrix`')])
def test_metainfo_of_other_forms(metainfo, error, match):
    data = batch(n=1)
    data['data_samples'][0].set_metainfo(dict(
        batch_input_shape=(16, 16), **metainfo))
    with pytest.raises(error, match=match):
        MultiScaleBatch(scale=8, base_scale=16)(data)


def test_metainfo_that_is_absent_stays_absent():
    data = batch(n=1)
    data['data_samples'][0].set_metainfo(dict(
        batch_input_shape=(16, 16), img_shape=None, scale_factor=None,
        padding_size=None))
    new = MultiScaleBatch(scale=8, base_scale=16)(data)['data_samples'][0]
    assert new.img_shape == (8, 8) and new.scale_factor is None
    data['data_samples'][0].set_metainfo(dict(scale_factor=np.ones(4)))
    new = MultiScaleBatch(scale=8, base_scale=16)(data)['data_samples'][0]
    assert new.scale_factor == (0.5, 0.5, 0.5, 0.5)


def test_an_empty_batch():
    with pytest.raises(ValueError, match=r'but got shape \(0, 3, 16, 16\)'):
        MultiScaleBatch(scale=8, base_scale=16)(
            dict(inputs=torch.rand(0, 3, 16, 16)))


def test_numbers_of_numpy_do_not_overflow():
    data = dict(inputs=torch.rand(1, 1, 224, 224))
    small = MultiScaleBatch(np.uint8(200), np.uint8(224))(data)
    assert small['inputs'].shape == (1, 1, 200, 200)
