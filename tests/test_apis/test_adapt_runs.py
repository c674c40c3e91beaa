"""Runs of adapt() that end early, and what stands in their way."""
import errno
import os
import os.path as osp

import pytest
import torch
from adaptations import (
    CONFIG,
    FEW,
    SCALES,
    Killed,
    adapt_stock,
    folder_of,
    module,
    tensors,
)

from sct_mm.apis import adapt
from sct_mm.apis.train import train
from sct_mm.utils.errors import UserError

pytestmark = [
    pytest.mark.usefixtures('all_gain'),
    # The networks are not trained.
    pytest.mark.filterwarnings('ignore:The network is sure')]


def test_a_run_that_died_goes_on_to_the_bit(stock):
    whole = tensors(adapt_stock(stock, epochs=2, resume=True)['checkpoint'])
    for name in ('adapted.pth', 'epoch_2.pth'):
        os.remove(osp.join(stock[2], name))
    resumed = tensors(adapt_stock(stock, epochs=2, resume=True)['checkpoint'])
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_goes_on_with_its_images_alone(stock, tmp_path):
    """Else images that have trained would be held out."""
    folder = folder_of(tmp_path / 'images', 64)
    adapt(CONFIG, stock[0], (28, 14), 0, stock[2], folder)
    os.link(osp.join(folder, '0.png'), osp.join(folder, 'a.png'))
    with pytest.raises(UserError, match='must be the 64 of .* but are 65. G'):
        adapt(CONFIG, stock[0], (28, 14), 0, stock[2], folder, resume=True)
    os.remove(osp.join(folder, 'a.png'))
    adapt(CONFIG, stock[0], (28, 14), 0, stock[2], folder, resume=True)
    os.rename(osp.join(folder, '9.png'), osp.join(folder, '0a.png'))
    with pytest.raises(UserError, match='others are held out. Give the same'):
        adapt(CONFIG, stock[0], (28, 14), 0, stock[2], folder, resume=True)


def test_a_base_that_something_changed_is_not_written(stock, monkeypatch):
    def train_and_touch(*args):
        runner = train(*args)
        with torch.no_grad():
            runner.model.head.fc.bias[3] += 1e-6
        return runner

    monkeypatch.setattr(module, 'train', train_and_touch)
    with pytest.raises(RuntimeError, match='but head.fc.bias has changed'):
        adapt_stock(stock)
    assert not osp.exists(osp.join(stock[2], 'adapted.pth'))


def test_nothing_is_overwritten(stock):
    path = adapt_stock(stock, epochs=0)['checkpoint']
    with pytest.raises(UserError, match='exists. Give --force'):
        adapt_stock(stock, epochs=0)
    torch.save({}, path)
    adapt_stock(stock, epochs=0, force=True)
    assert 'backbone.bn1.weight' in tensors(path)


def test_it_goes_on_with_its_own_run_alone(stock):
    """mmengine takes the schedule of what it resumes, and rows by their
    rank, whatever the command line says."""
    adapt_stock(stock, epochs=0, sizes=['18'])
    weights = torch.load(stock[0], weights_only=True)
    weights['state_dict']['head.fc.bias'] += 1
    torch.save(weights, f'{stock[0]}.other')
    other = (f'{stock[0]}.other', ) + stock[1:]
    for run, scales, options, text in (
            (stock, (28, 24, 16), {},
             '`--scales and --sizes` must be 28 21 14, .* but got 28 24 16'),
            (stock, SCALES, dict(lr=0.01), '`--lr` must be .* but got 0.01'),
            (stock, SCALES, dict(epochs=1),
             '`--epochs` must be 0, .* but got 1. Give the same, or --force'),
            (stock, SCALES, dict(rank=4), '`--rank` must be 8, .* got 4'),
            (stock, SCALES, dict(between=0.5), '`--between` must be 0.0, .*'
             'got 0.5'),
            (stock, SCALES, dict(cfg_options={
                **FEW, 'model.head.topk': (1, )}), 'The setting `model` must'),
            (other, SCALES, {}, 'The checkpoint must be that of the run')):
        with pytest.raises(UserError, match=text):
            adapt(CONFIG, run[0], scales, out=run[2], resume=True, **{
                'epochs': 0, 'sizes': [18], 'cfg_options': FEW, **options})


def test_checkpoints_of_another_training_are_kept(stock):
    """As of the network itself, which may lie in the folder it came from."""
    os.makedirs(stock[2])
    path = osp.join(stock[2], 'epoch_1.pth')
    os.rename(stock[0], path)
    for options in ({}, dict(force=True), dict(resume=True)):
        with pytest.raises(UserError, match='folder of its own, .*epoch_1'):
            adapt_stock((path, *stock[1:]), **options)
    assert os.listdir(stock[2]) == ['epoch_1.pth']


def test_where_nothing_can_be_written(stock, monkeypatch):
    """Before the statistics are estimated."""
    monkeypatch.delattr(module, 'estimate')
    with pytest.raises(UserError, match='a.pth/b/.* cannot be written: '):
        adapt_stock((*stock[:2], osp.join(stock[0], 'b')))
    with pytest.raises(UserError, match="own size and smaller ones"):
        adapt(CONFIG, stock[0], (28, ), out=stock[2])
    with pytest.raises(ValueError, match='`between` must be .* 1.5'):
        adapt(CONFIG, stock[0], SCALES, out=stock[2], between=1.5)


def test_a_killed_run_is_not_repeated_in_silence(killed):
    with pytest.raises(UserError, match='no run that has not ended, but '
                       '.*calibrated.pth.*Give --resume to go on, or --force'):
        adapt_stock(killed)
    resumed = tensors(adapt_stock(killed, resume=True)['checkpoint'])
    again = tensors(adapt_stock(killed, force=True)['checkpoint'])
    assert all(torch.equal(resumed[name], again[name]) for name in again)


def test_a_run_begun_anew_goes_on_with_its_own_checkpoints(killed,
                                                           monkeypatch):
    """Killed before its first, it must not go on with those before it."""
    adapt_stock(killed, force=True)
    os.remove(osp.join(killed[2], 'adapted.pth'))
    starts = []

    def die(*args):
        raise Killed

    def train_and_look(cfg, resume):
        runner = train(cfg, resume)
        starts.append(runner.cfg.resume)
        return runner

    monkeypatch.setattr(module, 'train', die)
    with pytest.raises(Killed):
        adapt_stock(killed, lr=0.02, force=True)
    assert 'epoch_1.pth' not in os.listdir(killed[2])
    monkeypatch.setattr(module, 'train', train_and_look)
    adapt_stock(killed, lr=0.02, resume=True)
    assert starts == [False]


def test_a_checkpoint_in_the_folder_is_not_overwritten(killed):
    path = osp.join(killed[2], 'epoch_7.pth')
    os.rename(killed[0], path)
    with pytest.raises(UserError, match='folder of its own, .*epoch_7'):
        adapt_stock((path, *killed[1:]), force=True)
    assert osp.exists(path)


def test_scales_are_checked_before_the_folder(killed):
    for scales, text in (((32, 14), 'must begin with the size'),
                         ((28, ), 'own size and smaller'),
                         (('28', '14:x'), 'or ranges')):
        with pytest.raises(UserError, match=text):
            adapt_stock(killed, scales=scales)


def test_no_old_network_stands_beside_a_config_of_other_scales(
        stock, monkeypatch):
    """Of a run that was begun anew with --force, and killed."""
    path = adapt_stock(stock, epochs=0)['checkpoint']

    def die(*args):
        raise Killed

    monkeypatch.setattr(module, 'train', die)
    with pytest.raises(Killed):
        adapt(CONFIG, stock[0], (28, 20, 12), 1, stock[2],
              cfg_options=FEW, force=True)
    assert not osp.exists(path)
    assert not osp.exists(osp.join(stock[2], 'adapted.json'))


def test_a_full_disk_leaves_the_result_of_the_run_before(stock, monkeypatch):
    path = adapt_stock(stock, epochs=0)['checkpoint']
    before = tensors(path)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('sct_mm.utils.checkpoint._write', full)
    with pytest.raises(UserError, match='nothing older is lost'):
        adapt_stock(stock, epochs=0, force=True)
    after = tensors(path)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert osp.exists(osp.join(stock[2], 'adapted.json'))
