"""What adapt() decides by images that are held out."""
import json
import os
import os.path as osp

import pytest
import torch
from adaptations import (
    CONFIG,
    FEW,
    SCALES,
    adapt_stock,
    answers,
    folder_of,
    module,
    rows_of,
    tensors,
)

from sct_mm.apis import adapt
from sct_mm.engine.adaptation import keeping, rates
from sct_mm.engine.adaptation.rates import try_rate
from sct_mm.evaluation.adapted_report import MIXED, NOTHING, print_adapted
from sct_mm.models.size_selection import ssbn_layers
from sct_mm.models.weight_change import changed_layers
from sct_mm.utils.config import load_config
from sct_mm.utils.errors import UserError

pytestmark = [
    pytest.mark.usefixtures('all_gain'),
    # The networks are not trained.
    pytest.mark.filterwarnings('ignore:The network is sure')]


def test_a_wrong_learning_rate_decides_for_what_was_there(stock):
    """Each size answers as before or better, whatever was trained."""
    done = adapt_stock(stock, lr=3.0, scales=(28, 14))
    row, = done['rows']
    assert row['keeps'] != 'trained' and row['size'] == 14
    untouched, statistics, trained = row['found'].values()
    assert list(row['found']) == ['nothing', 'statistics', 'trained']
    assert row['before'] == untouched and row['after'] == row['found'][
        row['keeps']]
    torch.manual_seed(0)
    x = torch.randn(4, 1, 14, 14)
    assert torch.equal(answers(done), stock[1](x)) == (
        row['keeps'] == 'nothing')
    written = tensors(done['checkpoint'])
    assert not any(value.any() for name, value in written.items()
                   if name.endswith(('change_out', 'change_whole')))
    with open(osp.join(stock[2], 'adapted.json')) as file:
        assert json.load(file)['rows'][0]['keeps'] == row['keeps']


def test_a_learning_rate_that_diverges(stock):
    with pytest.raises(UserError, match='learning rate of 1e.08, and '
                       'nothing is kept: The loss of'):
        adapt_stock(stock, lr=1e8, scales=(28, 14))
    assert not osp.exists(osp.join(stock[2], 'adapted.pth'))


def test_it_decides_which_statistics_to_keep(stock, monkeypatch):
    for estimated in (True, False):
        monkeypatch.setattr(
            keeping, 'score', lambda metrics, better=estimated: (
                metrics['kl'] if better else -metrics['kl']))
        monkeypatch.setattr(keeping, 'best', lambda found: 'trained')
        done = adapt_stock(stock, scales=(28, 14), force=True)
        found = done['rows'][0]['found']
        assert found['nothing']['kl'] != found['statistics']['kl']
        better = estimated == (
            found['statistics']['kl'] > found['nothing']['kl'])
        hook = load_config(done['config']).custom_hooks[-1]
        assert hook.norm_eval != better
        for name, (value, rows) in rows_of(
                tensors(stock[0]), tensors(done['checkpoint']), 2).items():
            same = torch.equal(rows[1], value)
            assert same == ('running' in name and not better), name


def test_it_decides_for_nothing_where_nothing_gains(stock, monkeypatch):
    monkeypatch.setattr(keeping, 'best', lambda found: 'nothing')
    done = adapt_stock(stock, sizes=[18])
    for size in (21, 18, 14):
        torch.manual_seed(0)
        x = torch.randn(4, 1, size, size)
        assert torch.equal(answers(done, size), stock[1](x))
    assert [row['keeps'] for row in done['rows']] == ['nothing'] * 3
    assert done['scales'] == (28, 21, 18, 14)


def test_images_of_one_class_tell_nothing(stock, tmp_path):
    """As noise does, to a network that was trained."""
    folder = folder_of(tmp_path / 'images', 1)
    for index in range(1, 66):
        os.link(osp.join(folder, '0.png'), osp.join(folder, f'{index}.png'))
    with pytest.raises(UserError, match='must get different answers .*class '):
        adapt(CONFIG, stock[0], (28, 14), 1, stock[2], folder,
              cfg_options={'train_dataloader.batch_size': 16})
    assert not os.listdir(stock[2])


def test_the_best_trial_decides_the_learning_rate(stock, monkeypatch, capsys):
    monkeypatch.setattr(rates, 'trial_steps', lambda *args: 2)
    monkeypatch.setattr(rates, 'RATES', (0.01, 1e30))
    done = adapt_stock(stock, scales=(28, 14))
    assert load_config(done['config']).optim_wrapper.optimizer.lr == 0.01
    assert done['lr'] == 0.01 and done['trials']['steps'] == 2
    print_adapted(done)
    assert 'rate 0.01 was chosen by trials of 2' in capsys.readouterr().out
    assert done['trials']['scores'][1e30] is None
    resumed = adapt_stock(stock, scales=(28, 14), resume=True)
    assert resumed['trials'] == done['trials']


def test_a_trial_trains_one_size_alone(stock, monkeypatch):
    def changed(model, tried):
        """For each scale, whether normalization, and weights, differ."""
        for scale, index in zip(SCALES, (None, 0, 1), strict=True):
            norm = any(
                not torch.equal(value, tried_layer.row(scale)[name])
                for layer, tried_layer in zip(
                    ssbn_layers(model), ssbn_layers(tried), strict=True)
                for name, value in layer.row(scale).items())
            yield norm, index is not None and any(
                bool(layer.changes[0][index].any())
                for layer in changed_layers(tried))

    def try_and_compare(model, *args):
        tried = try_rate(model, *args)
        found.append(list(changed(model, tried)))
        return tried

    found: list = []
    monkeypatch.setattr(rates, 'trial_steps', lambda *args: 2)
    monkeypatch.setattr(rates, 'try_rate', try_and_compare)
    monkeypatch.setattr(rates, 'best_rate', lambda found, share: max(found))
    adapt_stock(stock, between=0.5)
    assert found == 4 * [[(False, False), (True, True), (False, False)]]


def test_a_training_too_short_for_trials_says_so(stock, capsys):
    done = adapt_stock(stock, scales=(28, 14))
    assert done['trials'] == dict(steps=0, scores={}) and done['steps'] == 4
    print_adapted(done)
    assert 'too few to try learning rates: it had 0.003' in (
        capsys.readouterr().out)
    done = adapt_stock(stock, scales=(28, 14), lr=0.02, force=True)
    assert done['trials'] == {} and done['lr'] == 0.02
    capsys.readouterr()  # the log of the training
    print_adapted(done)
    assert 'learning rate' not in capsys.readouterr().out


@pytest.mark.parametrize('near, tried', [(max, 4), (min, 2)])
def test_a_short_training_tries_rates_until_one_is_far_behind(
        stock, monkeypatch, near, tried):
    def best_rate(found, share):
        assert share == 1  # a trial has as many steps as the training
        return near(found)

    monkeypatch.setattr(rates, 'best_rate', best_rate)
    done = adapt(CONFIG, stock[0], (28, 14), 1, stock[2], cfg_options={
        **FEW, 'train_dataloader.batch_size': 2})
    assert done['steps'] == 32 and done['trials']['steps'] == 32
    assert list(done['trials']['scores']) == [0.003, 0.01, 0.05, 0.1][:tried]
    assert done['lr'] == near(done['trials']['scores'])
    rise, = [each for each in load_config(done['config']).param_scheduler
             if each['type'] == 'LinearLR']
    assert rise['end'] == 9  # of 32 steps


def test_the_mix_between_two_sizes_is_measured(stock):
    between = adapt_stock(stock, epochs=0)['between']
    done = adapt_stock(stock, epochs=0, sizes=[25, 18], force=True)
    found = {row['size']: row['found'] for row in done['rows']}
    assert [row['size'] for row in between] == [25, 18]
    for row in between:
        of_size = found[row['size']]
        for when, name in (('before', NOTHING), ('after', MIXED)):
            assert row[when] == pytest.approx(of_size[name], nan_ok=True)


def test_a_size_that_nobody_named_may_fail(stock, monkeypatch):
    measure = module.HeldOutImages.measure

    def failing(self, model, cases, *args):
        cases = list(cases)
        if any(case.size == 25 for case in cases):
            raise RuntimeError('25 px are not divisible by 2')
        return measure(self, model, cases, *args)

    monkeypatch.setattr(module.HeldOutImages, 'measure', failing)
    done = adapt_stock(stock, epochs=0)
    assert [row['size'] for row in done['between']] == [18]
    assert osp.exists(done['checkpoint'])
