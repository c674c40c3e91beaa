"""Scales that teach each other, against a loop written by hand."""
import copy
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SCALES
from helpers import (
    Classifier,
    Dies,
    batch,
    classifier,
    grads,
    labelled,
    train,
)
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tv

from sct_mm import EpochSeedHook, SCTLossHook, set_scale
from sct_mm.engine.sct.distill_step import ENSEMBLE
from sct_mm.models.size_selection import ssbn_layers


def mixed(seed=0):
    """A batch after mixup or cutmix, as mmpretrain's preprocessor makes it."""
    np.random.seed(seed)
    preprocessor = MODELS.build(dict(
        type='mmpretrain.ClsDataPreprocessor', num_classes=5, to_rgb=False,
        batch_augments=dict(augments=[dict(type=('Mixup', 'CutMix')[seed],
                                           alpha=1.)])))
    return preprocessor(labelled(seed=seed), training=True)


def goes_on_from(hook, ensemble):
    """As a run that resumes, whose checkpoint holds an ``ensemble``."""
    hook.after_load_checkpoint(mock.Mock(_resume=True), {ENSEMBLE: ensemble})


def kl(p, q, temperature):
    """sum_c p_c log(p_c / q_c), the mean over the images."""
    p, q = (torch.exp(z / temperature) for z in (p, q))
    p, q = (e / e.sum(1, keepdim=True) for e in (p, q))
    return (p * (p / q).log()).sum(1).mean()


def by_hand(model, data, vector, teachers, everyone, weights, scale_of_kl=1.,
            temperature=1.):
    """The loss of RS-Nets, each KL written out; the ensemble's own loss.

    ``everyone``: the ensemble is of all scales, not only of those so far.
    """
    samples = data['data_samples']
    soft = torch.stack([
        s.gt_score if 'gt_score' in s else F.one_hot(s.gt_label[0], 5)
        for s in samples]).float()
    logits = []
    for scale in SCALES:
        set_scale(model, scale)
        logits.append(model(tv.resize(data['inputs'], [scale, scale],
                                      antialias=True)))
    fixed = [z.detach() for z in logits]

    def mix(count):
        e = torch.exp(vector[:count])
        return sum(a * z for a, z in zip(e / e.sum(), fixed[:count],
                                         strict=True))

    total, lessons = 0, []
    for i, z in enumerate(logits):
        own = -(soft * z.log_softmax(1)).sum(1).mean()
        lesson = sum(kl(t, z, temperature) for t in fixed[:i])
        if teachers == 'ensemble' and (everyone or i > 0):
            lesson = lesson + kl(mix(3 if everyone else i + 1).detach(), z,
                                 temperature)
        lesson = scale_of_kl * 2 / (3 + 1) * temperature**2 * lesson
        lessons.append(lesson)
        total = total + weights[i] * (own + lesson)
    return total, lessons, -(soft * mix(3).log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize('make', [labelled, mixed])
@pytest.mark.parametrize('teachers', ['larger', 'ensemble'])
@pytest.mark.parametrize('backward', ['per_scale', 'joint'])
def test_loss_and_gradients_are_those_of_a_loop(backward, teachers, make):
    model = classifier()
    hand, vector = copy.deepcopy(model), torch.tensor([.5, -.3, .1])
    vector.requires_grad_()
    weights, options, ours = (1 / 3, ) * 3, {}, {}
    if make is mixed:
        weights, options = (2., 1., .5), dict(scale_of_kl=.7, temperature=2.5)
        ours = dict(loss_weights=weights, distill_weight=.7, temperature=2.5)
    hook = SCTLossHook(distill=teachers, backward=backward, **ours)
    goes_on_from(hook, dict(zip(SCALES, vector.detach().clone(),
                                strict=True)))
    hook.attach(model)
    for seed in range(2):
        data = make(seed=seed)
        for net in (model, hand):
            net.zero_grad()
        losses = model(**copy.deepcopy(data), mode='loss')
        losses['loss'].backward()
        total, lessons, of_mix = by_hand(
            hand, data, vector, teachers, backward == 'joint', weights,
            **options)
        total.backward()
        assert_close(losses['loss'], total)
        assert_close(grads(model), grads(hand))
        for scale, lesson in zip(SCALES, lessons, strict=True):
            assert_close(losses.get(f's{scale}/distill', 0), lesson,
                         check_dtype=False)
        if teachers == 'larger':
            assert not [name for name in losses if 'alpha' in name]
            continue
        alpha = torch.stack([losses[f's{scale}/alpha'] for scale in SCALES])
        assert_close(alpha, vector.softmax(0).detach())
        vector.grad = None
        of_mix.backward()
        vector.data -= 0.1 * vector.grad
    assert not model.head._forward_hooks
    for name, value in hand.state_dict().items():
        assert_close(model.state_dict()[name], value)


def test_true_is_larger_and_weight_zero_is_without():
    losses = {}
    for name, options in dict(true=dict(distill=True), none={}, larger=dict(
            distill='larger'), zero=dict(distill='ensemble',
                                         distill_weight=0)).items():
        model = classifier()
        SCTLossHook(**options).attach(model)
        losses[name] = model(**labelled(), mode='loss')
    assert losses['true'] == losses['larger']
    assert losses['zero']['loss'] == losses['none']['loss']
    assert losses['zero']['s8/total'] == losses['larger']['s8/total']
    assert losses['larger']['loss'] > losses['none']['loss'] + 1e-4


@pytest.mark.parametrize('options', [
    dict(scales_per_step=2), dict(scales_per_step=2, between=1.),
    dict(loss_weights=(.5, 0, 1))])
@pytest.mark.parametrize('backward', ['per_scale', 'joint'])
def test_a_teacher_is_a_larger_pass_of_the_step(backward, options):
    """Of two scales that have weight, the larger one at whatever size."""
    model = classifier()
    hook = SCTLossHook(distill='larger', backward=backward, **options)
    hook.attach(model)
    seen, sizes = [], set()
    model.head.register_forward_hook(
        lambda head, args, output: seen.append(output.detach()))
    model.register_forward_pre_hook(
        lambda m, args, kwargs: sizes.add(kwargs['inputs'].shape[-1]),
        with_kwargs=True)
    for hook.step in range(6):
        losses = model(**labelled(seed=hook.step), mode='loss')
        lesson, = [losses[name] for name in losses if 'distill' in name]
        teacher = seen[-3 if 'loss_weights' in options else -2]
        assert_close(lesson, 2 / 3 * kl(teacher, seen[-1], 1))
    assert not options.get('between') or sizes - set(SCALES)


@pytest.mark.parametrize('backward', ['per_scale', 'joint'])
def test_layers_that_run_again_have_the_size_of_their_pass(backward):
    found = []
    for with_cp in (False, True):
        model = classifier(with_cp=with_cp).double()
        SCTLossHook(distill='ensemble', backward=backward).attach(model)
        data = labelled()
        data['inputs'] = data['inputs'].double()
        model(**data, mode='loss')['loss'].backward()
        assert all(layer.pinned_size is None for layer in ssbn_layers(model))
        assert not model.head._forward_hooks
        found.append(grads(model))
    assert_close(*found)


def test_an_overflow_does_not_reach_the_ensemble():
    model = Classifier()
    hook = SCTLossHook(distill='ensemble', check_finite=False)
    hook.attach(model)  # of which all entries are zero
    model.net[-1].bias.data.fill_(torch.inf)
    model(**batch(), mode='loss')
    assert set(hook.sct.ensemble()) == set(SCALES)
    assert all(point == 0 for point in hook.sct.ensemble().values())


def test_resumed_training_is_the_unbroken_one_to_the_bit(tmp_path):
    def run(name, *more, **options):
        torch.manual_seed(0)
        hook = SCTLossHook(distill='ensemble')
        train(tmp_path / name, 2, Classifier(),
              [hook, EpochSeedHook(), EMAHook(), *more], **options)
        return torch.load(tmp_path / name / 'epoch_2.pth')

    whole = run('whole')
    assert set(whole[ENSEMBLE]) == set(SCALES)
    assert whole['state_dict'].keys() == Classifier().state_dict().keys()
    with pytest.raises(KeyboardInterrupt):
        run('parts', Dies())
    resumed = run('parts', resume=True)
    for name in ('state_dict', 'ema_state_dict', ENSEMBLE):
        assert_close(resumed[name], whole[name], rtol=0, atol=0)
    first = torch.load(tmp_path / 'parts/epoch_1.pth')[ENSEMBLE]
    assert all(0 != point != first[scale]
               for scale, point in resumed[ENSEMBLE].items())  # it learns


def test_what_is_loaded_starts_a_new_ensemble(tmp_path):
    points = dict.fromkeys(SCALES, torch.tensor(5.))
    hook = SCTLossHook(distill='ensemble')
    for resumes in (True, False):
        hook.before_run(mock.Mock())
        hook.after_load_checkpoint(mock.Mock(_resume=resumes, hooks=[]),
                                   {ENSEMBLE: points})
        hook.attach(Classifier())
        assert hook.sct.ensemble() == (points if resumes else {})


def test_the_ensemble_is_of_one_model_and_one_hook():
    hook = SCTLossHook(distill='ensemble')
    model = Classifier()
    hook.attach(model)
    model(**mixed(), mode='loss')
    learned = hook.sct.ensemble()
    assert learned
    other = copy.deepcopy(hook)
    other.attach(Classifier())
    other.model(**mixed(), mode='loss')
    assert_close(hook.sct.ensemble(), learned, rtol=0, atol=0)
    hook.attach(Classifier())
    assert not hook.sct.ensemble()


@pytest.mark.parametrize('head, loss', [
    ('LinearClsHead', dict(type='LabelSmoothLoss', label_smooth_val=.1)),
    ('LinearClsHead', dict(type='CrossEntropyLoss', use_sigmoid=True)),
    ('VisionTransformerClsHead', None), ('VigClsHead', None)])
def test_any_head_with_logits_is_served(head, loss):
    model = classifier(head, loss)
    SCTLossHook(distill='ensemble').attach(model)
    losses = model(**mixed(), mode='loss')
    losses['loss'].backward()
    assert {f's{scale}/alpha' for scale in SCALES} <= losses.keys()
    assert all(p.grad is not None for p in model.parameters())


def test_a_classifier_without_a_head_wraps_what_has_logits():
    import mmpretrain.models  # noqa: F401
    model = MODELS.build(dict(type='WithSSBN', scales=(32, 24), model=dict(
        type='mmpretrain.TimmClassifier', model_name='test_resnet',
        num_classes=5)))
    SCTLossHook(distill='ensemble').attach(model)
    losses = model(**labelled(size=32), mode='loss')
    assert losses['s24/distill'] > 0 and losses['s32/alpha'] == .5
