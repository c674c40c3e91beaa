"""The arms of an experiment, without their trainings."""
import json
import os

import torch

from sct_mm.evaluation import reproduce
from sct_mm.evaluation.experiments import Arm, calibrated
from sct_mm.evaluation.reproduce import folder_of, result_of, train


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


def test_an_arm_with_statistics_estimated_anew(tmp_path, monkeypatch):
    """It is tested with a row at each of its sizes, and what was tested
    already is kept."""
    calls, out = [], str(tmp_path)

    def run_tool(*words):
        calls.append(words)
        if words[0] == 'train.py':
            os.makedirs(words[3])
        if words[0] != 'test.py':
            return
        scales = words[words.index('--scales') + 1:]
        with open(os.path.join(words[words.index('--out') + 1],
                               'scales.json'), 'w') as f:
            json.dump(dict(models=[dict(rows=[
                dict(scale=size) for size in scales
                if isinstance(size, int)])]), f)
    monkeypatch.setattr(reproduce, 'run_tool', run_tool)
    shared = Arm('baselines/shared', {8: 1})
    arm = calibrated(shared, 'private', (8, 6, 4))
    folder = folder_of(arm, 0, out)
    os.makedirs(folder)
    assert result_of(arm, 0, out, (8, 4)) == [dict(scale=8), dict(scale=4)]
    made = os.path.join(folder, 'calibrated.pth')
    assert calls[1][:5] == ('calibrate.py', os.path.join(
        'configs', 'private.py'), folder_of(shared, 0, out), '--out', made)
    assert (8, 6, 4) == calls[1][calls[1].index('--sizes') + 1:][:3]
    assert calls[2][2] == made and calls[2][-2:] == (
        '--cfg-options', 'model.backbone.norm_cfg.scales=8,6,4')
    result_of(arm, 0, out, (8, 4))
    assert len(calls) == 3
    assert result_of(arm, 0, out, (6, )) == [dict(scale=6)]
    assert calls[3][calls[3].index('--scales') + 1:][:3] == (8, 6, 4)
