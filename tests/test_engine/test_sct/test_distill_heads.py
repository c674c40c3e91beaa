"""Heads of every kind teach by what they answer."""
import copy

import pytest
import torch
from conftest import SCALES
from heads import (
    logits_by_hand,
    scores,
    several_labels,
    sigmoid_kl,
    soft_labels,
    softmax_kl,
)
from helpers import batch, classifier, grads, labelled
from mmengine.registry import MODELS
from torch import nn
from torch.testing import assert_close

from sct_mm import SCTLossHook
from sct_mm.engine.sct.logits import distillation_loss, is_sigmoid


class Twice(nn.Module):
    """Features for a head with two answers."""

    def forward(self, feats):
        x = feats[-1].mean((2, 3))
        return ([x, x.flip(1)], )


def conformer():
    model = classifier()
    model.neck = Twice()
    model.head = MODELS.build(dict(type='mmpretrain.ConformerHead',
                                   num_classes=5, in_channels=(32, 32)))
    for each in model.head.modules():  # which starts at zero
        if isinstance(each, nn.Linear):
            nn.init.normal_(each.weight, std=.1)
    return model


def csra():
    model = classifier()
    model.neck = None
    model.head = MODELS.build(dict(
        type='mmpretrain.CSRAClsHead', num_classes=5, in_channels=32,
        num_heads=1, lam=.1))
    return model


def loss_of(name, **options):
    return dict(type=name, **options)


KINDS = {
    'several labels': (lambda: classifier('MultiLabelLinearClsHead'),
                       several_labels, sigmoid_kl),
    'scores of several': (lambda: classifier('MultiLabelLinearClsHead'),
                          scores, sigmoid_kl),
    'CSRA': (csra, several_labels, sigmoid_kl),
    'one label by sigmoid': (lambda: classifier(loss=loss_of(
        'CrossEntropyLoss', use_sigmoid=True)), scores, sigmoid_kl),
    'focal': (lambda: classifier('MultiLabelLinearClsHead', loss_of(
        'FocalLoss')), several_labels, sigmoid_kl),
    'asymmetric': (lambda: classifier('MultiLabelLinearClsHead', loss_of(
        'AsymmetricLoss')), scores, sigmoid_kl),
    'smooth by sigmoid': (lambda: classifier(
        'MultiLabelLinearClsHead', loss_of(
            'LabelSmoothLoss', label_smooth_val=.1, mode='multi_label',
            use_sigmoid=True)), scores, sigmoid_kl),
    'soft': (lambda: classifier(loss=loss_of(
        'CrossEntropyLoss', use_soft=True)), soft_labels, softmax_kl),
    'Conformer': (conformer, labelled, softmax_kl),
    'ArcFace': (lambda: classifier('ArcFaceClsHead'), labelled, softmax_kl),
}


@pytest.mark.parametrize('backward', ['per_scale', 'joint'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_lesson_is_of_what_the_head_answers(double_precision, kind,
                                              backward):
    make, data, kl = KINDS[kind]
    model, data = make(), data()
    hand, plain = copy.deepcopy(model), copy.deepcopy(model)
    SCTLossHook(distill='larger', backward=backward).attach(model)
    losses = model(**copy.deepcopy(data), mode='loss')
    losses['loss'].backward()
    logits = [logits_by_hand(hand, data, scale) for scale in SCALES]
    total = 0
    for i, scale in enumerate(SCALES):
        lesson = sum(2 / 4 * kl(p.detach(), q) for teacher in logits[:i]
                     for p, q in zip(teacher, logits[i], strict=True))
        total = total + lesson / 3
        if i:
            assert lesson > 1e-5
            assert_close(losses[f's{scale}/distill'], lesson.detach(),
                         check_dtype=False)
    total.backward()
    SCTLossHook(backward=backward).attach(plain)
    plain(**copy.deepcopy(data), mode='loss')['loss'].backward()
    ours, own, taught = map(grads, (model, plain, hand))
    # The lessons are in single precision: each is rounded by eps times a
    # logit, and by eps for each of the 5 classes and 8 images that it sums.
    # An element may cancel, and has the rounding of the largest of its tensor.
    largest = max(z.abs().max().item() for part in logits for z in part)
    rounding = torch.finfo(torch.float32).eps * (largest + 5 + 8)
    for name, grad in ours.items():
        want = own[name] + taught[name]
        assert_close(grad, want, rtol=0,
                     atol=rounding * want.abs().max().item())


@pytest.mark.parametrize('kind', KINDS)
def test_the_ensemble_learns_by_the_targets_of_the_head(kind):
    make, data, kl = KINDS[kind]
    model, data = make(), data()
    hand = copy.deepcopy(model)
    hook = SCTLossHook(distill='ensemble', backward='joint')
    hook.attach(model)
    model(**copy.deepcopy(data), mode='loss')['loss'].backward()
    vector = torch.zeros(3, requires_grad=True)
    with torch.no_grad():
        logits = [logits_by_hand(hand, data, scale) for scale in SCALES]
    target = torch.stack([
        s.gt_score.float() if 'gt_score' in s
        else torch.zeros(5).index_fill(0, s.gt_label, 1)
        for s in data['data_samples']])
    total = 0
    for part in zip(*logits, strict=True):
        mix = sum(a * z for a, z in zip(vector.softmax(0), part, strict=True))
        each = (target * mix.log_softmax(1) if kl is softmax_kl else
                target * mix.sigmoid().log()
                + (1 - target) * (-mix).sigmoid().log())
        total = total - each.sum(1).mean()
    gradient, = torch.autograd.grad(total, vector)
    assert gradient.abs().max() > 1e-4
    assert_close(torch.stack([hook.sct.ensemble()[s] for s in SCALES]),
                 -.1 * gradient, rtol=1e-4, atol=1e-7)


def tasks():
    model = classifier()
    model.head = MODELS.build(dict(
        type='mmpretrain.MultiTaskHead', task_heads=dict(
            kind=dict(type='LinearClsHead', num_classes=5, in_channels=32),
            more=dict(type='MultiTaskHead', task_heads=dict(
                marks=dict(type='MultiLabelLinearClsHead', num_classes=4,
                           in_channels=32))))))
    return model


def of_tasks(n=8):
    """The second task has labels in every other image."""
    from mmpretrain.structures import DataSample, MultiTaskDataSample
    samples = []
    for i in range(n):
        sample = MultiTaskDataSample()
        sample.set_field(DataSample().set_gt_label(i % 5), 'kind')
        if i % 2:
            inner = MultiTaskDataSample()
            inner.set_field(DataSample().set_gt_label([i % 4]), 'marks')
            sample.set_field(inner, 'more')
        samples.append(sample)
    return dict(batch(n=n), data_samples=samples)


def test_each_task_is_taught_on_the_images_that_have_it():
    model, data = tasks(), of_tasks()
    hand = copy.deepcopy(model)
    SCTLossHook(distill='larger').attach(model)
    losses = model(**copy.deepcopy(data), mode='loss')
    (kind_16, marks_16), (kind_12, marks_12) = (
        (output['kind'], output['more']['marks'][1::2]) for output, in (
            logits_by_hand(hand, data, scale) for scale in SCALES[:2]))
    assert_close(losses[f's{SCALES[1]}/distill'], (
        2 / 4 * (softmax_kl(kind_16, kind_12)
                 + sigmoid_kl(marks_16, marks_12))).detach())
    losses['loss'].backward()
    with pytest.raises(ValueError, match="has tasks. Set distill='larger'"):
        SCTLossHook(distill='ensemble').attach(tasks())


@pytest.mark.parametrize('backward', ['per_scale', 'joint'])
def test_a_batch_without_a_label_of_any_task_teaches_nothing(backward):
    from mmpretrain.structures import MultiTaskDataSample
    model = tasks()
    SCTLossHook(distill='larger', backward=backward).attach(model)
    losses = model(**dict(batch(), data_samples=[
        MultiTaskDataSample() for _ in range(8)]), mode='loss')
    assert losses['loss'] == 0 and not any('distill' in n for n in losses)


@pytest.mark.parametrize('kind', KINDS)
def test_an_adapted_network_is_taught_likewise(kind):
    """By all that it answers at the base, in evaluation mode."""
    make, data, kl = KINDS[kind]
    model, data = make(), data()
    hand = copy.deepcopy(model).eval()
    hook = SCTLossHook(adapt=True)
    hook.attach(model)
    losses = model(inputs=data['inputs'], mode='loss')
    teacher = logits_by_hand(hand, data, SCALES[0])
    for module in hand.modules():  # rows of the smaller scales train
        module.training = hasattr(module, 'scales')
    for scale in SCALES[1:]:
        student = logits_by_hand(hand, data, scale)
        assert_close(losses[f's{scale}/total'], sum(
            kl(p, q) for p, q in zip(teacher, student, strict=True)).detach())


def test_tasks_adapt_by_their_logits():
    model, data = tasks(), of_tasks()
    SCTLossHook(adapt=True).attach(model)
    assert model(inputs=data['inputs'], mode='loss')['loss'] > 0
    with pytest.raises(ValueError, match="has tasks.*Set adapt='logits'"):
        SCTLossHook(adapt='both').attach(tasks())


def test_the_divergence_of_sigmoids_is_kl_and_finite():
    teacher, student = 3 * torch.randn(2, 6, 5)
    assert_close(distillation_loss(teacher, student, sigmoid=True),
                 sigmoid_kl(teacher, student))
    assert_close(distillation_loss(teacher, student, 2., sigmoid=True),
                 4 * sigmoid_kl(teacher / 2, student / 2))
    far = torch.full((2, 3), 200.)
    assert distillation_loss(far, -far, sigmoid=True).isfinite()
    assert distillation_loss(teacher, teacher + 5, sigmoid=True) > .1


@pytest.mark.parametrize('loss, expected', [
    (nn.CrossEntropyLoss(), False), (nn.BCEWithLogitsLoss(), True),
    (nn.MultiLabelSoftMarginLoss(), True)])
def test_the_loss_of_a_classifier_without_a_head_tells(loss, expected):
    model = nn.Module()
    model.loss_module = loss
    assert is_sigmoid(model, nn.Linear(2, 2)) is expected
