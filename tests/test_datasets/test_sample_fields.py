"""Fields of samples follow their image as their host's own transforms make
them, and fields of one's own by a registered function."""
import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import nn
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

import sct_mm
from sct_mm import MultiScaleBatch
from sct_mm.datasets import sample_fields
from sct_mm.datasets.multi_scale_batch import padding_of
from sct_mm.engine.sct.step import check_images


# Stand-ins for the hosts' classes, which are found by their names.
class SegDataSample(BaseDataElement):
    pass


class PoseDataSample(BaseDataElement):
    pass


class ActionDataSample(BaseDataElement):
    pass


class TextDetDataSample(BaseDataElement):
    pass


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(sample_fields, '_FIELDS',
                        copy.deepcopy(sample_fields._FIELDS))
    yield
    sample_fields._listed.cache_clear()


def text_of(sample):
    """Its fields in a fixed order."""
    return sorted(re.sub(' at 0x[0-9a-f]+', '', repr(sample)).splitlines())


def resized(sample, shape=(64, 96), scale=32, **options):
    """``sample`` of an image of ``shape`` at the base scale of 64."""
    before = text_of(sample)
    new = MultiScaleBatch(scale, 64, **options)(dict(
        inputs=torch.rand(1, 3, *shape), data_samples=[sample]))
    assert text_of(sample) == before
    return new['data_samples'][0]


# mmseg's padding.

def seg_batch(contents, size=(64, 96), corner=(0, 0)):
    """Images (C, h, w) and maps of ``contents``, padded as by mmseg's
    ``stack_batch``; by ``corner`` at the top and left."""
    inputs, samples = [], []
    top, left = corner
    for image, labels in contents:
        h, w = image.shape[-2:]
        padding = (left, size[1] - w - left, top, size[0] - h - top)
        inputs.append(F.pad(image, padding))
        samples.append(SegDataSample(
            gt_sem_seg=PixelData(data=F.pad(labels, padding, value=255)),
            metainfo=dict(img_shape=(h, w), pad_shape=size,
                          padding_size=padding)))
    return dict(inputs=torch.stack(inputs), data_samples=samples)


@pytest.mark.parametrize('shapes', [
    [(64, 96), (40, 96), (51, 62)], [(40, 50), (30, 60)], [(64, 96)]])
@pytest.mark.parametrize('corner', [(0, 0), (8, 16)])
@pytest.mark.parametrize('scale', [32, 48])
def test_padding_of_mmseg_stays_outside(shapes, corner, scale):
    torch.manual_seed(0)
    top, left = corner
    contents = [(torch.rand(3, h - top, w - left) + 1,
                 torch.randint(0, 9, (1, h - top, w - left)))
                for h, w in shapes]
    batch = seg_batch(contents, corner=corner)
    small = []
    for image, labels in contents:
        shape = [int(edge * scale / 64 + .5) for edge in image.shape[-2:]]
        small.append((tv.resize(image, shape, antialias=True), F.interpolate(
            labels[None].float(), shape, mode='nearest')[0].long()))
    want = seg_batch(small, (scale, scale * 3 // 2),
                     (top * scale // 64, left * scale // 64))
    got = MultiScaleBatch(scale, 64)(batch)
    assert_close(got['inputs'], want['inputs'])
    for ours, theirs in zip(got['data_samples'], want['data_samples'],
                            strict=True):
        assert dict(ours.metainfo) == dict(theirs.metainfo)
        assert torch.equal(ours.gt_sem_seg.data, theirs.gt_sem_seg.data)
    check_images(batch, 64)  # the padding is part of the scale
    with pytest.raises(ValueError, match='images of 64 pixels'):
        check_images(batch, 128)


@pytest.mark.parametrize('size, scale, want', [
    ((64, 96), 32, (32, 48)),  # a size that the host sets for all batches
    ((64, 96), 48, (48, 80)),
    ((48, 64), 32, (32, 32))])  # the next multiples: 25 x 20 to 32 x 32
def test_padding_to_a_size_and_to_multiples(size, scale, want):
    """mmseg's `size` is part of the scale, its `size_divisor` is not."""
    batch = seg_batch([(torch.ones(3, 40, 50), torch.zeros(
        1, 40, 50, dtype=torch.long))], size)
    got = MultiScaleBatch(scale, 64, size_divisor=16)(batch)
    content = [int(edge * scale / 64 + .5) for edge in (40, 50)]
    assert got['inputs'].shape[-2:] == want
    assert got['inputs'].sum() == 3 * content[0] * content[1]
    labels = got['data_samples'][0].gt_sem_seg.data
    assert labels.shape[-2:] == want
    assert (labels == 0).sum() == content[0] * content[1]


@pytest.mark.parametrize('value', [(0, 96, 0, 0), (0, -1, 0, 0),
                                   (0, float('nan'), 0, 0)])
def test_padding_that_leaves_no_image_is_refused(value):
    for name in ('padding_size', 'img_padding_size'):
        with pytest.raises(ValueError, match=f'`{name}` of a sample must be '
                           r'left, .* in a batch of \(64, 96\), but got'):
            resized(SegDataSample(metainfo={name: value}))


def test_boxes_and_points_move_with_their_image():
    sample = DetDataSample(metainfo=dict(padding_size=(32, 0, 16, 0)))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[32., 16, 96, 64]]),
        keypoints=torch.tensor([[[34., 20], [32, 16]]]))
    new = resized(sample).gt_instances
    assert new.bboxes.tolist() == [[16, 8, 48, 32]]
    assert new.keypoints.tolist() == [[[17, 10], [16, 8]]]


# Instances beyond their image.

def padded(cls=DetDataSample, shape=(48, 48), **instances):
    sample = cls(metainfo=dict(img_shape=shape, batch_input_shape=(64, 96)))
    sample.gt_instances = InstanceData(**instances)
    return sample


def polygon(x1, y1, x2, y2):
    return np.array([x1, y1, x2, y1, x2, y2], np.float32)


INSIDE, ACROSS, BEYOND = (1, 1, 9, 9), (40, 40, 60, 60), (54, 10, 64, 30)
KINDS = dict(
    bboxes=lambda *box: torch.tensor([box]).float(),
    keypoints=lambda *box: torch.tensor([box]).float().view(1, 2, 2),
    polygons=lambda *box: [polygon(*box)],
    masks=lambda *box: PolygonMasks([[polygon(*box)]], 64, 96),
    rotated=lambda x1, y1, x2, y2: torch.tensor(
        [[x1 + 4, y1, x2 - x1, y2 - y1, .3]]),
    corners=lambda *box: torch.tensor(
        [[*box[:2], box[2], box[1], *box[2:], box[0], box[3]]]).float())


@pytest.mark.parametrize('kind', KINDS)
def test_instances_beyond_their_image_are_refused(kind):
    name = kind if kind in ('keypoints', 'polygons', 'masks') else 'bboxes'
    cls = TextDetDataSample if kind == 'polygons' else DetDataSample
    for box in (INSIDE, ACROSS):  # a host may not clip
        resized(padded(cls, **{name: KINDS[kind](*box)}))
    with pytest.raises(ValueError, match=rf'{name}` must lie within their '
                       r'image, \(48, 48\), but got some beyond it'):
        resized(padded(cls, **{name: KINDS[kind](*BEYOND)}))
    sample = padded(cls, **{name: KINDS[kind](*BEYOND)}, shape=(64, 96))
    resized(sample)


def test_a_rotated_box_whose_centre_is_outside_reaches_into_the_image():
    inside = torch.tensor([[-2., 40, 40, 20, 0]])
    new = resized(padded(bboxes=inside)).gt_instances.bboxes
    assert new[0, :2].tolist() == [-1, 20]
    with pytest.raises(ValueError, match='must lie within their image'):
        resized(padded(bboxes=inside - torch.tensor([40., 0, 0, 0, 0])))


def test_masks_and_maps_beyond_their_image_are_refused():
    mask = np.zeros((1, 64, 96), np.uint8)
    mask[:, 10:30, 10:30] = 1
    resized(padded(masks=BitmapMasks(mask, 64, 96)))
    mask[:, 50] = 1
    with pytest.raises(ValueError, match='masks` must lie within their image'):
        resized(padded(masks=BitmapMasks(mask, 64, 96)))
    for labels, fits in ((torch.full((1, 64, 96), 255), True),
                         (torch.randint(0, 9, (1, 64, 96)), False)):
        sample = padded()
        sample.gt_sem_seg = PixelData(sem_seg=labels)
        if fits:
            resized(sample)
        else:
            with pytest.raises(ValueError, match='gt_sem_seg.sem_seg` must '
                               'lie within their image'):
                resized(sample)


# mmrotate's, mmocr's and mmaction2's instances.

def corners_of(box):
    """The four corners of a box of centre, edges and angle."""
    x, y, w, h, angle = box.tolist()
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[x + a * w * c - b * h * s, y + a * w * s + b * h * c]
                     for a, b in ((-.5, -.5), (.5, -.5), (.5, .5),
                                  (-.5, .5))])


def test_rotated_boxes_have_the_corners_of_their_image():
    torch.manual_seed(0)
    boxes = torch.rand(6, 5) * torch.tensor([96, 64, 30, 20, 6.])
    sample = DetDataSample()
    sample.gt_instances = InstanceData(bboxes=boxes)
    for box, got in zip(boxes, resized(sample).gt_instances.bboxes,
                        strict=True):
        np.testing.assert_allclose(corners_of(got), corners_of(box) / 2,
                                   atol=1e-4)


def test_polygons_and_texts():
    polygons = [polygon(1, 2, 30, 40), np.arange(8)]
    sample = TextDetDataSample(gt_instances=InstanceData(
        polygons=polygons, texts=['a', 'b'], ignored=torch.zeros(2).bool()))
    new = resized(sample).gt_instances
    for got, old in zip(new.polygons, polygons, strict=True):
        np.testing.assert_array_equal(got, old / 2)
    assert new.texts == ['a', 'b']
    for odd in (np.arange(7.), np.zeros((2, 2)), np.zeros(0)):
        sample.gt_instances = InstanceData(polygons=[odd])
        with pytest.raises(TypeError, match='gt_instances.polygons` of shape'):
            resized(sample)


def test_instances_of_ava():
    sample = ActionDataSample(
        gt_instances=InstanceData(bboxes=torch.tensor([[2., 4, 8, 6]]),
                                  labels=torch.ones(1, 81)),
        proposals=InstanceData(bboxes=torch.tensor([[0., 2, 4, 8]]),
                               scores=torch.ones(1)))
    new = resized(sample)
    assert new.gt_instances.bboxes.tolist() == [[1, 2, 4, 3]]
    assert new.proposals.bboxes.tolist() == [[0, 1, 2, 4]]
    assert new.gt_instances.labels is sample.gt_instances.labels


# mmpose.

def gaussians(points, shape, sigma):
    """Unbiased heatmaps (K, h, w) of ``points`` (K, 2) in their elements."""
    y, x = (torch.arange(edge, dtype=torch.double) for edge in shape)
    return torch.stack([
        torch.exp(-((x - px)**2 + (y - py)[:, None]**2) / 2 / sigma**2)
        for px, py in points.tolist()])


def pose(**fields):
    points = np.random.default_rng(0).uniform(0, 300, (1, 3, 2))
    return PoseDataSample(
        metainfo=dict(input_size=(64, 96), img_shape=(40, 30),
                      batch_input_shape=(96, 64), input_center=np.ones(2),
                      input_scale=np.ones(2), flip_indices=[0, 1, 2]),
        gt_instances=InstanceData(keypoints=points, bboxes=np.ones((1, 4)),
                                  bbox_scales=np.ones((1, 2))),
        **fields)


def test_what_is_in_the_original_image_stays():
    sample = pose(gt_instance_labels=InstanceData(
        keypoint_labels=torch.rand(1, 3, 2),
        keypoint_weights=torch.ones(1, 3)))
    new = resized(sample, (96, 64))
    assert new.gt_instances.keypoints is sample.gt_instances.keypoints
    assert new.gt_instances.bboxes is sample.gt_instances.bboxes
    labels = new.gt_instance_labels
    assert labels.keypoint_labels is sample.gt_instance_labels.keypoint_labels
    assert new.input_size == (32, 48) and new.batch_input_shape == (48, 32)
    assert new.img_shape == (40, 30)  # no edge of the input
    assert new.input_center.tolist() == [1, 1]
    inputs = MultiScaleBatch(32, 64)(dict(
        inputs=(images := torch.rand(1, 3, 96, 64)), data_samples=[sample]))
    assert_close(inputs['inputs'], tv.resize(images, [48, 32],
                                             antialias=True))


@pytest.mark.parametrize('scale, tolerance', [(32, 1e-6), (48, 0.06)])
@pytest.mark.parametrize('aligned', [False, True])
def test_heatmaps_are_those_of_the_points_at_the_new_size(scale, tolerance,
                                                          aligned):
    """Gaussians whose sigma shrinks with the image. At half of the size each
    element is one of the larger grid; else they are interpolated."""
    points = torch.tensor([[3.2, 5.9], [11.1, 20.4], [15, 0]])
    shape, small = (24, 16), (scale * 3 // 8, scale // 4)
    factor = [(b - aligned) / (a - aligned)
              for a, b in zip(shape[::-1], small[::-1], strict=True)]
    maps = gaussians(points, shape, 2).float()
    sample = pose(gt_fields=PixelData(
        heatmaps=maps, heatmap_mask=torch.ones(1, *shape).bool()))
    with torch.autocast('cpu', torch.bfloat16):  # as a step with AMP
        new = resized(sample, (96, 64), scale,
                      aligned_heatmaps=aligned).gt_fields
    want = gaussians(points * torch.tensor(factor), small, 2 * factor[0])
    assert_close(new.heatmaps, want.float(), rtol=0,
                 atol=max(tolerance, 0.06 * aligned))
    assert new.heatmap_mask.dtype == torch.bool and new.heatmap_mask.all()


def test_the_codec_of_a_model_says_where_its_grid_lies():
    class UDPHeatmap:
        pass

    model = nn.Module()
    assert padding_of(model) == {}
    model.head = nn.Module()
    model.head.decoder = UDPHeatmap()
    assert padding_of(model) == dict(aligned_heatmaps=True)


def test_heatmaps_need_whole_edges():
    sample = pose(gt_fields=PixelData(heatmaps=torch.rand(3, 24, 16)))
    with pytest.raises(ValueError, match=r'whole edges .* \(24, 16\) for '
                       r'images of \(96, 64\), and images of \(45, 30\).*'
                       'size_divisor'):
        resized(sample, (96, 64), 30)


def test_an_input_that_is_padded_to_the_stride():
    """96 x 64 at a scale of 40 is 60 x 40, padded to 64 x 64: outputs of 16 x
    16, of which the image has 15 x 10."""
    points = torch.tensor([[8., 16], [4, 2]])
    labels = torch.tensor([[[.5, .5], [1, .25]]])
    sample = pose(gt_fields=PixelData(heatmaps=gaussians(points, (24, 16), 2)),
                  gt_instance_labels=InstanceData(keypoint_labels=labels))
    new = resized(sample, (96, 64), 40, size_divisor=32)
    want = gaussians(points * 5 / 8, (16, 16), 2 * 5 / 8)
    got = new.gt_fields.heatmaps
    assert_close(got[..., :10], want[..., :10], rtol=0, atol=0.06)
    assert (got[..., 11:] == 0).all()
    assert_close(new.gt_instance_labels.keypoint_labels,
                 labels * torch.tensor([40 / 64, 60 / 64]))


def test_labels_of_yolox_pose_are_in_pixels_of_the_input():
    sample = pose(gt_instance_labels=InstanceData(
        bboxes=torch.tensor([[2., 4, 6, 8]]), areas=torch.tensor([16.]),
        keypoints=torch.tensor([[[2., 4], [6, 8]]])))
    new = resized(sample, (96, 64)).gt_instance_labels
    assert new.bboxes.tolist() == [[1, 2, 3, 4]] and new.areas == 4
    assert new.keypoints.tolist() == [[[1, 2], [3, 4]]]


@pytest.mark.parametrize('name, value, error, match', [
    ('keypoint_x_labels', torch.rand(1, 3, 128), ValueError,
     'keypoint_x_labels` are those of a head that its host fixes to one'),
    ('keypoint_indices', torch.ones(1, 3, 2), TypeError,
     r'PoseDataSample.gt_instance_labels.keypoint_indices` of shape '
     r'\(1, 3, 2\).*register a function that resizes it .docs/batches.md')])
def test_labels_that_depend_on_one_size_are_refused(name, value, error,
                                                    match):
    sample = pose(gt_instance_labels=InstanceData(**{name: value}))
    with pytest.raises(error, match=match):
        resized(sample, (96, 64))


# Fields of one's own.

class Flow(PoseDataSample):
    pass


def test_a_registered_field_follows():
    @sct_mm.register_resizer('Flow', 'flow.data', 'cam2img')
    def double(value, geometry):
        assert geometry.old == (64, 96) and geometry.new == (32, 48)
        return value * geometry.factor[0]

    sct_mm.register_resizer('Flow', 'flow.*', 'whole')(sct_mm.unchanged)
    sample = Flow(flow=InstanceData(data=torch.ones(2, 4),
                                    other=torch.ones(2, 2)),
                  whole=InstanceData(boxes=torch.ones(2, 4)),
                  metainfo=dict(cam2img=np.ones((3, 3)), input_size=(96, 64)))
    new = resized(sample)
    assert (new.flow.data == .5).all() and (new.cam2img == .5).all()
    assert new.flow.other is sample.flow.other and new.whole is sample.whole
    assert new.input_size == (48, 32)  # of its base class
    with pytest.raises(TypeError, match='PoseDataSample.flow.data` of shape'):
        resized(PoseDataSample(flow=InstanceData(data=torch.ones(2, 4))))


def test_a_sample_of_another_class():
    class Pair(tuple):
        pass

    with pytest.raises(TypeError, match=r'a Pair.*docs/batches.md'):
        MultiScaleBatch(8, 16)(dict(inputs=torch.rand(1, 3, 16, 16),
                                    data_samples=[Pair((2, 4))]))
    sct_mm.register_resizer('Pair')(
        lambda pair, geometry: Pair(geometry.factor[0] * x for x in pair))
    new = MultiScaleBatch(8, 16)(dict(inputs=torch.rand(1, 3, 16, 16),
                                      data_samples=[Pair((2, 4))]))
    assert new['data_samples'] == [(1, 2)]


@pytest.mark.parametrize('names', [(), (3, ), ('A', None), ('A', '')])
def test_names_that_are_none(names):
    with pytest.raises(TypeError, match='register_resizer'):
        sct_mm.register_resizer(*names)(sct_mm.unchanged)


def test_what_is_no_function():
    with pytest.raises(TypeError, match='must decorate a function'):
        sct_mm.register_resizer('A', 'b')(3)


# The hosts' own classes, where they are installed.

def test_it_is_mmrotates_own_rescale():
    boxes = pytest.importorskip('mmrotate.structures.bbox')
    torch.manual_seed(0)
    tensor = torch.rand(6, 5) * torch.tensor([90, 60, 30, 20, 3.])
    for given in (boxes.RotatedBoxes(tensor), tensor):
        sample = DetDataSample()
        sample.gt_instances = InstanceData(bboxes=given)
        got = resized(sample, (63, 97)).gt_instances.bboxes
        want = boxes.RotatedBoxes(tensor.clone())
        want.rescale_((49 / 97, 32 / 63))
        assert type(got) is type(given)
        assert_close(getattr(got, 'tensor', got), want.tensor)


def test_it_is_mmposes_own_encoding():
    codecs = pytest.importorskip('mmpose.codecs')
    points = np.random.default_rng(0).uniform(8, 56, (1, 5, 2))

    def encoded(scale):
        codec = codecs.MSRAHeatmap((scale, scale * 3 // 2), (
            scale // 4, scale * 3 // 8), scale / 32, unbiased=True)
        return torch.from_numpy(codec.encode(
            (points * scale / 64).astype(np.float32),
            np.ones((1, 5), np.float32))['heatmaps'])

    new = resized(pose(gt_fields=PixelData(heatmaps=encoded(64))), (96, 64))
    assert_close(new.gt_fields.heatmaps, encoded(32))


def test_heatmaps_of_several_levels():
    structures = pytest.importorskip('mmpose.structures')
    levels = [torch.rand(3, 24, 16), torch.rand(3, 12, 8)]
    sample = pose(gt_fields=structures.MultilevelPixelData(heatmaps=levels))
    new = resized(sample, (96, 64)).gt_fields
    assert type(new) is structures.MultilevelPixelData and new.nlevel == 2
    for got, old in zip(new.heatmaps, levels, strict=True):
        assert torch.equal(got, old[:, ::2, ::2])
