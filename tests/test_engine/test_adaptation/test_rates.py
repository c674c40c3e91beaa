"""The learning rate that short trials choose."""
import math

import pytest

from sct_mm.engine.adaptation.rates import (
    best_rate,
    scale_of_trials,
    trial_steps,
)


@pytest.mark.parametrize('name, values, share, rate', [
    # The first ones are of real trials, docs/results.md.
    ('agreement/weighed', (79.9, 86.0, None, 87.4), 48 / 305, 0.1),
    ('agreement/weighed', (54.1, 57.8, None, 54.4), 48 / 360, 0.1),
    ('agreement/weighed', (64.4, 58.5, 1.3), 64 / 563, 0.003),
    ('agreement/weighed', (80.2, 86.2, 89.4, 87.8), 48 / 58, 0.05),
    ('agreement/weighed', (81.0, 81.0, 75.5), 0.0, 0.05),
    ('agreement/weighed', (81.0, 79.0, 75.0), 0.5, 0.01),
    ('agreement/weighed', (81.0, 80.9, 75.0), 1.0, 0.003),
    ('agreement/weighed', (81.0, 81.0, 75.0), 1.0, 0.01),
    ('agreement/weighed', (50.0, 45.0, None), 0.1, 0.003),
    ('agreement/weighed', (None, None, None), 0.1, 0.003),
    ('agreement/weighed', (None, math.nan, math.nan), 0.1, 0.003),
    ('loss', (1.9, 2.1, 2.1), 0.1, 0.003),
    ('loss', (2.1, 1.98, 2.0), 0.1, 0.05),
    ('bbox_mAP', (0.2, 0.31, 0.25), 0.1, 0.01)])
def test_the_best_rate_or_a_larger_one_that_is_near(name, values, share,
                                                    rate):
    trials = {of: {} if value is None else {name: value} for of, value in zip(
        (0.003, 0.01, 0.05, 0.1), values, strict=False)}
    assert best_rate(trials, share) == rate


def test_how_long_a_rate_is_tried_and_at_which_scale():
    assert [trial_steps(n, 3, (28, 14), 128) for n in (
        0, 15, 16, 480, 1500, 10**6)] == [0, 0, 16, 48, 50, 64]
    # A step of all scales costs as much as 2.5 of 160 alone.
    scales = (224, 192, 160, 128, 96)
    assert [trial_steps(600, 3, scales, batch)
            for batch in (64, 16, 10, 8, 1)] == [49, 49, 52, 64, 64]
    assert scale_of_trials(scales) == 160
    assert [scale_of_trials(tuple(range(n, 0, -1))) for n in (2, 3, 4)] == [
        1, 2, 2]
