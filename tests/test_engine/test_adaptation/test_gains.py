"""When one measurement is better than another."""
import math

import pytest
import torch

from sct_mm.engine.adaptation.gains import (
    Measured,
    best,
    is_gain,
    is_worse,
    measured,
    score,
    with_weighed,
)
from sct_mm.utils.errors import UserError


def test_the_best_and_the_first_of_equals():
    def of(every, sure, kl, count=50):
        return with_weighed({'agreement/all': every, 'agreement/sure': sure,
                             'kl': kl, 'sure_images': count}, 100)

    # Of 100 images 50 get the same answer, of 50 sure ones 35.
    assert score(of(50., 70., 1.)) == pytest.approx(100 * 85 / 150)
    assert score(of(50., math.nan, 1., 0)) == 50
    assert score({'a/agreement/weighed': 10, 'b/agreement/weighed': 20,
                  'b/agreement/all': 90}) == 15
    assert score(dict(bbox_mAP=0.3, bbox_mAP_50=0.9)) == 0.3
    assert score(dict(loss=2.0)) == -2
    assert score(dict(loss=math.nan)) == score({}) == -math.inf
    for a, b, which in ((of(50., 70., 1.), of(55., 60., 2.), 'a'),
                        (of(50., 70., 1.), of(55., 61., 2.), 'b'),
                        (dict(loss=1.0), dict(loss=0.5), 'b'),
                        (dict(loss=math.nan), dict(loss=0.5), 'b'),
                        (dict(loss=0.5), dict(loss=math.nan), 'a')):
        assert best(dict(a=Measured(a), b=Measured(b))) == which


def of_losses(values):
    return measured(values.tolist(), lambda part: dict(
        loss=sum(part) / len(part)))


@pytest.mark.parametrize('share, gains', [(1.01, True), (0.99, False)])
def test_a_gain_is_more_than_half_its_standard_error(share, gains):
    """For a mean the jackknife gives what the means of the tenths give."""
    before, noise = torch.rand(2, 50, dtype=torch.float64)
    noise -= noise.mean()
    error = noise.view(5, 10).mean(0).std() / 10 ** 0.5
    after = before - noise - share * error / 2
    names = dict(nothing=of_losses(before), trained=of_losses(after))
    assert is_gain(names['trained'], names['nothing']) == gains
    assert best(names) == ('trained' if gains else 'nothing')
    assert not is_gain(names['nothing'], names['trained'])


def test_parts_that_tell_nothing():
    """They have no object, or answers that are not numbers."""
    def of(items):
        if not any(items):
            raise UserError('no objects')
        return dict(bbox_mAP=sum(items) / len(items))

    few, more = measured([0, 3, 0, 3], of), measured([0, 4, 0, 4.5], of)
    assert few.others == (2, 1, 2, 1)
    assert is_gain(more, few) and not is_gain(few, more)
    assert not is_gain(measured([0, 2, 0, 4.5], of), few)
    none, some = measured([0, 0, 3], of), measured([0, 0, 4], of)
    assert none.others == (1.5, 1.5, -math.inf)
    assert is_gain(some, none) and not is_gain(none, some)
    wrong = of_losses(torch.tensor([1., math.nan, 1.]))
    right = of_losses(torch.tensor([2., 1., 3.]))
    assert is_gain(right, wrong) and not is_gain(wrong, right)
    one, two = (of_losses(torch.tensor([loss])) for loss in (1., 2.))
    assert is_gain(one, two) and not is_gain(two, one)


def test_a_score_of_few_images_is_weighed_by_all():
    """Its standard error is that of what each image adds to the ratio, though
    most tenths hold two such images or one."""
    sure = torch.zeros(400, dtype=torch.bool)
    sure[[*range(0, 100, 10), *range(1, 300, 19)]] = True
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(400, generator=generator) < 0.5
    after = before | (torch.rand(400, generator=generator) < 0.3)

    def of(right):
        return measured(list(zip(sure.tolist(), right.tolist(), strict=True)),
                        lambda items: {'agreement/weighed': 100 * sum(
                            right for sure, right in items if sure) / sum(
                                sure for sure, _ in items)})

    change = 100 * (after.double() - before.double())[sure]
    error = change.std() / len(change) ** 0.5
    gains = torch.tensor(of(after).others) - torch.tensor(of(before).others)
    found = (0.9 * (gains - gains.mean()).square().sum()).sqrt()
    assert found == pytest.approx(error.item(), rel=0.3)  # of ten parts
    assert change.mean() > found / 2 and is_gain(of(after), of(before))


@pytest.mark.parametrize('name, before, after, worse', [
    ('agreement/weighed', 80., 78.5, False),
    ('agreement/weighed', 80., 78., True),
    ('loss', 2., 2.03, False), ('loss', 2., 2.05, True),
    ('loss', 2., 1., False), ('coco/bbox_mAP', 0.5, 0.4, True)])
def test_worse_by_more_than_chance(name, before, after, worse):
    assert is_worse({name: after}, {name: before}) == worse
