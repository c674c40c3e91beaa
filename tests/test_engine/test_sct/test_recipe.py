"""Recipes of SCTLossHook: what their arguments are at which scales."""
import glob
import itertools
import math
import os.path as osp
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from conftest import ROOT, SCALES, TinyModel
from fill_metafile import of_a_sibling
from helpers import Dies, apart, ssbn_model, train, with_trained_base
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS, MODELS, init_default_scope
from torch import nn

from sct_mm import SSBN, EpochSeedHook, SCTLossHook, SharedAffineHook
from sct_mm.engine.sct.recipe import at_scales, detects, weights_for
from sct_mm.engine.sct.schedule import sizes_between
from sct_mm.models.size_selection import scales_of, ssbn_layers
from sct_mm.utils.config import load_config

# What the shipped configs stand for, argument by argument.
CLASSIFIER = dict(
    scales_per_step=1, between=0.35, size_divisor=16, progressive=0.65,
    loss_weights=(0.45, 0.2, 0.15, 0.2), backward='joint')
GLYPHS = dict(CLASSIFIER, size_divisor=6)
SIX = dict(
    scales_per_step=1, between=0.35, progressive=0.65,
    loss_weights=(0.45, 0.13, 0.12, 0.1, 0.08, 0.12), backward='joint')
DETECTOR = dict(
    scales_per_step=1, progressive=0.65, backward='joint',
    loss_weights=(0.35, 0.13, 0.13, 0.13, 0.13, 0.13))
PAPER = dict(backward='per_scale')
LONG_FORMS = {
    'sct_resnet50_8xb32_in1k': CLASSIFIER,
    'sct_resnet18_8xb32_in1k': CLASSIFIER,
    'sct_resnet50_8xb32-warm-start_in1k': CLASSIFIER,
    'sct-modern_resnet50_8xb32_in1k': CLASSIFIER,
    'sct_mobilenet-v2_8xb32_in1k': CLASSIFIER,
    'sct_resnet18_1xb128_glyphs': GLYPHS,
    'sct_resnet50_1xb128_glyphs': GLYPHS,
    'sct-any-size_resnet18_1xb128_fashion-mnist': SIX,
    'sct-any-size_resnet18_1xb128-40e_fashion-mnist': SIX,
    'sct_retinanet_r50_fpn_8xb2-1x_coco': DETECTOR,
    'sct_faster-rcnn_r50_fpn_8xb2-1x_coco': DETECTOR,
    'sct_mask-rcnn_r50_fpn_8xb2-1x_coco': DETECTOR,
    'sct_retinanet_r18_fpn_1xb8_fashion-det': dict(
        DETECTOR, loss_weights=(0.45, 0.1375, 0.1375, 0.1375, 0.1375)),
    'sct_rtmdet_tiny_8xb32-300e_coco': dict(
        scales_per_step=1, backward='joint'),
    'sct-paper_resnet50_8xb32_in1k': PAPER,
}


def resolved(model, hook, *others):
    """What a checkpoint records of a run with these hooks, how gradients are
    taken, and the parameters that have gradient hooks."""
    runner = SimpleNamespace(model=model, hooks=[hook, *others])
    for each in others:
        each.before_train(runner)
    hook.attach(model, steps=1000 if hook.progressive else 0)
    checkpoint = {}
    hook.before_save_checkpoint(runner, checkpoint)
    hooked = [name for name, each in model.named_parameters()
              if each._backward_hooks]
    for each in (hook, *others):
        each.after_train(runner)
    assert not any(each._backward_hooks for each in model.parameters())
    return {**checkpoint['sct_schedule'], 'backward': hook.backward,
            'hooked': hooked}


def built(path, **options):
    """The SCTLossHook and the network of a config, as if it were trained."""
    if '_coco' in path or '-det' in path:
        pytest.importorskip('mmdet')
    cfg = load_config(path)
    cfg.merge_from_dict(options)
    init_default_scope(cfg.default_scope)
    assert 'SharedAffineHook' not in str(cfg.custom_hooks)
    hook, = [HOOKS.build(hook) for hook in cfg.custom_hooks
             if hook['type'] == 'SCTLossHook']
    return hook, with_trained_base(MODELS.build(cfg.model))


def weights_of(hook, model):
    hook.attach(model, steps=1000)
    return tuple(hook.sct.schedule.weights.values())


def test_every_config_with_a_recipe_is_compared():
    found = {osp.basename(path)[:-3] for path in glob.glob(
        osp.join(ROOT, 'configs', '*.py')) if not of_a_sibling(path)
        and 'recipe' in str(Config.fromfile(path).get('custom_hooks'))}
    assert found and found <= set(LONG_FORMS)


@pytest.mark.parametrize('name', LONG_FORMS)
def test_a_config_is_what_its_long_form_says(name):
    hook, model = built(osp.join(ROOT, 'configs', f'{name}.py'))
    long = [SCTLossHook(**LONG_FORMS[name])]
    if long[0].backward == 'joint':
        long.append(SharedAffineHook())
    expected = resolved(model, *long)
    assert resolved(model, hook) == expected
    assert bool(expected['hooked']) == (len(long) == 2)


@pytest.mark.parametrize('name, scales, weights', [
    ('sct_resnet18_8xb32_in1k', (224, 160), (0.45, 0.55)),
    ('sct_resnet18_8xb32_in1k', (224, 192, 128), (0.45, 0.275, 0.275)),
    ('sct_resnet18_8xb32_in1k', tuple(range(224, 96, -16)),
     (0.45, *[0.55 / 7] * 7)),
    ('sct-any-size_resnet18_1xb128_fashion-mnist', (28, 20, 14),
     (0.45, 0.275, 0.275)),
    ('sct-any-size_resnet18_1xb128_fashion-mnist', (28, 21, 17, 14),
     (0.45, 0.2, 0.15, 0.2)),
    ('sct_retinanet_r50_fpn_8xb2-1x_coco', (800, 640, 480),
     (0.45, 0.275, 0.275)),
    ('sct_retinanet_r50_fpn_8xb2-1x_coco', tuple(range(800, 544, -32)),
     (0.35, *[0.65 / 7] * 7))])
def test_another_number_of_scales_is_one_line(name, scales, weights,
                                              tmp_path):
    config = tmp_path / 'mine.py'
    config.write_text(
        f'_base_ = {osp.join(ROOT, "configs", name + ".py")!r}\n'
        f'model = dict(backbone=dict(norm_cfg=dict(scales={scales})))\n')
    hook, model = built(str(config))
    assert scales_of(model) == scales
    assert weights_of(hook, model) == pytest.approx(weights)


def test_weights_of_any_number_of_scales():
    for count, detector in itertools.product(range(2, 20), (True, False)):
        weights = weights_for(count, detector)
        assert len(weights) == count and math.isclose(sum(weights), 1)
        assert min(weights) > 0
        if detector or count not in (4, 6):
            assert len(set(weights[1:])) == 1
            assert weights[0] == (0.35 if detector and count > 5 else 0.45)


@pytest.mark.parametrize('scales, divisor', [
    ((224, 192, 160, 128), 16), ((224, 160), 16), ((96, 72, 48, 36), 6),
    ((28, 24, 21, 18, 16, 14), 1), ((28, 21, 14), 1), ((225, 150, 75), 1),
    ((640, 512, 384), 64), ((256, 192, 160), 16)])
def test_sizes_between_are_multiples_of_half_the_common_divisor(
        scales, divisor):
    found = at_scales('any-size', scales, False)
    assert found['size_divisor'] == divisor
    assert all(sizes_between(scales, divisor).values())
    assert at_scales('any-size', scales, True)['size_divisor'] == 1
    # Where a user wants sizes between the scales of a detector.
    found = at_scales('any-size', scales, True, between=0.5)
    assert (found['between'], found['size_divisor']) == (0.5, divisor)


def test_a_divisor_of_the_data_preprocessor_is_named():
    model = ssbn_model()
    model.data_preprocessor.pad_size_divisor = 8
    with pytest.raises(ValueError, match='a multiple of 8 between 16 and 12, '
                       'but there is none. Set between=0, .* size_divisor, '
                       'also in the data preprocessor'):
        SCTLossHook(recipe='any-size').attach(model, steps=9)
    SCTLossHook(recipe='any-size', between=0).attach(model, steps=9)


class BaseDetector(TinyModel):
    """By its name one of mmdet."""


class Detector(BaseDetector):
    pass


@pytest.mark.parametrize('cls, expected', [
    (Detector, (True, 0.0, (0.45, 0.275, 0.275))),
    (TinyModel, (False, 0.35, (0.45, 0.275, 0.275)))])
def test_detectors_train_nothing_between(cls, expected):
    model = with_trained_base(cls(lambda c: SSBN(c, SCALES)))
    hook = SCTLossHook(recipe='any-size')
    weights = weights_of(hook, model)
    assert (detects(model), hook.sct.schedule.between, weights) == (
        expected[0], expected[1], pytest.approx(expected[2]))


@pytest.mark.parametrize('given', [
    dict(between=0.0), dict(between=0.5), dict(progressive=0.0),
    dict(loss_weights=(0.5, 0.3, 0.2)), dict(size_divisor=2),
    dict(scales_per_step=2, progressive=0.0), dict(partition=True),
    dict(shared_affine=False), dict(shared_affine=False, backward='joint'),
    dict(seed=3)])
def test_single_arguments_override_a_recipe(given):
    """The others stay."""
    long = dict(scales_per_step=1, between=0.35, size_divisor=2,
                progressive=0.65, loss_weights=weights_for(3, False))
    if 'partition' in given:
        del long['scales_per_step']
    if given.get('between') == 0:
        long['size_divisor'] = 1
    long.update(given)
    others = [SharedAffineHook()] if long.pop('shared_affine', True) else []
    long.setdefault('backward', 'joint' if others else 'per_scale')
    model = with_trained_base(ssbn_model())
    assert resolved(model, SCTLossHook(recipe='any-size', **given)) == (
        resolved(model, SCTLossHook(**long), *others))


def test_the_command_line_overrides_a_recipe():
    path = osp.join(ROOT, 'configs', 'sct_resnet18_1xb128_glyphs.py')
    hook, model = built(path, **{'custom_hooks.2.between': 0.5,
                                 'custom_hooks.2.shared_affine': False})
    expected = {**GLYPHS, 'between': 0.5, 'backward': 'per_scale'}
    assert resolved(model, hook) == resolved(model, SCTLossHook(**expected))
    hook, model = built(path, **{'custom_hooks.2.recipe': 'paper'})
    assert resolved(model, hook) == resolved(model, SCTLossHook())


def test_without_ssbn_there_is_nothing_to_share():
    model = TinyModel(nn.BatchNorm2d)
    found = resolved(model, SCTLossHook(SCALES, recipe='any-size'))
    assert not found['hooked'] and found['SharedAffineHook'] == 'False'
    assert found['between'] == '0.35'


def runs(tmp_path, name, epochs, *hooks, **options):
    torch.manual_seed(0)
    model = ssbn_model()
    train(tmp_path / name, epochs, model,
          [*hooks, EpochSeedHook(), EMAHook()], **options)
    return model.state_dict()


def test_it_trains_and_resumes_as_the_long_form_to_the_bit(tmp_path):
    """A checkpoint of either is resumed by the other without a warning."""
    def long():
        return (SCTLossHook(
            scales_per_step=1, between=0.35, size_divisor=2, progressive=0.65,
            loss_weights=(0.45, 0.275, 0.275), backward='joint'),
            SharedAffineHook())

    expected = runs(tmp_path, 'long', 4, *long())
    for name, second in (('recipe', [SCTLossHook(recipe='any-size')]),
                         ('resumed', long())):
        with pytest.raises(KeyboardInterrupt):
            runs(tmp_path, name, 4, SCTLossHook(recipe='any-size'), Dies())
        with mock.patch('sct_mm.engine.hooks.sct_loss_hook.print_log') as log:
            found = runs(tmp_path, name, 4, *second, resume=True)
        assert not log.called
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key


@pytest.mark.parametrize('options, error, match', [
    (dict(recipe='any size'), ValueError,
     "`recipe` must be one of any-size, paper, but got 'any size'"),
    (dict(recipe=['paper']), ValueError, r"but got \['paper'\]"),
    (dict(recipe='any-size', adapt=True), ValueError,
     "but got recipe='any-size' and adapt=True. Leave one of them out"),
    (dict(recipe='paper', adapt='labels'), ValueError, "adapt='labels'"),
    (dict(recipe='any-size', norm_eval=True), ValueError, '`norm_eval`'),
    (dict(recipe='any-size', backward='per_scale'), ValueError,
     "`backward` must be 'joint' to share .* shared_affine=False"),
    (dict(recipe='any-size', backward='twice'), ValueError, '`backward`'),
    (dict(recipe='any-size', distill=True), ValueError, 'scales_per_step=1'),
    (dict(recipe='any-size', scales_per_step=2), ValueError,
     'progressive=0'),
    (dict(shared_affine=True, adapt=True), ValueError,
     '`shared_affine` moves .* but got adapt=True'),
    (dict(shared_affine=1), TypeError, '`shared_affine` must be True or')])
def test_contradictions_are_one_sentence(options, error, match):
    with pytest.raises(error, match=match):
        SCTLossHook(**options)


def test_what_a_model_contradicts():
    one = TinyModel(lambda c: SSBN(c, (16, )))
    with pytest.raises(ValueError, match=r'two scales or more, but got \(16,'):
        SCTLossHook(recipe='any-size').attach(one, steps=9)
    model = with_trained_base(ssbn_model())
    with pytest.raises(ValueError, match='`progressive` is a share'):
        SCTLossHook(recipe='any-size').attach(model)
    hook = SharedAffineHook()
    hook.before_train(SimpleNamespace(model=model))
    with pytest.raises(RuntimeError, match='shares gamma and beta already'):
        SCTLossHook(recipe='any-size').attach(model, steps=9)
    hook.after_train(None)
    apart(ssbn_layers(model)[0])
    with pytest.raises(ValueError, match='alike .* shared_affine=False'):
        SCTLossHook(recipe='any-size').attach(model, steps=9)
    assert not model._forward_hooks
    assert not any(each._backward_hooks for each in model.parameters())
