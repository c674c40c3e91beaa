"""A run that died, was cut, or ran out of disk, as a user meets it."""
import os
import random
from pathlib import Path

import pytest
import survive_kills
import torch
from conftest import ROOT
from mmengine.runner import Runner

from sct_mm.apis.train import train
from sct_mm.utils.config import load_config
from sct_mm.utils.errors import UserError


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('config')
    survive_kills.write_data(folder)
    (folder / 'config.py').write_text(survive_kills.CONFIG.format(
        base=os.path.join(ROOT, 'configs/_base_/fashion-mnist.py'),
        data=str(folder), epochs=2))
    return folder / 'config.py'


def test_killed_runs_end_as_one_that_nobody_killed(tmp_path, capsys):
    assert not survive_kills.survive(2, 1, tmp_path)
    assert '2 kills' in capsys.readouterr().out


def test_moments_are_of_each_kind():
    rng = random.Random(0)
    kinds = [survive_kills.Moment(rng).kind for _ in range(100)]
    assert kinds.count('saving') > 40 and len(set(kinds)) == 3


def test_differences_finds_one_bit():
    a = dict(x=[torch.zeros(2), dict(y=1.)])
    b = dict(x=[torch.tensor([0., 1e-45]), dict(y=1.)])
    assert survive_kills.differences(a, a) == []
    assert survive_kills.differences(a, b, 'a') == ['a.x.0']


def test_a_full_disk_ends_the_tool_with_one_sentence(config, run_tool,
                                                     tmp_path):
    code, output = run_tool('train.py', config, '--work-dir', tmp_path,
                            limit=60_000)
    assert code == 2 and 'Traceback' not in output
    assert 'epoch_1.pth' in output and 'cannot be written' in output
    assert not list(tmp_path.glob('*epoch*'))
    code, output = run_tool('train.py', config, '--work-dir', tmp_path,
                            '--resume')
    assert code == 0 and (tmp_path / 'epoch_2.pth').exists()


class Evil:

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'touch {self.mark}', )


@pytest.fixture
def evil(tmp_path):
    """A checkpoint that has all that it needs, and a mark of what it did."""
    path, mark = tmp_path / 'evil.pth', tmp_path / 'executed'
    torch.save(dict(state_dict={}, optimizer={}, message_hub={}, meta=dict(
        epoch=1, iter=1, config=f'open({str(mark)!r}, "w")'),
        evil=Evil(mark)), path)
    return path, mark


@pytest.mark.parametrize('way', ['init_cfg', 'load_from', 'resume', 'work_dir',
                                 'argument'])
def test_a_malicious_checkpoint_executes_nothing(way, config, evil, tmp_path):
    """By whatever way it comes to a Python user of ``train``."""
    path, mark = evil
    cfg = load_config(str(config))
    cfg.work_dir, resume = str(tmp_path / 'run'), None
    cfg.experiment_name = f'evil-{way}'
    if way == 'init_cfg':
        cfg.model.backbone.init_cfg = dict(type='Pretrained',
                                           checkpoint=str(path))
    elif way == 'argument':
        resume = str(path)
    elif way == 'work_dir':
        os.mkdir(cfg.work_dir)
        path = path.rename(tmp_path / 'run' / 'epoch_1.pth')
        cfg.resume = True
    else:
        cfg.load_from, cfg.resume = str(path), way == 'resume'
    with pytest.raises(UserError, match=str(path)) as caught:
        train(cfg, resume)
    assert not mark.exists() and 'weights_only' not in str(caught.value)


def test_code_in_the_meta_of_a_checkpoint_is_not_run(config, tmp_path):
    """mmengine's Runner.resume runs meta['config']."""
    cfg = load_config(str(config))
    cfg.work_dir, cfg.experiment_name = str(tmp_path), 'meta'
    cfg.train_cfg.max_epochs = 1
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint.save_best = None
    cfg.param_scheduler[0].total_steps = 2
    train(cfg)
    checkpoint = torch.load(tmp_path / 'epoch_1.pth')
    checkpoint['meta']['config'] = f'open({str(tmp_path / "ran")!r}, "w")'
    torch.save(checkpoint, tmp_path / 'epoch_1.pth')
    cfg.train_cfg.max_epochs, cfg.experiment_name = 2, 'meta-again'
    runner = train(cfg, 'auto')
    assert isinstance(runner, Runner) and runner.epoch == 2
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('command', [
    ('test.py', 'CONFIG', 'EVIL'),
    ('train.py', 'CONFIG', '--cfg-options',
     'model.backbone.init_cfg.type=Pretrained',
     'model.backbone.init_cfg.checkpoint=EVIL')])
def test_the_tools_refuse_it_in_one_sentence(command, config, evil, run_tool,
                                             tmp_path):
    path, mark = evil
    code, output = run_tool(*[a.replace('EVIL', str(path)).replace(
        'CONFIG', str(config)) for a in command], *(
            ['--work-dir', tmp_path] if 'train' in command[0] else []))
    assert code == 2 and f"The checkpoint '{path}' cannot be read" in output
    assert 'Traceback' not in output and 'weights_only' not in output
    assert not mark.exists() and not list(Path(tmp_path).glob('epoch_*'))
