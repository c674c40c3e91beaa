"""Hooks of a base config that `custom_hooks` drops."""
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from sct_mm.apis.train import warn_of_lost_hooks
from sct_mm.utils.lost_hooks import lost_hooks

YOLOX = "_base_ = ['mmdet::yolox/yolox_s_8xb8-300e_coco.py']\n"
OURS = "dict(type='SCTLossHook')"


def config(folder, text, name='a.py'):
    path = folder / name
    path.write_text(text)
    return Config.fromfile(path)


@pytest.mark.filterwarnings('ignore:pkg_resources')
@pytest.mark.parametrize('text, lost', [
    (f'{YOLOX}custom_hooks = [{OURS}]',
     ['YOLOXModeSwitchHook', 'SyncNormHook', 'EMAHook']),
    (f'{YOLOX}custom_hooks = [_base_.custom_hooks[2], {OURS}]',
     ['YOLOXModeSwitchHook', 'SyncNormHook']),
    (f'{YOLOX}custom_hooks = [*_base_.custom_hooks, {OURS}]', []),
    (YOLOX, [])])
def test_hooks_of_a_host_that_a_list_replaces(text, lost, tmp_path):
    cfg = config(tmp_path, text)
    assert lost_hooks(cfg) == lost
    if lost:
        with pytest.warns(UserWarning, match=f'drops {", ".join(lost)}. '):
            warn_of_lost_hooks(cfg)
    else:
        warn_of_lost_hooks(cfg)


def test_hooks_of_bases_of_bases_and_of_relative_modules(tmp_path):
    hooks = "custom_hooks = [dict(type='EMAHook'), dict(type='EpochSeedHook')]"
    config(tmp_path, hooks, 'far.py')
    config(tmp_path, "_base_ = './far.py'\ncustom_hooks = []", 'near.py')
    cfg = config(tmp_path, f"_base_ = ['near.py']\ncustom_hooks = [{OURS}]")
    assert lost_hooks(cfg) == ['EMAHook', 'EpochSeedHook']
    with pytest.warns(UserWarning, match='drops EMAHook. '):  # not our own
        warn_of_lost_hooks(cfg)
    module = config(tmp_path, 'from mmengine.config import read_base\n'
                    'with read_base():\n    from .far import *\n'
                    f'custom_hooks = [{OURS}]', 'module.py')
    assert lost_hooks(module) == ['EMAHook', 'EpochSeedHook']


def test_hooks_of_a_package_that_is_imported(tmp_path, monkeypatch):
    """What that package has dropped itself is not lost."""
    folder = tmp_path / 'hostlike'
    folder.mkdir()
    (folder / '__init__.py').write_text('')
    config(folder, "custom_hooks = [dict(type='EMAHook')]", 'far.py')
    config(folder, "_base_ = './far.py'\n"
           "custom_hooks = [dict(type='SyncNormHook')]", 'near.py')
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / 'a.py'
    path.write_text('from mmengine.config import read_base\n'
                    'with read_base():\n    from hostlike.near import *\n')
    cfg = SimpleNamespace(filename=str(path), get=lambda name: [])
    assert lost_hooks(cfg) == ['SyncNormHook']


def test_what_trains_without_sct_or_has_no_file_is_silent(tmp_path):
    config(tmp_path, "custom_hooks = [dict(type='EMAHook')]", 'far.py')
    warn_of_lost_hooks(config(tmp_path, "_base_ = './far.py'\n"
                              "custom_hooks = [dict(type='EpochSeedHook')]"))
    assert lost_hooks(Config(dict(custom_hooks=[]))) == []
