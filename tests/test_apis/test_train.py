"""What a training is refused for, before it begins."""
import importlib.util
import os.path as osp
import sys

import pytest
import torch
from conftest import ROOT, TinyModel
from helpers import ssbn_model
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from sct_mm import SSBN
from sct_mm.apis.train import check_complete, set_defaults, train
from sct_mm.engine.load_model import check_is_of
from sct_mm.utils.checkpoint import make_folder
from sct_mm.utils.config import load_config
from sct_mm.utils.config_walk import pipelines_of
from sct_mm.utils.errors import UserError

FASHION = osp.join(ROOT, 'configs', 'sct_resnet18_1xb128_fashion-mnist.py')


def tool():
    spec = importlib.util.spec_from_file_location(
        'train_tool', osp.join(ROOT, 'tools', 'train.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('name, text, match', [
    ('a.py', 'model = dict(', 'cannot be read .SyntaxError'),
    ('a.py', 'model = nope', "NameError: name 'nope'"),
    ('a.py', "_base_ = './nope.py'", 'FileNotFoundError: .*nope.py'),
    ('a.json', '{', 'cannot be read .JSONDecodeError'),
    ('a.txt', '', 'cannot be read .OSError: Only py'),
    ('a.py', 'optimizer = 1', 'must have a `model`, but .* has None')])
def test_a_config_that_is_none(name, text, match, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=match):
        load_config(str(path))


@pytest.mark.parametrize('options', [
    {'hooks.7.type': 'A'}, {'train_cfg.max_epochs.x': 5}])
def test_settings_that_do_not_fit(options, tmp_path):
    path = tmp_path / 'a.py'
    path.write_text('model = dict()\nhooks = []\n'
                    'train_cfg = dict(max_epochs=1)\n')
    with pytest.raises(UserError, match='--cfg-options .* do not fit'):
        load_config(str(path), options)


@pytest.mark.parametrize('arguments, match', [
    (['--cfg-options', 'abc'], "must be KEY=VALUE, but got 'abc'"),
    (['--cfg-options', '=3'], "must be KEY=VALUE, but got '=3'"),
    (['--launcher', 'pytorch'], 'which sets RANK, but that is not set'),
    (['--launcher', 'slurm'], 'which sets SLURM_PROCID')])
def test_a_command_line_that_is_none(arguments, match, capsys, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.delenv('SLURM_PROCID', raising=False)
    with pytest.raises(SystemExit, match='2'):
        tool().parse_args([FASHION, *arguments])
    assert match in capsys.readouterr().err


def test_options_for_a_config_that_has_nothing_to_train():
    module = tool()
    for option, name in (('--amp', 'optim_wrapper'),
                         ('--auto-scale-lr', 'auto_scale_lr')):
        cfg = Config(dict(model=dict(), train_dataloader=dict(), train_cfg={},
                          optim_wrapper={}))
        cfg[name] = None
        with pytest.raises(UserError, match=name):
            module.merge_args(cfg, module.parse_args([FASHION, option]))


def test_what_a_training_needs(monkeypatch):
    whole = dict(train_dataloader={}, train_cfg={},
                 optim_wrapper=dict(type='AmpOptimWrapper'))
    for name in whole:
        with pytest.raises(UserError, match=f'must have .*{name}'):
            check_complete(Config({**whole, name: None}))
    for name in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        others = {'val_dataloader': {}, 'val_cfg': {}, 'val_evaluator': {}}
        with pytest.raises(UserError, match=f'`{name}` to validate, but has '
                           'none. Set it, or give --no-validate'):
            check_complete(Config({**whole, **others, name: None}))
    module = sys.modules['sct_mm.apis.train']  # apis.train is the function
    monkeypatch.setattr(module, 'get_device', lambda: 'cpu')
    with pytest.raises(UserError, match="needs a GPU, but .* 'cpu'"):
        check_complete(Config(whole))
    monkeypatch.setattr(module, 'get_device', lambda: 'cuda')
    check_complete(Config(whole))


@pytest.mark.parametrize('given, want', [
    (None, ['sct_mm']), (dict(imports='a'), ['a', 'sct_mm']),
    (dict(imports=['sct_mm', 'a']), ['sct_mm', 'a'])])
def test_what_is_written_of_a_config_is_read_by_mmengine_alone(
        given, want, tmp_path):
    cfg = Config(dict(model=dict(type='SSBN'), custom_imports=given))
    set_defaults(cfg)
    assert cfg.custom_imports.imports == want
    cfg.dump(tmp_path / 'a.py')
    read = Config.fromfile(tmp_path / 'a.py', import_custom_modules=False)
    assert read.custom_imports == cfg.custom_imports
    set_defaults(read)
    assert read.custom_imports == cfg.custom_imports


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('mine')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'a'):
        with pytest.raises(UserError, match='must be a folder .*file'):
            make_folder(str(path), '`work_dir`')
    monkeypatch.setattr('os.access', lambda path, mode: False)
    with pytest.raises(UserError, match='Permission denied'):
        make_folder(str(tmp_path), '`work_dir`')


def test_a_data_set_that_is_built_already():
    """It is not asked for what it holds: that may be a million images."""
    class Built:
        def __getitem__(self, index):
            raise AssertionError(index)

    assert pipelines_of(dict(dataset=Built())) == []
    assert pipelines_of(dict(dataset=dict(type='A', dataset=Built()))) == []


def test_rows_of_other_scales_are_not_taken_by_their_rank():
    state = TinyModel(lambda c: SSBN(c, (16, 10, 8))).state_dict()
    with pytest.raises(UserError, match=r'at the scales \(16, 10, 8\), but '
                                        r'the config has \(16, 12, 8\)'):
        check_is_of(ssbn_model(), state, 'a.pth')
    check_is_of(ssbn_model(), dict(state_dict=ssbn_model().state_dict()), '')


def test_a_run_goes_on_with_its_own_network_alone(tmp_path, monkeypatch,
                                                  small_root):
    """mmengine would leave what does not fit as it was initialised."""
    pytest.importorskip('mmpretrain')
    monkeypatch.chdir(small_root)
    cfg = load_config(FASHION, {
        'train_dataloader.dataset.indices': 8, 'work_dir': str(tmp_path),
        'val_dataloader': None, 'val_cfg': None, 'val_evaluator': None})
    init_default_scope('mmpretrain')
    for name, scales in (('wide', (28, 21, 14)), ('other', (28, 20, 14)),
                         ('stock', None)):
        model = cfg.model.copy()
        model.backbone = {**model.backbone, 'norm_cfg': dict(
            type='SSBN', scales=scales) if scales else dict(type='BN')}
        if name == 'wide':
            model.backbone['stem_channels'] = 24
        torch.save(dict(state_dict=MODELS.build(model).state_dict(),
                        meta=dict(epoch=1, iter=1), optimizer={},
                        message_hub={}), tmp_path / f'{name}.pth')
    for name, match in (('wide', 'does not fit the config: size mismatch'),
                        ('other', r'at the scales \(28, 20, 14\)'),
                        ('stock', 'cannot be resumed: .* for one size, .*'
                         r'rows for \(28, 21, 14\).*`load_from`')):
        with pytest.raises(UserError, match=match):
            train(Config({**cfg, 'experiment_name': name}),
                  str(tmp_path / f'{name}.pth'))
