"""A Runner of a config that lacks parts of what is not run."""
import itertools

import pytest
from helpers import collate, samples, ssbn_model
from mmengine.config import Config
from mmengine.registry import DATASETS, FUNCTIONS, MODELS

from sct_mm.engine.runner import built_runner, lacking

COUNT = itertools.count()
FUNCTIONS.register_module('stacked', force=True, module=collate)
DATASETS.register_module('EightImages', force=True, module=samples)
MODELS.register_module('SmallSSBN', force=True, module=ssbn_model)


def config(folder, **options):
    loader = dict(batch_size=4, dataset=dict(type='EightImages'),
                  sampler=dict(type='DefaultSampler', shuffle=False),
                  collate_fn=dict(type='stacked'))
    return Config(dict(
        model=dict(type='SmallSSBN'), work_dir=str(folder),
        experiment_name=f'parts-{next(COUNT)}', log_level='ERROR',
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
