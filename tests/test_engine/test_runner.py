"""The Runner of a config, which may lack parts of what is not run."""
import time

import pytest
from helpers import collate, samples, ssbn_model
from mmengine.config import Config
from mmengine.registry import DATASETS, FUNCTIONS, MODELS

from sct_mm.engine.runner import built_runner, lacking

FUNCTIONS.register_module('stacked', force=True, module=collate)
DATASETS.register_module('EightImages', force=True, module=samples)
MODELS.register_module('SmallSSBN', force=True, module=ssbn_model)


def config(folder, **options):
    loader = dict(batch_size=4, dataset=dict(type='EightImages'),
                  sampler=dict(type='DefaultSampler', shuffle=False),
                  collate_fn=dict(type='stacked'))
    return Config(dict(
        model=dict(type='SmallSSBN'), work_dir=str(folder),
        train_dataloader=loader, train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        param_scheduler=[], **options))


@pytest.mark.parametrize('missing', [
    'train_cfg', 'train_dataloader', 'optim_wrapper'])
def test_the_runner_of_a_test_needs_no_training(missing, tmp_path):
    cfg = config(tmp_path)
    cfg[missing] = None
    assert lacking(cfg, 'training') == [missing]
    runner = built_runner(cfg)
    kept = {'train_dataloader', 'train_cfg', 'optim_wrapper'} - {missing}
    assert all(runner.cfg[name] == cfg[name] for name in kept)
    assert missing not in runner.cfg or runner.cfg[missing] is None


def test_the_runner_of_a_training_needs_no_test(tmp_path):
    cfg = config(tmp_path, test_dataloader=dict(dataset=dict(a=1)))
    assert lacking(cfg, 'test') == ['test_cfg', 'test_evaluator']
    assert not lacking(cfg, 'training') and not lacking(cfg, 'validation')
    runner = built_runner(cfg)
    runner.train()
    assert runner.iter == 2 and runner.cfg.test_dataloader.dataset.a == 1
    file, = tmp_path.glob('*.py')  # by which a network is tested later
    assert 'test_dataloader=dict(dataset=dict(a=1))' in ''.join(
        file.read_text().split())


@pytest.mark.parametrize('name', [None, 'visualizer'])
def test_two_runs_of_one_second_have_files_of_their_own(name, tmp_path,
                                                        monkeypatch):
    """mmengine knows runs by their second, and mmdet's visualizer by a name
    that all runs share."""
    monkeypatch.setattr(time, 'strftime', lambda *args: '20200101_000000')
    folders = [tmp_path / 'first', tmp_path / 'second']
    for folder in folders:
        cfg = config(folder, visualizer=dict(
            type='Visualizer', vis_backends=[dict(type='LocalVisBackend')],
            **({'name': name} if name else {})))
        built_runner(cfg).train()
    for folder in folders:
        assert [file.parent.name for file in folder.rglob('config.py')] == [
            'vis_data']
        log, = folder.rglob('*.log')
        assert 'Saving checkpoint at 1 epochs' in log.read_text()
