"""Fidelity: against loops in numpy, torch.distributions and by hand."""
import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from torch.distributions import Bernoulli, Categorical, kl_divergence

from sct_mm.evaluation.fidelity import (
    Boxes,
    answers_each_class,
    compare_boxes,
    compare_maps,
    compare_scores,
    score_differences,
)
from sct_mm.utils.errors import UserError


def drawn(count=200, classes=7, sharpness=3.0):
    return (torch.randn(count, classes) * sharpness).softmax(1)


def by_hand(reference, scores, sure):
    """(agreement, agreement of the sure, how many are sure) by a loop."""
    same, among = [], []
    for p, q in zip(np.asarray(reference), np.asarray(scores), strict=True):
        same.append(list(p).index(max(p)) == list(q).index(max(q)))
        if max(p) > sure:
            among.append(same[-1])
    return 100 * np.mean(same), 100 * np.mean(among), len(among)


@pytest.mark.parametrize('sure', [0.3, 0.5, 0.9])
@pytest.mark.parametrize('form', [torch.as_tensor, np.asarray])
def test_scores_against_a_loop_and_torchs_divergence(sure, form):
    reference, scores = drawn(), drawn()
    scores[:120] = (scores[:120] + 2 * reference[:120]) / 3
    before = reference.clone(), scores.clone()
    found = compare_scores(form(reference), form(scores), sure)
    assert by_hand(reference, scores, sure) == pytest.approx((
        found['agreement'], found['sure_agreement'], found['sure_images']))
    assert 0 < found['sure_images'] < 200
    want = kl_divergence(Categorical(reference.double()),
                         Categorical(scores.double())).mean()
    assert found['kl'] == pytest.approx(float(want), rel=1e-5)
    assert torch.equal(reference, before[0]) and torch.equal(scores,
                                                             before[1])


def test_classes_answered_alone_against_torchs_divergence():
    reference, scores = torch.rand(50, 4), torch.rand(50, 4)
    reference[0], scores[0] = 0.1, torch.tensor([0.1, 0.1, 0.1, 0.9])
    scores[1] = reference[1]
    assert answers_each_class(reference) and not answers_each_class(drawn())
    found = compare_scores(reference, scores, 0.8)
    want = kl_divergence(Bernoulli(reference.double()),
                         Bernoulli(scores.double())).sum(1).mean()
    assert found['kl'] == pytest.approx(float(want), rel=1e-5)
    same = [set(np.flatnonzero(p > 0.5)) == set(np.flatnonzero(q > 0.5))
            for p, q in zip(reference.numpy(), scores.numpy(), strict=True)]
    assert not same[0] and same[1]
    assert found['agreement'] == pytest.approx(100 * np.mean(same))
    assert found['sure_images'] == int((reference.amax(1) > 0.8).sum())


def test_one_class_of_a_sigmoid():
    found = compare_scores([[0.9], [0.2], [0.6]], [[0.6], [0.7], [0.9]])
    assert found['agreement'] == pytest.approx(100 * 2 / 3)
    assert found['sure_images'] == 2 and found['sure_agreement'] == 100


@pytest.mark.parametrize('scores', [
    drawn(), torch.eye(3), torch.rand(9, 3),
    (torch.randn(9, 1000) * 60).softmax(1), torch.zeros(2, 3)])
def test_of_itself_it_differs_in_nothing(scores):
    found = compare_scores(scores, scores, -1.0)
    assert found == dict(agreement=100, sure_agreement=100,
                         sure_images=len(scores), kl=0)


@pytest.mark.parametrize('kind', [torch.float32, torch.float64,
                                  torch.float16])
def test_probabilities_of_zero_and_one_are_finite(kind):
    reference = torch.tensor([[1, 0, 0], [0, 0.5, 0.5]], dtype=kind)
    scores = torch.tensor([[0, 1, 0], [0, 1, 0]], dtype=kind)
    found = score_differences(reference, scores)
    most = -np.log(np.finfo(np.float32).tiny)
    assert found.kl.tolist() == pytest.approx(
        [most, 0.5 * np.log(0.5) + 0.5 * (np.log(0.5) + most)])
    alone = score_differences(torch.tensor([[1., 0.]]),
                              torch.tensor([[0., 0.]]), each_class=True)
    assert float(alone.kl) == pytest.approx(most)


def test_it_is_not_symmetric_and_never_negative():
    p, q = torch.tensor([[0.98, 0.02]]), torch.tensor([[0.5, 0.5]])
    forth = compare_scores(p, q)['kl']
    assert forth == pytest.approx(
        0.98 * np.log(0.98 / 0.5) + 0.02 * np.log(0.02 / 0.5), rel=1e-6)
    assert forth != pytest.approx(compare_scores(q, p)['kl'])
    near = drawn()
    found = score_differences(near, near * (1 + 1e-5 * torch.rand(200, 1)))
    assert (found.kl >= 0).all()


def test_nothing_sure_and_what_is_not_a_number():
    reference = torch.full((3, 4), 0.25)
    found = compare_scores(reference, reference)
    assert found['sure_images'] == 0
    assert np.isnan(found['sure_agreement']) and found['agreement'] == 100
    broken = drawn(4)
    broken[1] = float('nan')
    found = compare_scores(drawn(4), broken)
    assert np.isnan(found['kl']) and found['agreement'] <= 75
    assert compare_scores(broken, broken)['agreement'] == 75


@pytest.mark.parametrize('reference, scores, match', [
    (torch.rand(3), torch.rand(3), r'\(N, C\) of N images, .* shape \(3,\)'),
    (torch.zeros(0, 3), torch.zeros(0, 3), r'one at least, .*\(0, 3\)'),
    (drawn(4), drawn(5), r'classes of `reference`, \(4, 7\), but got \(5, 7'),
    (drawn(4), drawn(4, 8), r'\(4, 7\), but got \(4, 8\)'),
    (drawn(4), torch.randn(4, 7) * 9, '`scores` must be probabilities, from '
     '0 to 1, but are from -.* average_clips'),
    (drawn(4) * 3, drawn(4), '`reference` must be probabilities')])
def test_what_are_no_scores(reference, scores, match):
    with pytest.raises(UserError, match=match):
        compare_scores(reference, scores)


def boxes(*rows):
    """Boxes of (left, top, right, bottom, label, score)."""
    table = torch.tensor(rows).reshape(-1, 6)
    return Boxes(table[:, :4], table[:, 4].long(), table[:, 5])


SQUARE = (10., 10., 50., 50.)


def test_boxes_of_itself():
    reference = [boxes((*SQUARE, 2, 0.9), (60., 0., 90., 40., 0, 0.31),
                       (0., 0., 9., 9., 5, 0.29)), boxes()]
    found = compare_boxes(reference, reference)
    assert found == pytest.approx(dict(bbox_mAP=1, bbox_mAP_50=1,
                                       truth_boxes=2))
    assert compare_boxes(reference, reference, 0.9)['truth_boxes'] == 1


def test_boxes_that_move_by_a_known_overlap():
    """A square of 40 that moves by 5 has an IoU of 35 / 45 = 0.78, above 6 of
    the 10 thresholds; one class of two is not found."""
    moved = boxes((15., 10., 55., 50., 0, 0.2))
    truth = boxes((*SQUARE, 0, 0.9))
    found = compare_boxes([truth], [moved])
    assert found['bbox_mAP'] == pytest.approx(0.6)
    assert found['bbox_mAP_50'] == pytest.approx(1)
    both = boxes((*SQUARE, 0, 0.9), (*SQUARE, 3, 0.9))
    found = compare_boxes([both], [moved])
    assert found['bbox_mAP'] == pytest.approx(0.3)
    other = boxes((*SQUARE, 7, 0.9))  # a class that the truth has not
    assert compare_boxes([truth], [other])['bbox_mAP'] == 0


def test_nothing_found_is_zero_and_nothing_to_find_is_none(capsys):
    truth, nothing = boxes((*SQUARE, 0, 0.9)), boxes()
    assert compare_boxes([truth], [nothing])['bbox_mAP'] == 0
    found = compare_boxes([nothing], [truth])
    assert np.isnan(found['bbox_mAP']) and found['truth_boxes'] == 0
    compare_boxes([truth], [truth])
    assert not capsys.readouterr().out


def test_boxes_against_mmdet():
    """Some images have no object, some classes no box, one more boxes of a
    class than count, and many scores are equal."""
    generator = torch.Generator().manual_seed(0)

    def drawn(count, classes):
        corner = 60 * torch.rand(count, 2, generator=generator)
        side = 5 + 30 * torch.rand(count, 2, generator=generator)
        return torch.cat([corner, corner + side, torch.randint(
            classes, (count, 1), generator=generator), torch.randint(
                1, 11, (count, 1), generator=generator) / 10], 1)

    references, answers = [], []
    for count in (5, 0, 9, 30, 12):
        truth = drawn(count, 4)
        found = truth.clone()
        found[:, :4] += 1.5 * torch.randn(count, 4, generator=generator)
        found = torch.cat([found[::2], drawn(120 * (count == 30), 1),
                           drawn(6, 5)])
        references.append(boxes(*truth.tolist()))
        answers.append(boxes(*found.tolist()))
    metric = CocoMetric(metric_items=['mAP', 'mAP_50'])
    metric.dataset_meta = dict(classes=list('abcde'))
    for image, (reference, answer) in enumerate(zip(references, answers,
                                                    strict=True)):
        truth = reference.above(0.3)
        metric.process({}, [dict(
            img_id=image, ori_shape=(1, 1), pred_instances=answer._asdict(),
            instances=[dict(bbox=box, bbox_label=label) for box, label in zip(
                truth.bboxes.tolist(), truth.labels.tolist(),
                strict=True)])])
    want = metric.compute_metrics(metric.results)
    assert 0.1 < want['bbox_mAP'] < want['bbox_mAP_50'] < 0.9
    got = compare_boxes(references, answers)
    assert {name: round(got[name], 3) for name in want} == want


def test_maps_against_loops():
    rng = np.random.default_rng(0)
    references = [rng.integers(0, 3, (6, 5)), rng.integers(0, 5, (4, 8))]
    answers = [rng.integers(0, 3, (6, 5)), rng.integers(0, 4, (4, 8))]
    found = compare_maps(references, answers)
    pairs = [pair for r, a in zip(references, answers, strict=True)
             for pair in zip(r.ravel(), a.ravel(), strict=True)]
    assert found['agreement'] == pytest.approx(
        100 * np.mean([r == a for r, a in pairs]))
    ious = [sum(r == a == k for r, a in pairs)
            / sum(k in pair for pair in pairs) for k in range(5)]
    assert found['mIoU'] == pytest.approx(100 * np.mean(ious))
    assert compare_maps(references, references) == dict(agreement=100,
                                                        mIoU=100)


def test_maps_of_two_shapes():
    with pytest.raises(UserError, match=r'but got \(2, 2\) and \(2, 3\)'):
        compare_maps([np.zeros((2, 2), int)], [np.zeros((2, 3), int)])
