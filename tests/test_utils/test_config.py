"""Reading a config, and joining the processes that a launcher started."""
import copy
import functools
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.dataset import BaseDataset

import sct_mm  # noqa: F401
from sct_mm.datasets.image_folder import given_indices
from sct_mm.evaluation.held_out import left_out
from sct_mm.utils import config
from sct_mm.utils.config import check_data, load_config, set_loader_defaults
from sct_mm.utils.config_walk import without_pretrained
from sct_mm.utils.errors import UserError

pytest.importorskip('mmpretrain')
NEW_STYLE = '''
from mmpretrain.models import ImageClassifier, ResNet
from sct_mm import SSBN
default_scope = {scope!r}
classifier = dict(type=ImageClassifier, backbone=dict(type=ResNet, depth=18))
model = {model}
train_dataloader = dict()
'''


@pytest.mark.parametrize('scope, model, want', [
    (None, 'classifier', 'mmpretrain'),
    (None, 'dict(type="WithSSBN", model=classifier)', 'mmpretrain'),
    (None, 'dict(type=SSBN, model=classifier)', 'mmpretrain'),
    (None, 'dict(type="ImageClassifier")', 'mmengine'),
    (None, 'dict(type="mmdet.models.RetinaNet")', 'mmdet'),
    (None, 'dict()', 'mmengine'),
    ('mmdet', 'classifier', 'mmdet')])
def test_the_scope_of_a_new_style_config(scope, model, want, tmp_path):
    path = tmp_path / 'new.py'
    path.write_text(NEW_STYLE.format(scope=scope, model=model))
    cfg = load_config(str(path), dict(work_dir='a'))
    assert cfg.default_scope == want and cfg.work_dir == 'a'
    set_loader_defaults(cfg.train_dataloader, cfg)
    assert ('collate_fn' in cfg.train_dataloader) == (want == 'mmpretrain')


@pytest.mark.parametrize('relative', [True, False])
def test_the_error_of_missing_data_names_where_it_looked(
        relative, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/a.png').touch()
    hint = "'.* is relative to the folder where the command was started"
    for root, more, where in (('none', {}, 'none'),
                              ('full', dict(ann_file='a.txt'), 'full/a.txt')):
        root = root if relative else str(tmp_path / root)
        with pytest.raises(UserError, match=(
                f"must be at '{tmp_path}/{where}', but")) as error:
            check_data(Config(dict(dataset=dict(data_root=root, **more))))
        assert bool(re.search(hint, str(error.value))) == relative


@pytest.mark.parametrize('absolute', [*itertools.product([True, False],
                                                          repeat=2)])
@pytest.mark.parametrize('named', [True, False])
def test_a_data_root_is_asked_for_where_the_host_needs_it(
        absolute, named, tmp_path, monkeypatch):
    """mmengine joins it with relative paths alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'images').mkdir()
    (tmp_path / 'a.json').write_text(json.dumps(dict(
        metainfo={}, data_list=[dict(img_path='a.png')])))
    ann_file, prefix = (
        str(tmp_path / name) if full else name
        for full, name in zip(absolute, ('a.json', 'images'), strict=True))
    options = dict(data_prefix=dict(img_path=prefix)) if named else {}
    dataset = dict(data_root='nowhere', ann_file=ann_file, **options)
    check = functools.partial(check_data, Config(dict(dataset=dataset)))
    if absolute == (True, True) and named:
        check()
        image = BaseDataset(**dataset).get_data_info(0)['img_path']
        assert image == str(tmp_path / 'images' / 'a.png')
    else:
        with pytest.raises(UserError, match="at '.*/nowhere', but there is"):
            check()


def test_places_in_the_home_of_the_user(tmp_path, monkeypatch):
    """mmpretrain's data sets expand them."""
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'a.txt').write_text('a.png 0')
    from mmpretrain.datasets import CustomDataset
    options = dict(ann_file='~/a.txt', data_prefix='~/images')
    for root in ('nowhere', '~'):
        check_data(Config(dict(dataset=dict(options, data_root=root))))
    data = CustomDataset(data_root='nowhere', **options)
    assert data.get_data_info(0)['img_path'] == f'{tmp_path}/images/a.png'
    with pytest.raises(UserError, match=f"must be at '{tmp_path}/b.txt'"):
        check_data(Config(dict(dataset=dict(options, data_root='~',
                                            ann_file='~/b.txt'))))


@pytest.mark.parametrize('split', [dict(data_prefix='{}/images'), dict(
    data_prefix=dict(img='{}/images', seg='{}/images'), ann_file='')])
def test_images_at_an_absolute_place_without_annotations(split, tmp_path):
    def at(value):
        return ({name: at(each) for name, each in value.items()}
                if isinstance(value, dict) else value.format(tmp_path))

    check_data(Config(dict(dataset=dict(at(split), data_root='nowhere'))))


@pytest.mark.parametrize('indices', [
    'abc', 0, 1.5, True, [], [0, 1.5], [0, True], dict(a=1), torch.ones(2)])
def test_indices_that_no_data_set_takes(indices):
    options = {'train_dataloader.dataset.indices': indices}
    with pytest.raises(UserError, match='`indices` of a data set must be an '
                       'int other than 0 .* but got .*. Leave it out'):
        given_indices(options, 'train_dataloader')
    for wrap in (lambda d: d, lambda d: dict(type='RepeatDataset', dataset=d),
                 lambda d: dict(type='ConcatDataset', datasets=[{}, d])):
        with pytest.raises(UserError, match='`indices`'):
            check_data(Config(dict(dataset=wrap(dict(indices=indices)))))


@pytest.mark.parametrize('indices', [
    None, 1, -3, np.int64(2), [0, -1], (1, ), range(4)])
def test_indices_that_a_data_set_takes(indices):
    check_data(Config(dict(dataset=dict(indices=indices))))


def test_a_list_of_indices_beyond_the_images():
    for index in (3, -4):
        with pytest.raises(UserError, match=f'of the 3 images .* got {index}'):
            left_out([0, index], 3)
    assert left_out([0, -1], 3) == [1]


@pytest.mark.parametrize('name, value', [
    ('batch_size', 'abc'), ('batch_size', 0), ('batch_size', 2.5),
    ('num_workers', -1), ('num_workers', 'abc')])
def test_a_loader_of_no_number(name, value):
    with pytest.raises((TypeError, ValueError), match=f'`{name}` must be an'):
        check_data(Config({'dataset': {}, name: value}))


@pytest.mark.parametrize('options, joined', [
    (dict(launcher='slurm'), ['slurm']), (dict(launcher='none'), []), ({}, []),
    (dict(launcher='pytorch', runner_type='FlexibleRunner'), [])])
def test_processes_are_joined_before_the_runner_does(options, joined,
                                                     monkeypatch):
    """On an accelerator, as mmengine's Runner would a moment later."""
    calls = []

    def init_dist(launcher, backend, timeout):
        assert (backend, timeout) == ('nccl', 9)
        calls.append(launcher)

    monkeypatch.setattr(config, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(config, 'init_dist', init_dist)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('MKL_NUM_THREADS', '1')
    cfg = Config(dict(env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=9)),
                      **options))
    config.join_processes(cfg)
    assert calls == joined and 'model_wrapper_cfg' not in cfg
    monkeypatch.setattr(config, 'is_distributed', lambda: True)
    config.join_processes(cfg)
    assert calls == joined


@pytest.mark.parametrize('gpus', [1, 2, 3])
def test_a_process_without_a_gpu_of_its_own(gpus, monkeypatch):
    calls = []
    monkeypatch.setattr(config, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(config, 'set_multi_processing', lambda **_: None)
    monkeypatch.setattr(config, 'init_dist', lambda name: calls.append(name))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setenv('LOCAL_RANK', '2')
    cfg = Config(dict(launcher='pytorch'))
    if gpus == 3:
        config.join_processes(cfg)
        assert calls == ['pytorch']
        return
    with pytest.raises(UserError, match=f'process 2 found {gpus} .* at most '
                       f'{gpus} a machine'):
        config.join_processes(cfg)
    assert not calls


AT_THE_END = '''
import atexit
from torch import distributed
atexit.register(lambda: print('joined:', distributed.is_initialized()))
from mmengine.config import Config
from sct_mm.utils.config import join_processes
join_processes(Config(dict(launcher='pytorch')))
print('joined:', distributed.is_initialized())
'''


def test_processes_leave_each_other_before_they_end():
    """gloo's threads outlive the interpreter otherwise, and may abort it."""
    group = dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0',
                 MASTER_ADDR='127.0.0.1', MASTER_PORT='0')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', AT_THE_END],
        capture_output=True, text=True, env={
            **os.environ, **group, 'PYTHONPATH': ROOT,
            'CUDA_VISIBLE_DEVICES': ''})
    assert not done.returncode, done.stderr
    assert done.stdout.split('joined: ')[1:] == ['True\n', 'False\n']


def test_a_model_that_loads_no_file_as_it_is_initialised():
    normal = dict(type='Normal', std=0.01)
    model = dict(
        type='A', pretrained='open-mmlab://resnet50', init_cfg=normal,
        backbone=dict(type='B', pretrained=True, out_indices=(0, 1),
                      init_cfg=dict(type='Pretrained', checkpoint='b.pth')),
        neck=dict(type='mmaction.ResNetTSM', pretrained='d.pth'),
        heads=[dict(type='C', init_cfg=[normal, dict(
            type='mmengine.Pretrained', checkpoint='c.pth')])])
    before = copy.deepcopy(model)
    assert without_pretrained(model) == dict(
        type='A', pretrained=None, init_cfg=normal,
        backbone=dict(type='B', pretrained=True, out_indices=(0, 1),
                      init_cfg=None),
        neck=dict(type='mmaction.ResNetTSM', pretrained=None,
                  pretrained2d=False),
        heads=[dict(type='C', init_cfg=[normal])])
    assert model == before
