"""What `tools/adapt.py` prints at its end: the table, and what to doubt."""
import math
import subprocess
from pathlib import Path

import pytest

from sct_mm.evaluation.adapted_report import (
    FEWEST_STEPS,
    MIXED,
    NOTHING,
    STATISTICS,
    TRAINED,
    doubt,
    print_adapted,
    uncertainty,
)

ROOT = Path(__file__).parents[2]
SINGLE = ('agreement/all', 'agreement/sure', 'kl')


def row(size, keeps, names=SINGLE, **found):
    found = {name: {metric: value + index
                    for index, metric in enumerate(names)}
             for name, value in found.items()}
    return dict(size=size, scale=size, keeps=keeps, found=found,
                before=found[NOTHING], after=found[keeps])


def result(*rows, **options):
    return dict(dict(rows=list(rows), scales=(224, *(r['size']
                                                     for r in rows)),
                     held_out=1000, lr=0.01, trials={}, steps=900,
                     between=[]), **options)


def printed(capsys, *args, **options):
    print_adapted(result(*args, **options))
    return capsys.readouterr().out


ROWS = (row(192, NOTHING, nothing=95.25, statistics=20., trained=90.),
        row(160, TRAINED, nothing=40., statistics=50., trained=70.),
        row(144, MIXED, nothing=40., statistics=50.,
            **{MIXED: 71.5}),
        row(128, STATISTICS, nothing=40., statistics=50., trained=30.))


def test_one_line_a_size_and_what_the_columns_are(capsys):
    out = printed(capsys, *ROWS)
    lines = [[cell.strip() for cell in line.split('│')[1:-1]]
             for line in out.splitlines() if line.startswith('│')]
    assert lines == [
        ['192', '95.25', '95.25', '96.25', '96.25', '97.25', '97.25',
         'nothing'],
        ['160', '40.00', '70.00', '41.00', '71.00', '42.00', '72.00',
         'trained'],
        ['144', '40.00', '71.50', '41.00', '72.50', '42.00', '73.50', 'mix'],
        ['128', '40.00', '50.00', '41.00', '51.00', '42.00', '52.00',
         'statistics']]
    below, = [line for line in out.splitlines() if line.startswith('all:')]
    for text in ('the same answer as at 224 px', 'confidence above 0.5',
                 'in nats', 'keeps: what is written: nothing (it answers as',
                 'mix (of its neighbours), statistics (re-estimated'):
        assert text in below
    assert 'Warning' not in out and 'No size keeps' not in out


@pytest.mark.parametrize('names', [
    SINGLE, ('bbox_mAP', 'bbox_mAP_50'), ('agreement', 'mIoU'), ('loss', ),
    tuple(f'{task}/{name}' for task in ('first_task', 'second_task')
          for name in SINGLE)])
def test_it_has_at_most_a_hundred_columns(capsys, names):
    rows = [row(size, MIXED, names, nothing=40., **{MIXED: 70.})
            for size in (192, 160)]
    out = printed(capsys, *rows, held_out=100000)
    assert all(len(line) <= 100 for line in out.splitlines()
               if any(box in line for box in '│┃━─'))
    assert out.count('│') >= 2 * 5  # size, before, after, keeps
    assert 'Compared with the base, 224 pixels' in out


def test_make_shows_it(capsys):
    """`make demo` shows a part of the log: the table, its explanation, and
    what to doubt are among it."""
    (text, ) = [
        part.rpartition('BRIEFLY := | ')[2] for part in
        (ROOT / 'Makefile').read_text().split('\nNAMED')[:1]]
    out = printed(capsys, row(128, NOTHING, nothing=3., trained=1.),
                  held_out=32, steps=3, trials=dict(steps=0))
    shown = subprocess.run(text.replace('\\\n', ''), shell=True, text=True,
                           input=f'a line of the log\n{out}', check=True,
                           capture_output=True).stdout
    assert shown.splitlines() == [line.strip('\n') for line in
                                  out.splitlines()]


def test_a_learning_rate_that_serves_no_size(capsys):
    rows = [row(size, NOTHING, nothing=3., statistics=2., trained=1.)
            for size in (192, 128)]
    assert ('No size keeps what was trained: with the learning rate 10 it '
            'serves none better than what was there. Give a smaller --lr'
            ) in printed(capsys, *rows, lr=10.0)
    untrained = [row(size, NOTHING, nothing=3., statistics=2.)
                 for size in (192, 128)]
    assert 'No size' not in printed(capsys, *untrained, steps=0)


def test_a_mix_that_is_worse(capsys):
    between = [dict(size=size, worse=after < 80,
                    before={'agreement/all': 80.},
                    after={'agreement/all': after})
               for size, after in ((208, 70.25), (176, 90.), (144, 60.))]
    out = printed(capsys, *ROWS, between=between)
    assert ('worse than the network as it was at 208 px (all 70.25 for '
            '80.00), 144 px (all 60.00 for 80.00). Test') in out
    assert 'mix, which' not in printed(capsys, *ROWS, between=between[1:2])


def test_trials(capsys):
    assert 'rate 0.01 was chosen by trials of 16 steps' in printed(
        capsys, *ROWS, trials=dict(steps=16, scores={}))
    assert 'earning rate' not in printed(capsys, *ROWS)


def test_few_images_and_few_steps_are_one_warning(capsys):
    out = printed(capsys, *ROWS, held_out=32, steps=3, lr=0.003,
                  trials=dict(steps=0, scores={}))
    line, = [line for line in out.splitlines() if 'Warning' in line]
    for text in ('32 held-out images', 'by 18 points', '3 steps of training',
                 'too few to try learning rates: it had 0.003',
                 'Give more images'):
        assert text in line
    assert doubt(1000, None, None) is doubt(1000, FEWEST_STEPS, None) is None
    assert 'learning rate' not in doubt(1000, 3, None)
    assert 'steps' not in doubt(32, None, None)
    assert doubt(400, 900, None) is None and doubt(399, 900, None)


def test_the_uncertainty_is_that_of_a_share():
    """Two standard deviations of a binomial share, where it is largest."""
    for images in (32, 400):
        shares = [count / images for count in range(images + 1)]
        weights = [math.comb(images, count) / 2 ** images
                   for count in range(images + 1)]
        deviation = math.sqrt(sum(weight * (share - 0.5) ** 2 for share, weight
                                  in zip(shares, weights, strict=True)))
        assert uncertainty(images) == pytest.approx(200 * deviation)
