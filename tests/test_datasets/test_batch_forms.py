"""Each form of a batch is resized as its images are one by one, and cut into
shares."""
import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import TinyModel, grads
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import BaseDataElement
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

from sct_mm import SSBN, MultiScaleBatch, SCTLossHook, use_scale
from sct_mm.datasets.batch_forms import (
    image_shape,
    nominal_shapes,
    number_of_images,
    pads_images,
    share_of,
    views_of,
)
from sct_mm.engine.sct.step import check_images
from sct_mm.models.precise_bn import calibrate

SCALES = (16, 12, 8)


def one_by_one(images, scale, base=16):
    """Each image (C, H, W) of ``images`` (..., C, H, W) by torchvision."""
    h, w = (int(edge * scale / base + 0.5) for edge in images.shape[-2:])
    each = [tv.resize(image, [h, w], antialias=True)
            for image in images.reshape(-1, *images.shape[-3:])]
    return torch.stack(each).reshape(*images.shape[:-2], h, w)


FORMS = dict(
    segments=lambda: torch.rand(4, 3, 2, 16, 20),
    clips=lambda: torch.rand(4, 2, 3, 5, 16, 20),
    views=lambda: [torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)],
    sizes=lambda: [torch.rand(4, 3, 16, 16), torch.rand(4, 3, 7, 9)],
    one_view=lambda: [torch.rand(4, 3, 16, 20)],
    tuple=lambda: (torch.rand(4, 3, 7, 7), torch.rand(4, 3, 16, 16)),
    dict=lambda: dict(points=['a', 'b', 'c', 'd'],
                      imgs=torch.rand(4, 6, 3, 16, 20),
                      text=torch.arange(8).view(4, 2)))


@pytest.fixture(params=FORMS)
def batch(request):
    torch.manual_seed(0)
    return dict(inputs=FORMS[request.param](), mode='loss', data_samples=[
        BaseDataElement(gt_label=torch.tensor([i])) for i in range(4)])


@pytest.mark.parametrize('scale', [8, 12, 20])
def test_each_image_is_resized(batch, scale):
    before = copy.deepcopy(batch)
    small = MultiScaleBatch(scale, 16)(batch)
    for view, got in zip(views_of(before), views_of(small), strict=True):
        assert_close(got, one_by_one(view, scale))
    assert type(small['inputs']) is type(batch['inputs'])
    if isinstance(batch['inputs'], dict):
        assert small['inputs']['points'] is batch['inputs']['points']
    for view, old in zip(views_of(batch), views_of(before), strict=True):
        assert torch.equal(view, old)
    h, w = image_shape(batch)
    assert small['data_samples'][0].img_shape == (
        scale, int(w * scale / 16 + 0.5))
    assert number_of_images(small) == 4 and not pads_images(small)
    assert nominal_shapes(small) == [(scale, int(w * scale / 16 + 0.5))]
    check_images(batch, 16)
    with pytest.raises(ValueError, match='images of 16 pixels'):
        check_images(batch, 32)


def test_a_share_is_the_batch_of_its_images(batch):
    share = share_of(batch, slice(1, 3))
    for view, part in zip(views_of(batch), views_of(share), strict=True):
        assert torch.equal(part, view[1:3])
    assert [int(s.gt_label) for s in share['data_samples']] == [1, 2]
    if isinstance(batch['inputs'], dict):
        assert share['inputs']['points'] == ['b', 'c']
        assert share['inputs']['text'].tolist() == [[2, 3], [4, 5]]
    assert number_of_images(batch) == 4


@pytest.mark.parametrize('inputs, match', [
    ([], 'but got a list'),
    ([torch.rand(3, 16, 16)] * 2, r'but got a list of shape \(3, 16, 16\)\.'),
    ([torch.rand(2, 3, 8, 8), torch.rand(1, 3, 8, 8)],
     r'a list of shape \(2, 3, 8, 8\), shape \(1, 3, 8, 8\)'),
    (torch.rand(1, 1, 1, 1, 1, 8, 8), r'shape \(1, 1, 1, 1, 1, 8, 8\)'),
    (dict(points=[1]), r"a dict of \['points'\]"),
    (dict(imgs=torch.rand(1, 3, 8, 8), img=torch.rand(1, 3, 8, 8)),
     r"a dict of \['img', 'imgs'\]"),
    (dict(imgs=torch.rand(1, 3, 8, 8), voxels=dict(a=1)), "'voxels'"),
    (dict(imgs=torch.rand(1, 3, 8, 8), maps=torch.rand(1, 3, 8, 8)), 'maps'),
    (dict(imgs=[torch.rand(1, 3, 8, 8)]), r"a dict of \['imgs'\]")])
def test_other_forms_are_refused(inputs, match):
    with pytest.raises(TypeError, match=match + '.*docs/batches.md'):
        MultiScaleBatch(8, 16)(dict(inputs=inputs))


@pytest.mark.parametrize('view, error, match', [
    (torch.zeros(2, 3, 8, 8).byte(), TypeError, 'but got torch.uint8'),
    (torch.zeros(2, 3, 0, 8), ValueError, r'but got shape \(2, 3, 0, 8\)')])
def test_each_view_is_checked(view, error, match):
    with pytest.raises(error, match=match):
        MultiScaleBatch(8, 16)(dict(inputs=[torch.rand(2, 3, 8, 8), view]))


def collated(masks=None):
    """mmyolo's: instances of images 0, 0 and 2."""
    rows = torch.tensor([[0., 3, 1, 2, 9, 8], [0, 1, 0, 0, 16, 16],
                         [2, 5, 4, 4, 6, 12]])
    samples = dict(
        bboxes_labels=rows, keypoints=torch.rand(3, 5, 2) * 16,
        keypoints_visible=torch.ones(3, 5),
        img_metas=[dict(batch_input_shape=torch.Size([16, 20]))] * 4)
    if masks is not None:
        samples['masks'] = masks
    return dict(inputs=torch.rand(4, 3, 16, 20), data_samples=samples)


@pytest.mark.parametrize('shape', [(3, 16, 20), (4, 4, 5)])
def test_samples_of_a_whole_batch_follow(shape):
    data = collated(torch.randint(0, 2, shape))
    before = copy.deepcopy(data)
    small = MultiScaleBatch(8, 16)(data)
    new, old = small['data_samples'], before['data_samples']
    assert_close(small['inputs'], one_by_one(before['inputs'], 8))
    assert torch.equal(new['bboxes_labels'][:, :2],
                       old['bboxes_labels'][:, :2])
    assert torch.equal(new['bboxes_labels'][:, 2:],
                       old['bboxes_labels'][:, 2:] / 2)
    assert torch.equal(new['keypoints'], old['keypoints'] / 2)
    assert new['keypoints_visible'] is data['data_samples'][
        'keypoints_visible']
    assert new['img_metas'] == [dict(batch_input_shape=(8, 10))] * 4
    h, w = shape[-2:]
    assert torch.equal(new['masks'], F.interpolate(
        old['masks'][None].float(), (h // 2, round(w / 2)),
        mode='nearest')[0].long())
    for name, value in old.items():
        assert str(data['data_samples'][name]) == str(value)
    check_images(data, 16)


def test_rotated_boxes_of_a_whole_batch():
    """As of mmyolo's RTMDet-R: a box is half as large, and turned alike."""
    data = collated()
    data['data_samples']['bboxes_labels'] = torch.tensor(
        [[0, 7, 8, 6, 4, 2, .3], [3, 5, 10, 12, 6, 8, -1.2]])
    small = MultiScaleBatch(8, 16)(data)['data_samples']['bboxes_labels']
    assert_close(small, torch.tensor(
        [[0, 7, 4, 3, 2, 1, .3], [3, 5, 5, 6, 3, 4, -1.2]]))


@pytest.mark.parametrize('part', [1, 4])
def test_masks_are_padded_as_their_images(part):
    """Images of 48 pixels, which are 24 at half the scale, of 32 with
    padding; masks have a ``part`` of each edge, as mmyolo makes them."""
    data = dict(inputs=torch.rand(4, 3, 48, 64),
                data_samples=dict(collated()['data_samples'],
                                  masks=torch.ones(3, 48 // part, 64 // part,
                                                   dtype=torch.uint8)))
    small = MultiScaleBatch(24, 48, size_divisor=16)(data)
    assert small['inputs'].shape == (4, 3, 32, 32)
    want = torch.zeros(3, 32 // part, 32 // part, dtype=torch.uint8)
    want[:, :24 // part] = 1
    assert torch.equal(small['data_samples']['masks'], want)


@pytest.mark.parametrize('masks, want', [
    (torch.arange(3).view(3, 1, 1), [2]),  # of the instances
    (torch.arange(4).view(4, 1, 1), [1, 2, 3])])  # of the images
def test_a_share_of_a_whole_batch(masks, want):
    data = collated(masks)
    share = share_of(data, slice(1, 4))['data_samples']
    assert share['bboxes_labels'].tolist() == [[1, 5, 4, 4, 6, 12]]
    assert torch.equal(share['keypoints'],
                       data['data_samples']['keypoints'][2:])
    assert len(share['img_metas']) == 3
    assert share['masks'].flatten().tolist() == want
    assert data['data_samples']['bboxes_labels'][2, 0] == 2


@pytest.mark.parametrize('change, match', [
    (dict(odd=1), r"but got \['odd'\]"),
    (dict(bboxes_labels=torch.rand(3, 5)), r'but got shape \(3, 5\)')])
def test_other_samples_of_a_whole_batch_are_refused(change, match):
    data = collated()
    data['data_samples'].update(change)
    with pytest.raises(TypeError, match=f'yolov5_collate.*{match}'):
        MultiScaleBatch(8, 16)(data)


class SelfSupDataPreprocessor(BaseDataPreprocessor):
    """A stand-in for mmpretrain's, which is found by its name."""


class Views(TinyModel):
    """Compares views, as self-supervised models do."""

    def __init__(self, *args):
        super().__init__(*args)
        self.data_preprocessor = SelfSupDataPreprocessor()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        u, v = (self.net(view) for view in inputs)
        return dict(loss=(u - v).pow(2).mean())


@pytest.mark.parametrize('backward', ['joint', 'per_scale'])
def test_a_step_on_views_is_that_of_each_scale(backward):
    torch.manual_seed(0)
    model = Views(lambda c: SSBN(c, SCALES)).train()
    other = copy.deepcopy(model)
    views = [torch.rand(8, 3, 16, 16), torch.rand(8, 3, 10, 10)]
    hook = SCTLossHook(backward=backward)
    hook.attach(model)
    losses = model(inputs=views, data_samples=None, mode='loss')
    losses['loss'].backward()
    hook.detach()
    for scale in SCALES:
        with use_scale(other, scale):
            loss = other([one_by_one(view, scale) if scale < 16 else view
                          for view in views])['loss']
        (loss / 3).backward()
    assert_close(grads(model), grads(other))


def test_a_list_of_another_preprocessor_is_refused():
    model = Views(lambda c: SSBN(c, SCALES)).train()
    model.data_preprocessor = BaseDataPreprocessor()
    SCTLossHook().attach(model)
    with pytest.raises(TypeError, match=r'`inputs` of Views must be a tensor, '
                       r'or views .* but got a list of shape \(8, 3, 16, 16\) '
                       'from a BaseDataPreprocessor. .*docs/batches.md'):
        model(inputs=[torch.rand(8, 3, 16, 16)] * 2, data_samples=None,
              mode='loss')


def test_views_that_require_gradients_are_refused():
    model = Views(lambda c: SSBN(c, SCALES)).train()
    SCTLossHook().attach(model)
    with pytest.raises(ValueError, match='images that require gradients'):
        model(inputs=[torch.rand(8, 3, 16, 16),
                      torch.rand(8, 3, 8, 8, requires_grad=True)],
              data_samples=None, mode='loss')


class Joined(TinyModel):
    """Joins its views, as SimCLR does."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.net(torch.cat(inputs))


def test_statistics_of_views_are_those_of_their_images():
    torch.manual_seed(0)
    model = Joined(lambda c: SSBN(c, SCALES))
    other = copy.deepcopy(model)
    views = [[torch.rand(2, 3, 8, 8) for _ in 'ab'] for _ in range(3)]
    assert calibrate(model, [dict(inputs=each) for each in views], 8) == 6
    assert calibrate(other.net, [torch.cat(each) for each in views], 8) == 12
    for ours, want in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(ours, want)
