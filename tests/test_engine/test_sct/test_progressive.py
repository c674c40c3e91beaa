"""Small images first: who trains when, for how much of the compute."""
from collections import Counter

import pytest
from conftest import SCALES
from helpers import ssbn_model, train
from mmengine.hooks import Hook

from sct_mm import SCTLossHook
from sct_mm.engine.sct.recipe import at_scales, recipe_of
from sct_mm.engine.sct.schedule import (
    Schedule,
    make_schedule,
    smallest_first,
)

WEIGHTS = {28: 0.5, 14: 0.3, 7: 0.2}


def test_weights_by_hand():
    assert smallest_first(WEIGHTS) == pytest.approx({
        28: 1 / 273, 14: 16 / 273, 7: 256 / 273})
    assert smallest_first({16: 2., 8: 3., 4: 0.}) == pytest.approx({
        16: 5 / 17, 8: 80 / 17, 4: 0})
    assert smallest_first({16: 1.}) == {16: 1.}


@pytest.mark.parametrize('options', [
    dict(count=1), dict(count=3, partition=True),
    dict(count=1, between=0.5)])
def test_images_of_each_scale_before_and_after(options):
    steps, images = 4000, 600
    schedule = Schedule(WEIGHTS, progressive=0.25, steps=steps, **options)
    seen = {True: Counter(), False: Counter()}
    for step in range(steps):
        passes = schedule.passes(images, step)
        assert sum(p.weight for p in passes) == pytest.approx(1)
        for p in passes:
            share = p.share or slice(0, images)
            seen[step < 1000][p.scale] += (share.stop - share.start) / images
    for first, want, count in ((True, smallest_first(WEIGHTS), 1000),
                               (False, WEIGHTS, 3000)):
        found = {scale: n / count for scale, n in seen[first].items()}
        assert found == pytest.approx(want, abs=0.02)


@pytest.mark.parametrize('scales, recipe, want', [
    ((224, 192, 160, 128), 'any-size', 100 / 171),  # ResNet-50's config
    ((800, 736, 672, 608, 544, 480), 'detector', 12 / 20),  # RetinaNet's
    ((16, 8), 'paper', 1.25), ((16, ), 'paper', 1.0)])
def test_the_cost_by_which_the_configs_set_their_epochs(scales, recipe, want):
    name = recipe.replace('detector', 'any-size')
    options = at_scales(name, scales, recipe == 'detector')
    options['divisor'] = options.pop('size_divisor')
    schedule = make_schedule(
        scales, scales_per_step=recipe_of(name).scales_per_step, steps=7,
        progressive=recipe_of(name).progressive, **options)
    assert schedule.relative_cost() == pytest.approx(want, rel=0.012)


def test_the_cost_of_a_batch_that_is_divided():
    schedule = Schedule({16: 0.5, 8: 0.5}, 2, partition=True)
    assert schedule.relative_cost() == pytest.approx(0.5 * (1 + 0.25))


def test_the_cost_is_logged_before_the_first_step(tmp_path):
    train(tmp_path / 'run', 1, hooks=[SCTLossHook()], log_level='INFO')
    cost = sum((scale / SCALES[0])**2 for scale in SCALES)
    before, *_ = next(tmp_path.rglob('*.log')).read_text().split(
        'Epoch(train)')
    assert (f'costs {cost:.3f} of one at {SCALES[0]} px, on average over the '
            f'training: {100 / cost:.0f} epochs cost') in before


def test_a_share_too_small_at_first_is_refused():
    schedule = Schedule(WEIGHTS, 3, partition=True, progressive=0.5, steps=10)
    Schedule(WEIGHTS, 3, partition=True).check_batch(128)
    with pytest.raises(ValueError, match='gives scale 28 a share of 0.00 of '
                       'the 128 images'):
        schedule.check_batch(128)


class Drawn(Hook):
    """The weights of each step of a run."""

    def __init__(self):
        self.sums = []

    def after_train_iter(self, runner, *args, **kwargs):
        hook = next(h for h in runner.hooks if isinstance(h, SCTLossHook))
        self.sums.append(hook.sct.schedule.weights_at(runner.iter))


def test_the_runner_says_how_long_the_training_is(tmp_path):
    drawn = Drawn()
    train(tmp_path, 2, hooks=[drawn, SCTLossHook(
        scales_per_step=1, progressive=0.5)])
    equal = dict.fromkeys(SCALES, 1 / 3)
    assert drawn.sums == [smallest_first(equal)] * 2 + [equal] * 2


def test_without_a_length_it_is_refused():
    hook = SCTLossHook(scales_per_step=1, progressive=0.5)
    with pytest.raises(ValueError, match='Give it `steps`'):
        hook.attach(ssbn_model())
    hook.attach(ssbn_model(), steps=4)
