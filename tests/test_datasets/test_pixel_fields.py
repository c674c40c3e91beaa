"""What carries pixels is resized or refused by name, what does not passes."""
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch.testing import assert_close

from sct_mm import MultiScaleBatch

# What the packing transforms of mmpretrain and mmdet, and of their siblings
# by their documentation, put into samples, and that no resize changes.
HARMLESS = dict(
    sample_idx=3, img_path='a.png', img_id=7, image_id=[4], flip=True,
    flip_direction='diagonal', ori_shape=(80, 90), text='a box',
    custom_entities=True, tokens_positive=[[[0, 3]]], dataset_mode='OD',
    question_id=5, phrase_ids=[1, 2], sent_ids=[0], gt_label_difficult=[1],
    image_level_labels=np.ones(4), frame_id=0, video_length=9,
    ori_video_length=9, is_video_data=True, keep_ratio=True, scale_idx=1,
    pad_size_divisor=32, reduce_zero_label=False, seg_map_path=None,
    ignore_index=255, img_norm_cfg=dict(mean=[1., 2.]), height=80, width=90,
    instances=[dict(bbox=[0, 0, 4, 4], area=16.)], num_crops=3,
    bbox_mode_3d='lidar', size='large', ori_cam2img=np.eye(3).tolist(),
    pcd_scale_factor=1.0, with_bbox=False)
FIELDS = dict(
    labels=torch.arange(2), scores=torch.ones(2), instances_ids=[3, 4],
    bbox_scores=np.ones(2), bboxes_labels=[1, 2], depths=torch.ones(2),
    keypoint_weights=torch.ones(2), is_area=torch.ones(2),
    points=torch.tensor([True, False]), box_type=['a', 'b'])
COORDINATES = [
    ('bbox', [1., 2., 3., 4.]), ('gt_bboxes', torch.ones(4)),
    ('box', np.ones(4)), ('gt_bboxes_ignore', torch.ones(4)),
    ('center', (3, 4)), ('bbox_center', np.ones(2)),
    ('bbox_scales', torch.ones(2)), ('keypoints', torch.ones(34)),
    ('landmarks', [1., 2.]), ('point', (1, 2)), ('gt_offset', torch.ones(2)),
    ('head_size', np.ones(1)), ('centers_2d', torch.ones(2)),
    ('area', 3.), ('gt_xyxy', [1., 2., 3., 4.]), ('rois', torch.ones(4)),
    ('crop_coordinates', np.arange(4))]


def resized(shape=(16, 32), padded=None, **fields):
    """A sample of an image of ``shape`` at half of its size."""
    metainfo = dict(fields.pop('metainfo', {}))
    if padded:
        metainfo.update(batch_input_shape=padded, img_shape=shape)
    sample = BaseDataElement(metainfo=metainfo)
    for name, value in fields.items():
        sample.set_field(value, name)
    batch = dict(inputs=torch.rand(1, 3, *(padded or shape)),
                 data_samples=[sample])
    return MultiScaleBatch(8, 16)(batch)['data_samples'][0]


@pytest.mark.parametrize('name', ['areas', 'area', 'gt_areas'])
@pytest.mark.parametrize('kind', [torch.tensor, np.array, list])
def test_areas_are_those_of_the_resized_boxes(name, kind):
    """The content's edges, 15 and 31, do not halve alike."""
    boxes = torch.tensor([[2., 4., 7., 9.], [0., 0., 31., 15.]])
    given = InstanceData(bboxes=boxes)
    given.set_field(kind([25., 465.]), name)
    new = resized((15, 31), (16, 32), gt_instances=given).gt_instances
    w, h = (new.bboxes[:, 2:] - new.bboxes[:, :2]).unbind(-1)
    got = new.get(name)
    assert type(got) is type(given.get(name))
    assert_close(torch.as_tensor(got).float(), w * h)
    assert list(given.get(name)) == [25, 465]


@pytest.mark.parametrize('kind', [torch.tensor, np.array, list])
def test_areas_of_whole_pixels_are_not_rounded(kind):
    new = resized(gt_instances=InstanceData(areas=kind([25, 6])))
    assert list(new.gt_instances.areas) == [6.25, 1.5]


@pytest.mark.parametrize('name, value', COORDINATES)
def test_coordinates_in_one_dimension_are_refused_by_name(name, value):
    match = f'but got `BaseDataElement.{name}`.* may carry pixels'
    with pytest.raises(TypeError, match=match):
        resized(**{name: value})
    with pytest.raises(TypeError, match=match):
        resized(metainfo={name: value})
    if len(np.shape(value)) == 1:
        match = f'`BaseDataElement.gt_instances.{name}`'
        given = InstanceData()
        given.set_field(value, name)
        with pytest.raises(TypeError, match=match):
            resized(gt_instances=given)
        with pytest.raises(TypeError, match=match):
            resized(gt_instances=InstanceData(metainfo={name: value}))


@pytest.mark.parametrize('name, value', [
    ('cam2img', np.eye(4).tolist()), ('lidar2img', torch.eye(4)),
    ('intrinsics', [1., 2.]), ('camera_matrix', np.eye(3)),
    ('trans_mat', np.eye(3)), ('resize_img_shape', (4, 4)),
    ('pad_param', np.ones(4)), ('img_crop_offset', [1, 2]),
    ('of_ones_own', np.ones((2, 2)))])
def test_metainfo_with_pixels_is_refused_by_name(name, value):
    with pytest.raises(TypeError, match=f'`BaseDataElement.{name}` of '):
        resized(metainfo={name: value})


def test_what_no_resize_changes_passes():
    given = InstanceData(metainfo=HARMLESS, **FIELDS)
    new = resized(metainfo=HARMLESS, gt_instances=given)
    np.testing.assert_equal(dict(new.gt_instances.metainfo), HARMLESS)
    np.testing.assert_equal(dict(new.metainfo),
                            dict(HARMLESS, img_shape=(8, 16)))
    for name, value in FIELDS.items():
        assert new.gt_instances.get(name) is value


def test_metainfo_that_hosts_know_in_pixels_is_resized():
    """mmcv's Resize and Pad write (w, h), mmdet's CenterNet top, bottom,
    left, right. 17 rows become 9."""
    new = resized((17, 32), metainfo=dict(
        scale=(32, 17), pad_fixed_size=(32, 17),
        border=np.array([17., 0., 8., 32.]), scale_factor=(2.0, 1.0)))
    assert new.scale == (16, 9) and new.pad_fixed_size == (16, 9)
    assert new.border == (9, 0, 4, 16)
    assert new.scale_factor == (1.0, 9 / 17)


@pytest.mark.parametrize('name', ['scale', 'border', 'pad_fixed_size'])
def test_such_metainfo_of_another_form_is_refused(name):
    with pytest.raises(TypeError, match=f'`{name}` of a sample must be'):
        resized(metainfo={name: [1]})
