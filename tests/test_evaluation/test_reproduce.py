"""The arms of an experiment, without their trainings."""
import os

import torch

from sct_mm.evaluation import reproduce
from sct_mm.evaluation.reproduce import Arm, folder_of, train


def test_an_arm_starts_from_the_newest_whole_checkpoint(
        tmp_path, monkeypatch):
    """Whatever last_checkpoint says after a kill."""
    calls = []
    monkeypatch.setattr(reproduce, 'run_tool',
                        lambda *words: calls.append(words))
    first = Arm('first', {8: 1})
    folder = folder_of(first, 0, str(tmp_path))
    os.makedirs(folder)
    for name in ('trained', 'last_checkpoint', 'epoch_3.pth'):
        open(os.path.join(folder, name), 'w').close()
    for epoch in (1, 2):
        path = os.path.join(folder, f'epoch_{epoch}.pth')
        torch.save(dict(state_dict={}), path)
        os.utime(path, (epoch, epoch))
    assert train(first, 0, str(tmp_path)) == folder and not calls
    second = Arm('second', {8: 1}, start=first)
    os.makedirs(folder_of(second, 0, str(tmp_path)))
    train(second, 0, str(tmp_path))
    assert f'model.backbone.init_cfg.checkpoint={path}' in calls[0]


def test_an_arm_that_is_another_adapted(tmp_path, monkeypatch):
    calls, out = [], str(tmp_path)
    monkeypatch.setattr(reproduce, 'run_tool', lambda *words: (
        calls.append(words), os.makedirs(words[words.index('--out') + 1]
                                         if '--out' in words else words[3])))
    stock = Arm('baselines/stock', {8: 1})
    arm = Arm(stock.config, {8: 1}, start=stock, adapt=('--scales', '8', '4'))
    folder = train(arm, 1, out)
    assert folder != folder_of(stock, 1, out)
    assert [words[:3] for words in calls] == [
        ('train.py', os.path.join('configs', 'baselines', 'stock.py'),
         '--work-dir'),
        ('adapt.py', os.path.join('configs', 'baselines', 'stock.py'),
         folder_of(stock, 1, out))]
    assert calls[1][3:5] == ('--out', folder)
    assert train(arm, 1, out) == folder and len(calls) == 2
