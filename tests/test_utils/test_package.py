"""Configs and tools of the package are found in the repository."""
import importlib
import os.path as osp
import re

import mmpretrain
import pytest
from conftest import ROOT
from mmengine.config import Config

from sct_mm.utils import package
from sct_mm.utils.config import config_name, load_config
from sct_mm.utils.errors import UserError

NAME = 'sct_resnet18_1xb128_fashion-mnist'


def test_tools_are_modules():
    pick = importlib.import_module('sct_mm.tools.pick')
    assert pick.__file__ == osp.join(ROOT, 'tools', 'pick.py')
    assert pick.parse_args(['scales.json', '--max-latency', '5ms'])


def test_a_config_by_its_name_is_the_file_itself(tmp_path):
    want = Config.fromfile(osp.join(ROOT, 'configs', f'{NAME}.py'))
    assert load_config(f'sct_mm::{NAME}.py').to_dict() == want.to_dict()
    (tmp_path / 'mine.py').write_text(f"_base_ = ['sct_mm::{NAME}.py']\n"
                                      'hooks = _base_.custom_hooks\n')
    mine = load_config(str(tmp_path / 'mine.py'))
    assert mine.pop('hooks') == want.custom_hooks  # and no scope of ours
    assert mine.to_dict() == want.to_dict()
    assert config_name(f'sct_mm::more/{NAME}.py') == NAME
    assert config_name(f'configs/{NAME}.py') == NAME


def test_a_config_of_a_host_by_its_name():
    name = 'resnet/resnet18_8xb32_in1k.py'
    stock = load_config(f'mmpretrain::{name}')
    assert stock.to_dict() == Config.fromfile(osp.join(osp.dirname(
        mmpretrain.__file__), '.mim', 'configs', name)).to_dict()
    assert config_name(f'mmpretrain::{name}') == 'resnet18_8xb32_in1k'
    for none in ('mmpretrain::resnet/none.py', 'none::resnet/none.py'):
        with pytest.raises(UserError, match=f"file, but got '{none}'"):
            load_config(none)


def test_a_config_that_is_none_is_named(tmp_path):
    with pytest.raises(UserError, match="file, but got 'sct_mm::none.py'"):
        load_config('sct_mm::none.py')
    (tmp_path / 'mine.py').write_text("_base_ = ['sct_mm::none.py']")
    with pytest.raises(UserError, match="got 'sct_mm::none.py'"):
        load_config(str(tmp_path / 'mine.py'))
    (tmp_path / 'other.py').write_text("_base_ = ['sct_nn::a/none.py']")
    with pytest.raises(UserError, match='sct_nn'):
        load_config(str(tmp_path / 'other.py'))


def test_commands_are_for_the_repository_or_for_anywhere(monkeypatch):
    assert package.tool_command('test') == ['python', 'tools/test.py']
    assert package.config_path(f'sct_mm::{NAME}.py') == osp.join(
        ROOT, 'configs', f'{NAME}.py')
    monkeypatch.setattr(package, '_INSTALLED', ROOT)  # a folder
    assert package.tool_command('test', 'py') == ['py', '-m',
                                                  'sct_mm.tools.test']


@pytest.mark.parametrize('version', ['2.7.0', '2.11.0+cu128', '3.0.0a0'])
def test_a_torch_of_today(version):
    package.check_torch(version)


@pytest.mark.parametrize('version', ['1.13.1', '2.6.0+cpu'])
def test_a_torch_that_is_too_old(version):
    with pytest.raises(ImportError, match='must be of version 2.7 at least, '
                       f'but is {re.escape(version)}'):
        package.check_torch(version)


def test_to_be_introduced_twice_changes_nothing():
    find = Config._get_cfg_path
    package.introduce()
    assert Config._get_cfg_path is find
