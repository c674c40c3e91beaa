"""Detection samples follow their image as mmdet's own Resize makes them."""
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.datasets.transforms import PackDetInputs, Resize
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.registry import init_default_scope
from torch.testing import assert_close

from sct_mm import MultiScaleBatch

BASE, SCALE, LONG = 64, 40, 104
SHAPES = ((64, 96), (61, 104), (90, 64))
META = ('img_shape', 'scale_factor', 'homography_matrix', 'ori_shape')


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def annotated(shape, masks='bitmap', n=3):
    """The results of mmdet's loading transforms for a random image."""
    rng = np.random.default_rng(sum(shape))
    h, w = shape
    left_top = rng.uniform(0, 0.5, (n, 2)) * (w, h)
    boxes = np.concatenate(
        [left_top, left_top + rng.uniform(0.1, 0.5, (n, 2)) * (w, h)], 1)
    # A smooth image: interpolation kernels agree on it.
    y, x = np.mgrid[:h, :w]
    image = np.stack([100 + 50 * np.sin(x / 19), 100 + 40 * np.cos(y / 17),
                        90 + x * 0.3 + y * 0.2], -1)
    bitmaps = np.zeros((n, h, w), np.uint8)
    for bitmap, (x1, y1, x2, y2) in zip(bitmaps, boxes.astype(int),
                                        strict=True):
        bitmap[y1:y2, x1:x2] = 1
    polygons = [[np.array([x1, y1, x2, y1, x2, y2])]
                for x1, y1, x2, y2 in boxes]
    return dict(
        img=image.astype(np.float32), img_shape=shape, ori_shape=shape,
        gt_bboxes=HorizontalBoxes(boxes.astype(np.float32)),
        gt_bboxes_labels=np.arange(n), gt_ignore_flags=np.arange(n) == 1,
        gt_masks=(BitmapMasks(bitmaps, h, w) if masks == 'bitmap'
                  else PolygonMasks(polygons, h, w)),
        gt_seg_map=rng.integers(0, 5, shape).astype(np.uint8))


def at(scale, shapes=SHAPES, boxes_to_tensor=True, pad=True, fixed=False,
       **kwargs):
    """The batch that mmdet's own pipeline and preprocessor make.

    Args:
        fixed: whether batches are padded to a square, as for large jittering.
    """
    pipeline = Resize(scale=(round(LONG * scale / BASE), scale),
                      keep_ratio=True)
    pack = PackDetInputs(meta_keys=META)
    items = [pack(pipeline(annotated(shape, **kwargs))) for shape in shapes]
    preprocessor = DetDataPreprocessor(
        mean=[100.0] * 3, std=[50.0] * 3, pad_size_divisor=16, pad_mask=pad,
        pad_seg=pad, boxtype2tensor=boxes_to_tensor, batch_augments=[dict(
            type='BatchFixedSizePad', size=(2 * scale, 2 * scale),
            pad_mask=pad, pad_seg=pad)] if fixed else None)
    return preprocessor(dict(
        inputs=[item['inputs'] for item in items],
        data_samples=[item['data_samples'] for item in items]), True)


def resized(batch, scale=SCALE, base=BASE):
    return MultiScaleBatch(scale=scale, base_scale=base, size_divisor=16)(
        batch)


def tensor(boxes):
    return getattr(boxes, 'tensor', boxes)


@pytest.mark.parametrize('masks', ['bitmap', 'polygon'])
@pytest.mark.parametrize('pad', [True, False])
@pytest.mark.parametrize('boxes_to_tensor', [True, False])
@pytest.mark.parametrize('fixed', [True, False])
def test_it_is_mmdets_own_resize(masks, pad, boxes_to_tensor, fixed):
    options = dict(masks=masks, pad=pad, boxes_to_tensor=boxes_to_tensor,
                   fixed=fixed)
    small, want = resized(at(BASE, **options)), at(SCALE, **options)
    assert small['inputs'].shape == want['inputs'].shape
    # mmdet's resize does not antialias: on a smooth image both agree, but for
    # what each interpolation leaves out. Rounding is a thousandth of that.
    assert_close(small['inputs'], want['inputs'], atol=0.02, rtol=0)
    for ours, theirs in zip(small['data_samples'], want['data_samples'],
                            strict=True):
        for key in ('img_shape', 'pad_shape', 'batch_input_shape'):
            assert ours.metainfo[key] == theirs.metainfo[key]
        assert_close(ours.scale_factor, theirs.scale_factor)
        assert_close(ours.homography_matrix, theirs.homography_matrix)
        assert ours.ori_shape == theirs.ori_shape
        for name in ('gt_instances', 'ignored_instances'):
            mine, other = ours.get(name), theirs.get(name)
            assert type(mine.bboxes) is type(other.bboxes)
            assert_close(tensor(mine.bboxes), tensor(other.bboxes),
                         atol=1e-3, rtol=0)
            assert_close(mine.labels, other.labels)
            assert type(mine.masks) is type(other.masks)
            assert mine.masks.height == other.masks.height
            assert mine.masks.width == other.masks.width
            if masks == 'bitmap':
                assert np.array_equal(mine.masks.masks, other.masks.masks)
            else:
                for a, b in zip(mine.masks.masks, other.masks.masks,
                                strict=True):
                    assert_close(a[0], b[0])
        assert torch.equal(ours.gt_sem_seg.sem_seg, theirs.gt_sem_seg.sem_seg)


@pytest.mark.parametrize('masks', ['bitmap', 'polygon'])
def test_an_image_that_fills_the_batch_is_padded_at_the_smaller_scale(masks):
    small = resized(at(BASE, [(64, 96)], masks=masks))
    want = at(SCALE, [(64, 96)], masks=masks)
    ours, theirs = (b['data_samples'][0] for b in (small, want))
    assert small['inputs'].shape[-2:] == (48, 64) != ours.img_shape
    assert torch.equal(ours.gt_sem_seg.sem_seg, theirs.gt_sem_seg.sem_seg)
    mine, other = ours.gt_instances.masks, theirs.gt_instances.masks
    assert (mine.height, mine.width) == (other.height, other.width)


def test_there_and_back_gives_the_boxes_and_images():
    shapes = [(64, 96), (64, 80)]
    batch = at(BASE, shapes)
    back = resized(resized(batch, 32), 64, 32)
    for ours, old in zip(back['data_samples'], batch['data_samples'],
                         strict=True):
        assert_close(ours.gt_instances.bboxes, old.gt_instances.bboxes,
                     atol=1e-3, rtol=0)
        assert ours.metainfo['img_shape'] == old.metainfo['img_shape']
        assert_close(ours.scale_factor, old.scale_factor)
    assert_close(back['inputs'][..., 4:-20], batch['inputs'][..., 4:-20],
                 atol=0.02, rtol=0)


def test_nothing_of_the_input_is_changed():
    batch = at(BASE)
    before = copy.deepcopy(batch)
    resized(batch)
    assert torch.equal(batch['inputs'], before['inputs'])
    for old, new in zip(before['data_samples'], batch['data_samples'],
                        strict=True):
        assert_close(old.metainfo, new.metainfo)
        assert torch.equal(old.gt_instances.bboxes, new.gt_instances.bboxes)
        assert np.array_equal(old.gt_instances.masks.masks,
                              new.gt_instances.masks.masks)


@pytest.mark.parametrize('masks', ['bitmap', 'polygon'])
@pytest.mark.parametrize('shape', [(128, 192), (32, 48)])
def test_masks_of_another_size_are_refused(masks, shape):
    batch = at(BASE, shapes=SHAPES[:1], masks=masks, pad=False)
    instances = batch['data_samples'][0].gt_instances
    instances.masks = instances.masks.resize(shape)
    with pytest.raises(ValueError, match=r'gt_instances.masks` must be as '
                       rf'large as their image, \(64, 96\), .*{shape[0]}'):
        resized(batch)


def test_an_image_that_is_padded_further_than_its_masks():
    batch = at(BASE, shapes=SHAPES[:1])
    want = resized(batch)['data_samples'][0]
    batch['inputs'] = F.pad(batch['inputs'], (0, 32, 0, 32))
    got = resized(batch)['data_samples'][0]
    h, w = got.img_shape
    assert_close(got.gt_instances.masks.masks,
                 want.gt_instances.masks.masks[:, :h, :w])
    assert_close(got.gt_sem_seg.sem_seg, want.gt_sem_seg.sem_seg[:, :h, :w])


def test_an_image_without_objects():
    small = resized(at(BASE, n=0))
    for sample in small['data_samples']:
        assert sample.gt_instances.bboxes.shape == (0, 4)
        assert len(sample.gt_instances.masks) == 0


def test_a_box_of_less_than_a_pixel_is_kept():
    batch = at(BASE)
    instances = batch['data_samples'][0].gt_instances
    instances.bboxes[0] = torch.tensor([10.0, 10.0, 11.0, 11.0])
    boxes = resized(batch)['data_samples'][0].gt_instances.bboxes
    assert len(boxes) == len(instances)
    assert_close(boxes[0], torch.tensor([6.25, 6.25, 6.875, 6.875]))
