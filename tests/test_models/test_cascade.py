"""Cascade: the batched one against one image by image, by hand."""
import contextlib
import copy
import os.path as osp

import numpy as np
import pytest
import torch
from conftest import ROOT, SCALES
from helpers import randomised, ssbn_model
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from sct_mm import SSBN, Cascade, MultiScaleBatch, use_scale
from sct_mm.models.cascade import check_scores, scores_in
from sct_mm.models.size_selection import ssbn_layers
from sct_mm.utils.errors import UserError

FASHION = osp.join(ROOT, 'configs', 'sct_resnet18_1xb128_fashion-mnist.py')


@pytest.fixture
def fashion():
    """The demo's classifier, as ``get_model`` makes it."""
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(FASHION)
    model = randomised(MODELS.build(dict(
        cfg.model, data_preprocessor=cfg.data_preprocessor)))
    model._config = cfg
    return model


def plain_net():
    norm = SSBN(4, SCALES)
    return randomised(nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 5)))


def by_hand(net, image, sizes, thresholds):
    """One image (1, C, H, W): its probabilities, and the size."""
    net.eval()
    for size, threshold in zip(sizes, (*thresholds, -1), strict=True):
        resized = MultiScaleBatch(size, sizes[-1])(dict(inputs=image))
        with use_scale(net, size), torch.no_grad():
            logits = net(resized['inputs'])
        scores = logits.softmax(1)
        if scores.max() > threshold:
            return scores, size
    raise AssertionError


@pytest.mark.parametrize('sizes', [(8, 16), (8, 10, 16), (6, 12, 14, 16)])
@pytest.mark.parametrize('build', [plain_net, ssbn_model])
def test_the_batched_one_is_the_one_image_by_image(build, sizes):
    """At trained sizes, between them, and below."""
    net = randomised(build())
    inputs = torch.randn(24, 3, 16, 16) * 3
    before = inputs.clone()
    with torch.no_grad(), use_scale(net.eval(), 8):
        small = MultiScaleBatch(8, 16)(dict(inputs=inputs))['inputs']
        middle = float(net(small).softmax(1).amax(1).median())
    thresholds = [middle] * (len(sizes) - 1)
    with pytest.warns(UserWarning) if sizes[0] == 6 else (
            contextlib.nullcontext()):
        found = Cascade(net, sizes, middle)(inputs)
        want = [by_hand(net, image[None], sizes, thresholds)
                for image in inputs]
    assert found.sizes.tolist() == [size for _, size in want]
    assert len(set(found.sizes.tolist())) > 1
    torch.testing.assert_close(found.scores, torch.cat([s for s, _ in want]))
    assert torch.equal(found.labels, found.scores.argmax(1))
    assert torch.equal(inputs, before)


@pytest.mark.parametrize('threshold, size', [(0, 8), (1, 16)])
def test_the_ends_are_one_size_alone(threshold, size):
    net, inputs = plain_net(), torch.randn(6, 3, 16, 16)
    found = Cascade(net, (8, 12, 16), threshold)(inputs)
    assert found.sizes.tolist() == [size] * 6
    resized = MultiScaleBatch(size, 16)(dict(inputs=inputs))['inputs']
    with use_scale(net, size), torch.no_grad():
        torch.testing.assert_close(found.scores, net(resized).softmax(1))


def test_only_the_undecided_go_on_together():
    net, inputs = plain_net(), torch.randn(20, 3, 16, 16) * 3
    seen = []
    net.register_forward_hook(lambda module, args, out: seen.append(
        tuple(args[0].shape)))
    first = Cascade(net, (8, 16), 1.0)(inputs)
    middle = float(first.scores.amax(1).median())
    seen.clear()
    found = Cascade(net, (8, 16), middle)(inputs)
    up = int((found.sizes == 16).sum())
    assert seen[0] == (20, 3, 8, 8)
    assert seen[1:] == ([(up, 3, 16, 16)] if up else [])


def test_a_pin_is_restored_and_no_gradient_is_made():
    net = plain_net().train()
    with use_scale(net, 12):
        found = Cascade(net, (8, 16), 0.5)(torch.randn(2, 3, 16, 16))
        assert {layer.pinned_size for layer in ssbn_layers(net)} == {12}
    assert not found.scores.requires_grad and not net.training


def test_the_hosts_samples_are_those_of_the_size_that_decides(fashion):
    from mmpretrain.structures import DataSample
    sizes, inputs = (14, 28), [
        torch.randint(0, 255, (1, 28, 28), dtype=torch.uint8)
        for _ in range(12)]
    data = dict(inputs=inputs, data_samples=[
        DataSample().set_gt_label(i % 10) for i in range(12)])
    small = Cascade(fashion, sizes, 0.0).test_step(copy.deepcopy(data))
    middle = float(torch.stack([s.pred_score.max() for s in small]).median())
    cascade = Cascade(fashion, sizes, middle)
    found = cascade.test_step(data)
    plain = cascade(fashion.data_preprocessor(data)['inputs'])
    assert {s.decided_at for s in found} == set(sizes)
    for i, sample in enumerate(found):
        assert int(sample.gt_label) == i % 10
        assert sample.decided_at == plain.sizes[i]
        torch.testing.assert_close(sample.pred_score, plain.scores[i])
        assert int(sample.pred_label) == plain.labels[i]
        if sample.decided_at == 14:
            torch.testing.assert_close(sample.pred_score, small[i].pred_score)


def test_mmpretrains_inferencer_takes_it(fashion):
    from mmpretrain import ImageClassificationInferencer
    images = list(np.random.default_rng(0).integers(
        0, 255, (7, 28, 28)).astype(np.uint8))
    cascade = Cascade(fashion, (14, 21, 28), 0.2)
    results = ImageClassificationInferencer(cascade)(images, batch_size=3)
    inputs = fashion.data_preprocessor(dict(inputs=[
        torch.from_numpy(image)[None] for image in images]))['inputs']
    want = cascade(inputs)
    assert [r['pred_label'] for r in results] == want.labels.tolist()
    np.testing.assert_allclose([r['pred_scores'] for r in results],
                               want.scores.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('sizes, thresholds, match', [
    ((28, 14), 0.5, r'must ascend, but got \(28, 14\). Write the smallest'),
    ((14, 14), 0.5, 'must ascend'), ((28, ), 0.5, 'at least two sizes'),
    (28, 0.5, 'at least two sizes'), ((0, 14), 0.5, '`sizes` must be an int'),
    ((14.0, 28), 0.5, '`sizes` must be an int, but got 14.0'),
    ((14, 28), 1.5, '`thresholds` must be a finite number from 0 to 1'),
    ((14, 28), -0.1, 'from 0 to 1'), ((14, 28), float('nan'), 'from 0 to 1'),
    ((14, 28), 'a', '`thresholds` must be a number'),
    ((14, 21, 28), (0.1, 0.2, 0.3), 'but got 3 for 3 sizes. Give 1 or 2')])
def test_what_is_refused(sizes, thresholds, match):
    with pytest.raises((UserError, TypeError, ValueError), match=match):
        Cascade(plain_net(), sizes, thresholds)


def test_images_that_are_not_stacked():
    with pytest.raises(TypeError, match=r'tensor \(N, C, H, W\), .* got list'):
        Cascade(plain_net(), (8, 16), 0.5)([torch.randn(3, 16, 16)])


def test_scores_are_taken_as_they_are():
    """Of a network that ends in a softmax: another would blur them."""
    inputs = torch.randn(4, 3, 16, 16)
    net = plain_net()
    want = Cascade(net, (8, 16), 0.5)(inputs)
    got = Cascade(nn.Sequential(net, nn.Softmax(1)), (8, 16), 0.5)(inputs)
    torch.testing.assert_close(got.scores, want.scores)


def test_one_logit_and_several_labels_are_refused():
    """The softmax of one logit is always sure; sigmoids are no shares."""
    with pytest.raises(UserError, match=r'but got Tensor of shape \(2, 1\)'):
        scores_in(torch.randn(2, 1))
    with pytest.raises(UserError, match='sum to 1, but got a sum of 1.7'):
        check_scores(torch.tensor([[0.9, 0.8], [0.5, 0.5]]))
    check_scores(torch.tensor([[0.9, 0.1], [float('nan'), 0.5]]))
    # As mmpretrain's samples of a network of one class have it.
    with pytest.raises(UserError, match='two classes or more, but .* gives '
                       'one score an image, which is always 1'):
        check_scores(torch.ones(2, 1))


def test_no_network_another_size_another_mode_and_no_classifier():
    with pytest.raises(TypeError, match='must be an nn.Module, but got str'):
        Cascade('net', (14, 28), 0.5)
    cascade = Cascade(plain_net(), (8, 16), 0.5)
    with pytest.raises(UserError, match='largest size, 16 pixels, but got 8'):
        cascade(torch.randn(2, 3, 8, 8))
    with pytest.raises(UserError, match="'predict', but got 'loss'"):
        cascade(torch.randn(2, 3, 16, 16), mode='loss')
    dense = Cascade(nn.Conv2d(3, 4, 1), (8, 16), 0.5)
    with pytest.raises(UserError, match='serves classifiers, .* got Tensor'):
        dense(torch.randn(2, 3, 16, 16))
