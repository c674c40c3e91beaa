"""The arms of an experiment, without their trainings."""
import json
import os
import os.path as osp
import re
import shlex
import subprocess
from types import SimpleNamespace

import commands
import pytest
import torch
from commands import folder_of, recipe_of
from conftest import ROOT
from experiments import EXPERIMENTS, IN1K_MS, Arm, Each, Experiment, calibrated
from reproduce import reproduce, result_of

from sct_mm.utils.errors import UserError


@pytest.fixture
def calls(monkeypatch):
    """The command lines that would be run, without the interpreter."""
    calls = []
    monkeypatch.setattr(commands, '_text_of', lambda config: config)

    def run(words, env):
        assert env['PYTHONPATH'].split(os.pathsep)[0] == ROOT
        words = words[1:]
        calls.append(words)
        for option in ('--out', '--work-dir'):
            if option in words:
                path = words[words.index(option) + 1]
                os.makedirs(osp.dirname(path) if path.endswith('.pth')
                            else path, exist_ok=True)
        if words[0].endswith('test.py'):
            sizes = words[words.index('--scales') + 1:]
            with open(osp.join(path, 'scales.json'), 'w') as f:
                json.dump(dict(models=[dict(rows=[
                    dict(scale=int(size), gflops=int(size)**2,
                         metrics={'accuracy/top1': 90 + len(calls)})
                    for size in sizes if size.isdecimal()])]), f)
        return SimpleNamespace(returncode=0)
    monkeypatch.setattr(subprocess, 'run', run)
    return calls


def put_done(arm, seed, out):
    """A folder as it is when the arm has been made in it."""
    folder = folder_of(arm, seed, out)
    os.makedirs(folder)
    open(osp.join(folder, 'trained'), 'w').close()
    with open(osp.join(folder, 'recipe.txt'), 'w') as f:
        f.write(recipe_of(arm))
    return folder


def test_an_arm_starts_from_the_newest_whole_checkpoint(tmp_path, calls):
    """Whatever last_checkpoint says after a kill."""
    first = Arm('first', {8: 1})
    folder = put_done(first, 0, str(tmp_path))
    for name in ('last_checkpoint', 'epoch_3.pth'):
        open(osp.join(folder, name), 'w').close()
    for epoch in (1, 2):
        path = osp.join(folder, f'epoch_{epoch}.pth')
        torch.save(dict(state_dict={}), path)
        os.utime(path, (epoch, epoch))
    result_of(Arm('second', {8: 1}, start=first), 0, str(tmp_path), (8, ))
    assert f'model.backbone.init_cfg.checkpoint={path}' in calls[0]
    assert len(calls) == 2  # a training and a test


def test_an_arm_that_is_another_adapted(tmp_path, calls):
    out = str(tmp_path)
    stock = Arm('resnet18_1xb128_fashion-mnist-28px', {8: 1})
    arm = Arm(stock.config, {8: 1}, start=stock, adapt=('--scales', '8', '4'))
    result_of(arm, 1, out, (8, ))
    folder = folder_of(arm, 1, out)
    assert folder != folder_of(stock, 1, out)
    config = f'tools/benchmarks/experiments/configs/{stock.config}.py'
    assert [words[:3] for words in calls[:2]] == [
        ['tools/train.py', config, '--work-dir'],
        ['tools/adapt.py', config, folder_of(stock, 1, out)]]
    assert calls[1][3:5] == ['--out', folder]
    result_of(arm, 1, out, (8, ))
    assert len(calls) == 3


def test_an_arm_of_a_network_for_each_size(tmp_path, calls, monkeypatch,
                                           capsys):
    """Each network is tested at its own size, and paid for."""
    arm = Each({4: Arm('small', {4: 3}), 2: Arm('smallest', {2: 8})})
    monkeypatch.setitem(EXPERIMENTS, 'ablations', Experiment(
        {'all': Arm('all', {8: 1, 4: 1}), 'each': arm}, (8, 4),
        {'accuracy/top1': 'top-1'}))
    reproduce('ablations', (0, ), str(tmp_path), dry_run=True)
    assert '# each: the compute of 1.2 epochs' in capsys.readouterr().out
    found = reproduce('ablations', (0, ), str(tmp_path))
    assert found['compute'] == {'all': 1.25, 'each': 1.25}
    assert found['accuracy/top1']['each'] == {4: [94, 0], 2: [96, 0]}
    assert [words[-1] for words in calls[3::2]] == ['4', '2']
    assert 'small' in calls[3][1] and 'smallest' in calls[5][1]
    assert len(calls) == 6


@pytest.mark.parametrize('done', ['trained', 'recipe.txt'])
def test_a_folder_of_another_recipe_is_refused(tmp_path, calls, done):
    """Finished, by whatever left no recipe, or begun."""
    arm = Arm('a', {8: 1})
    folder = folder_of(arm, 0, str(tmp_path))
    os.makedirs(folder)
    with open(osp.join(folder, done), 'w') as f:
        f.write(recipe_of(arm._replace(epochs=3)))
    with pytest.raises(UserError, match='another config .* Move it away'):
        result_of(arm, 0, str(tmp_path), (8, ))
    assert not calls


def test_a_recipe_is_all_that_makes_an_arm(monkeypatch):
    texts = {}
    monkeypatch.setattr(commands, '_text_of',
                        lambda config: texts.get(config, ''))
    start = Arm('start', {8: 1})
    arm = Arm('a', {8: 1}, start=start, adapt=('--scales', '8', '4'))
    others = [arm._replace(epochs=2), arm._replace(options=('a=1', )),
              arm._replace(adapt=('--scales', '8', '2')),
              arm._replace(adapt=(), calibrate=(8, )),
              arm._replace(start=start._replace(epochs=2))]
    found = {recipe_of(each) for each in (arm, *others)}
    assert len(found) == 6
    assert recipe_of(arm._replace(seen={8: 9})) == recipe_of(arm)
    for name in ('start', 'a'):
        texts[f'configs/{name}.py'] = 'changed'
        assert recipe_of(arm) not in found
        found.add(recipe_of(arm))


def test_an_arm_with_statistics_estimated_anew(tmp_path, calls):
    """It is tested with a row at each of its sizes, and what was tested
    already is kept."""
    out = str(tmp_path)
    shared = Arm('shared', {8: 1})
    arm = calibrated(shared, 'private', (8, 6, 4))
    assert [row['scale'] for row in result_of(arm, 0, out, (8, 4))] == [8, 4]
    made = osp.join(folder_of(arm, 0, out), 'calibrated.pth')
    assert calls[1][:5] == [
        'tools/calibrate.py', osp.join('configs', 'private.py'),
        folder_of(shared, 0, out), '--out', made]
    assert calls[1][calls[1].index('--sizes') + 1:][:3] == ['8', '6', '4']
    assert calls[2][2] == made and calls[2][-2:] == [
        '--cfg-options', 'model.backbone.norm_cfg.scales=8,6,4']
    result_of(arm, 0, out, (8, 4))
    assert len(calls) == 3
    assert [row['scale'] for row in result_of(arm, 0, out, (6, ))] == [6]
    assert calls[3][calls[3].index('--scales') + 1:][:3] == ['8', '6', '4']


def test_the_result_is_over_the_seeds(tmp_path, calls):
    arm = EXPERIMENTS['ablations'].arms['between=0']
    found = reproduce('ablations', (0, 1), str(tmp_path))
    # the second command tests the first arm, the fourth the second, ...
    assert found['accuracy/top1']['between=0'][28] == [
        pytest.approx((94 + 102) / 2), pytest.approx(4 * 2**0.5)]
    expected = sum(times * (size / 28)**2 for size, times in arm.seen.items())
    assert found['compute']['between=0'] == pytest.approx(expected)
    config = 'sct-any-size{}_resnet18_1xb128_fashion-mnist'
    assert found['configs'] == {  # without those that change it
        'SCT, SSBN': config.format(''),
        'private statistics in the first stages only': config.format(
            '-first-stages')}
    with open(tmp_path / 'ablations.json') as f:
        assert json.load(f)['seeds'] == [0, 1]
    assert (tmp_path / 'ablations.png').stat().st_size > 1000


def test_a_trial_has_few_images_in_each_command(tmp_path, calls):
    found = reproduce('baselines', (0, ), str(tmp_path), images=128)
    tools = {words[0] for words in calls}
    assert tools == {f'tools/{name}.py' for name in (
        'train', 'adapt', 'calibrate', 'test')}
    for words in calls:
        loader = 'test' if words[0] == 'tools/test.py' else 'train'
        option = f'{loader}_dataloader.dataset.indices=128'
        assert option in words[words.index('--cfg-options'):]
    assert found['images'] == 128
    with pytest.raises(ValueError, match='`images` must be .*128.* got 64'):
        reproduce('baselines', (0, ), str(tmp_path), images=64)


def test_a_command_that_fails_is_named(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(subprocess, 'run',
                        lambda words, env: SimpleNamespace(returncode=1))
    arm = Arm('a', {8: 1})
    with pytest.raises(UserError, match='tools/train.py configs/a.py .*fail'):
        result_of(arm, 0, str(tmp_path), (8, ))
    assert not osp.exists(osp.join(folder_of(arm, 0, str(tmp_path)),
                                   'trained'))


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_a_dry_run_prints_commands_of_files_that_exist(
        name, tmp_path, calls, capsys):
    out = str(tmp_path / 'out')
    assert reproduce(name, (0, 1), out, dry_run=True) == {} and not calls
    lines = capsys.readouterr().out.splitlines()
    told = [shlex.split(line) for line in lines if not line.startswith('#')]
    assert len(set(map(tuple, told))) == len(told)
    for words in told:
        # Configs of the experiments may import modules below tools/.
        assert (words[0] == 'PYTHONPATH=.') == any(
            word.startswith('tools/benchmarks') for word in words)
        words.remove('python')
        tool = next(word for word in words if word.startswith('tools/'))
        assert osp.isfile(osp.join(ROOT, tool))
        config = words[words.index(tool) + 1]
        assert (osp.isfile(osp.join(ROOT, config))
                or config.startswith(out)), config
        many = '--nproc-per-node=8' in words and '--launcher' in words
        assert many == (name == 'imagenet')
    assert all('adapt_' in words[1] for words in told
               if words[0] == 'tools/test.py' and words[1].startswith(out))


def test_hours_are_of_what_was_measured(tmp_path, calls, capsys):
    """The steps of the benchmark on a GPU, in docs as in the dry run."""
    with open(osp.join(ROOT, 'docs/benchmark-h200.json')) as file:
        measured = {int(row['arm'].split()[-1]): row['ms']
                    for row in json.load(file)['training']
                    if row['arm'].startswith('plain BN')}
    assert {s: IN1K_MS[s] for s in measured} == pytest.approx(measured,
                                                              abs=0.01)
    assert all(IN1K_MS[s] == pytest.approx(
        (IN1K_MS[s + 16] + IN1K_MS[s - 16]) / 2, abs=0.01)
        for s in IN1K_MS if s not in measured)
    reproduce('imagenet', (0, ), str(tmp_path), dry_run=True)
    told = {name: figures for name, *figures in
            re.findall(r'# (.*): the compute of ([\d.]+) .* take ([\d.]+) GPU',
                       capsys.readouterr().out)}
    with open(osp.join(ROOT, 'docs/results.md')) as file:
        docs = {cells[0]: cells[2:] for cells in (
            [cell.strip() for cell in line.split('|')[1:-1]]
            for line in file.read().partition('## ImageNet')[2].partition(
                '\n## ')[0].splitlines() if line.startswith('| ')
            and '`' in line)}
    assert len(docs) == 11
    assert docs == {name: told[name] for name in docs}


def test_what_is_done_is_left_out_of_a_dry_run(tmp_path, calls, capsys):
    out = str(tmp_path)
    arm = EXPERIMENTS['ablations'].arms['SCT, SSBN']
    reproduce('ablations', (0, ), out, dry_run=True)
    before = capsys.readouterr().out
    folder = put_done(arm, 0, out)
    reproduce('ablations', (0, ), out, dry_run=True)
    left = capsys.readouterr().out
    gone = set(before.splitlines()) - set(left.splitlines())
    assert len(gone) == 1 and f'--work-dir {folder}' in gone.pop()
    result_of(arm, 0, out, EXPERIMENTS['ablations'].sizes)
    reproduce('ablations', (0, ), out, dry_run=True)
    gone = set(left.splitlines()) - set(capsys.readouterr().out.splitlines())
    assert len(gone) == 1 and 'tools/test.py' in gone.pop()


def test_seeds_are_refused_before_anything_runs(tmp_path, calls):
    with pytest.raises(ValueError, match='`seeds` must be .* -1'):
        reproduce('ablations', (0, -1), str(tmp_path))
    with pytest.raises(ValueError, match=r'distinct, .* but got \[1, 1\]'):
        reproduce('ablations', (1, 1), str(tmp_path))
    assert not calls
