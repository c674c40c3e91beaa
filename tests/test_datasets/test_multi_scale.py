"""The batch transform against torchvision, and what it leaves alone."""
import copy

import pytest
import torch
from mmengine.registry import TRANSFORMS
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

from sct_mm import MultiScaleBatch


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
    for old, new in zip(data['data_samples'], small['data_samples']):
        assert type(new) is DataSample
        assert new.gt_label is old.gt_label and new.gt_score is old.gt_score
        assert new.img_shape == (12, 12) and new.img_path == 'a'
        assert new.scale_factor == (0.375, 0.1875)


def test_nothing_of_the_input_is_changed():
    data = batch()
    before = copy.deepcopy(data)
    MultiScaleBatch(scale=8, base_scale=16)(data)
    assert_close(data['inputs'], before['inputs'])
    for old, new in zip(before['data_samples'], data['data_samples']):
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
    assert small['data_samples'] is None


def test_other_interpolation_and_dtype():
    inputs = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    transform = TRANSFORMS.build(dict(
        type='MultiScaleBatch', scale=8, base_scale=16, antialias=False,
        interpolation='nearest'))
    small = transform(dict(inputs=inputs))['inputs']
    assert_close(small, inputs[..., ::2, ::2])


@pytest.mark.parametrize('name, value, match', [
    ('gt_sem_seg', PixelData(data=torch.zeros(1, 16, 16)),
     'DataSample.gt_sem_seg.data'),
    ('proposals', InstanceData(bboxes=torch.zeros(2, 4)),
     r'DataSample.proposals.bboxes` of shape \(2, 4\)'),
    ('gt_instances', InstanceData(keypoints=torch.zeros(2, 17, 2)),
     r'DataSample.gt_instances.keypoints` of shape \(2, 17, 2\)'),
    ('gt_instances', InstanceData(bboxes=torch.zeros(2, 5)),
     r'DataSample.gt_instances.bboxes` of shape \(2, 5\)'),
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
    with pytest.raises(TypeError, match='but got list'):
        MultiScaleBatch(scale=8, base_scale=16)(
            dict(inputs=[torch.rand(3, 16, 16)]))
