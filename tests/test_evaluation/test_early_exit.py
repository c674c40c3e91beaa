"""Exits over sizes: against loops over images, and pairs of them."""
import itertools

import pytest
import torch

from sct_mm.evaluation.early_exit import (
    auroc,
    cheapest,
    curve_of,
    decided_at,
    mean_gflops,
    shares_of,
)

GFLOPS = (1.0, 2.5, 4.0)


def images(sizes=3, count=60, ties=True):
    """Confidences with ties, of 1 and of 0 among them, and right or wrong."""
    found = torch.rand(sizes, count)
    if ties:
        found = (found * 8).round() / 8
    return found, torch.rand(sizes, count) < 0.4 + 0.5 * found


def by_hand(confidences, right, thresholds):
    """The sizes that decide, accuracy in % and GFLOPs, image by image."""
    decided, hits, cost = [], 0, 0.0
    for i in range(confidences.shape[1]):
        size = 0
        cost += GFLOPS[0]
        while (size < len(confidences) - 1
               and not confidences[size, i] > thresholds[size]):
            size += 1
            cost += GFLOPS[size]
        decided.append(size)
        hits += bool(right[size, i])
    return decided, 100 * hits / len(decided), cost / len(decided)


@pytest.mark.parametrize('sizes', [2, 3])
@pytest.mark.parametrize('ties', [True, False])
def test_decided_and_curve_are_those_of_a_loop(sizes, ties):
    confidences, right = images(sizes, ties=ties)
    curve = curve_of(confidences, right, GFLOPS[:sizes])
    assert curve.thresholds[0] == 0 and (curve.thresholds.diff() > 0).all()
    for threshold in (*curve.thresholds.tolist(), 0.3, 1.0):
        thresholds = [threshold] * (sizes - 1)
        want, accuracy, cost = by_hand(confidences, right, thresholds)
        decided = decided_at(confidences, thresholds)
        assert decided.tolist() == want
        shares = shares_of(decided, sizes)
        assert mean_gflops(shares, GFLOPS[:sizes]) == pytest.approx(cost)
        place = int((curve.thresholds <= threshold).sum()) - 1
        assert curve.accuracy[place] == pytest.approx(accuracy)
        assert curve.gflops[place] == pytest.approx(cost)
        final = right[-1].float() - right.gather(0, decided[None])[0].float()
        assert curve.error[place] == pytest.approx(
            100 * float(final.square().sum()) ** 0.5 / len(want), abs=1e-6)


def test_the_ends_are_the_smallest_and_the_largest_size():
    confidences, right = images(ties=False)
    confidences[0, 0] = 1.0
    assert decided_at(confidences, (0.0, 0.0)).unique().tolist() == [0]
    assert decided_at(confidences, (1.0, 1.0)).unique().tolist() == [2]


def test_what_is_not_a_number_goes_up():
    confidences, right = images()
    confidences[:2, 5] = float('nan')
    assert decided_at(confidences, (0.0, 0.0))[5] == 2
    confidences[1, 7] = float('nan')
    curve = curve_of(confidences, right, GFLOPS)
    for threshold, *found in zip(*curve[:3], strict=True):
        _, *want = by_hand(confidences, right, [threshold] * 2)
        assert found == pytest.approx(want)


def test_a_threshold_for_each_size():
    confidences, right = images()
    want, _, _ = by_hand(confidences, right, (0.9, 0.2))
    assert decided_at(confidences, (0.9, 0.2)).tolist() == want


@pytest.mark.parametrize('ties', [True, False])
def test_auroc_counts_pairs(ties):
    confidences, right = images(ties=ties)
    for confidence, hit in zip(confidences, right, strict=True):
        pairs = [(0.5 if a == b else float(a > b)) for a, b in
                 itertools.product(confidence[hit], confidence[~hit])]
        assert auroc(confidence, hit) == pytest.approx(
            sum(pairs) / len(pairs))


def test_auroc_of_images_that_are_all_right_is_none():
    assert auroc(torch.rand(4), torch.ones(4, dtype=torch.bool)) != (
        auroc(torch.rand(4), torch.ones(4, dtype=torch.bool)))
    assert auroc(torch.tensor([0.1, 0.9]), torch.tensor([False, True])) == 1


def test_the_cheapest_threshold_is_the_first_that_is_surely_good():
    confidences, right = images(2, 400, ties=False)
    right[1] = torch.rand(400) < 0.95
    curve = curve_of(confidences, right, GFLOPS[:2])
    base = 100 * right[1].double().mean()
    for target in (0.0, 1.0, 5.0, 100.0):
        place = cheapest(curve, base, target)
        good = [a - e >= base - target - 1e-9
                for a, e in zip(curve.accuracy, curve.error, strict=True)]
        assert good[place] and not any(good[:place])
        assert curve.gflops[place] == min(
            g for g, ok in zip(curve.gflops, good, strict=True) if ok)
    assert cheapest(curve, base, 100.0) == 0
