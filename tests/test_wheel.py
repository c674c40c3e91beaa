"""The wheel holds the package, the users' configs and tools, and works in an
environment without the repository."""
import os
import os.path as osp
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from exports import fashion, write_idx

from sct_mm.apis import save_pretrained

SOURCES = ('sct_mm', 'configs', 'tools', 'setup.py', 'pyproject.toml',
           'README.md', 'LICENSE', 'model-index.yml')
DEMO = 'sct_resnet18_1xb128_fashion-mnist'
TOOLS = ('adapt', 'calibrate', 'export', 'hub', 'pick', 'test', 'train')
USES = """
import sys, sct_mm
print(sct_mm.__file__)
assert not set(sys.modules) & {'mmpretrain', 'mmdet', 'modelindex'}
from mmengine.config import Config
cfg = Config.fromfile('mine.py')
assert cfg.model.backbone.norm_cfg.scales == (224, 160), cfg.model
assert cfg.custom_hooks[1] == dict(type='SCTLossHook', recipe='any-size')
assert 'sct_mm' not in str(cfg.val_cfg), cfg.val_cfg
import torch
from sct_mm.apis import from_pretrained
assert from_pretrained('folder')(torch.zeros(1, 1, 14, 14)).shape == (1, 10)
"""


def ran(*command, **options):
    """All that a command says; it must end well."""
    env = {name: value for name, value in os.environ.items()
           if name != 'PYTHONPATH'}
    done = subprocess.run(list(map(str, command)), text=True,
                          capture_output=True, env=env, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def pip(*arguments):
    ran(sys.executable, '-m', 'pip', '--disable-pip-version-check',
        *arguments, '--no-index', '--no-deps')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """An sdist of a copy of the sources, and pip's wheels of both."""
    root = tmp_path_factory.mktemp('build')
    copy = root / 'copy'
    copy.mkdir()
    for name in SOURCES:
        if osp.isdir(osp.join(ROOT, name)):
            shutil.copytree(osp.join(ROOT, name), copy / name,
                            ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(osp.join(ROOT, name), copy)
    ran(sys.executable, '-c', 'from setuptools.build_meta import *; '
        f'build_sdist({str(root)!r})', cwd=copy)
    sdist, = root.glob('*.tar.gz')
    wheels = []
    for name, source in (('copy', copy), ('sdist', sdist)):
        out = root / f'wheel-of-{name}'
        pip('wheel', '--no-build-isolation', '-w', out, source)
        wheels += out.glob('*.whl')
    return wheels


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory):
    """Python of an environment with the wheel, and its site-packages; the
    hosts are those of the tests, without what `pip install -e` left there."""
    root = tmp_path_factory.mktemp('environment')
    ran(sys.executable, '-m', 'venv', '--without-pip', root)
    python = root / 'bin' / 'python'
    site = ran(python, '-c', 'import sysconfig; '
               'print(sysconfig.get_paths()["purelib"])').strip()
    # Of a folder that is named so, no .pth is run: from Python 3.12 on, that
    # of setuptools lends its distutils, which mmengine imports.
    with open(osp.join(site, 'hosts.pth'), 'w') as file:
        file.write(sysconfig.get_paths()['purelib'] + '\n')
        if sys.version_info >= (3, 12):
            file.write('import _distutils_hack; _distutils_hack.add_shim()\n')
    pip('--python', python, 'install', built[0])
    return python, site


def test_an_sdist_makes_the_same_wheel(built):
    wheel, other = (set(zipfile.ZipFile(path).namelist()) for path in built)
    assert wheel == other
    mim = {name.removeprefix('sct_mm/.mim/') for name in wheel
           if name.startswith('sct_mm/.mim/')}
    assert {name for name in mim if not name.startswith('configs/')} == {
        'model-index.yml', *(f'tools/{name}.py' for name in TOOLS)}
    assert {name for name in mim if name.startswith('configs/')} == {
        path.relative_to(ROOT).as_posix()
        for path in Path(ROOT, 'configs').rglob('*')
        if path.suffix in ('.py', '.yml')}
    assert 'sct_mm/py.typed' in wheel
    assert not any('figures' in name or 'test_' in osp.basename(name)
                   for name in wheel - {'sct_mm/apis/test_cascade.py'})
    # openmim looks for a config by its name alone
    configs = [name.rpartition('/')[2] for name in wheel if '/configs/'
               in name and '/_base_/' not in name]
    assert len(set(configs)) == len(configs)


def test_what_comes_with_the_package_is_found(installed, tmp_path):
    python, site = installed
    (tmp_path / 'mine.py').write_text(
        "_base_ = ['sct_mm::sct_resnet50_8xb32_in1k.py']\n"
        'model = dict(backbone=dict(norm_cfg=dict(scales=(224, 160))))\n'
        'val_cfg = _base_.val_cfg\n')
    config, checkpoint, _ = fashion(tmp_path)
    save_pretrained(config, checkpoint, str(tmp_path / 'folder'))
    said = ran(python, '-W', 'ignore', '-c', USES, cwd=tmp_path)
    assert said.splitlines()[0].startswith(site), said


def test_the_tools_are_modules(installed, tmp_path):
    said = ran(installed[0], '-m', 'sct_mm.tools.train', '--help',
               cwd=tmp_path)
    assert 'usage: train.py' in said and not os.listdir(tmp_path)


def test_openmim_trains(installed, tmp_path):
    """As `mim train sct_mm NAME.py`: a script and a config, found in .mim."""
    rng = np.random.default_rng(0)
    for split in ('train', 't10k'):
        write_idx(tmp_path / f'{split}-labels-idx1-ubyte', np.arange(10))
        write_idx(tmp_path / f'{split}-images-idx3-ubyte',
                  rng.integers(0, 99, (10, 28, 28)))
    mim = osp.join(installed[1], 'sct_mm', '.mim')
    loaders = [f'{name}_dataloader' for name in ('train', 'val', 'test')]
    ran(installed[0], osp.join(mim, 'tools', 'train.py'),
        osp.join(mim, 'configs', f'{DEMO}.py'), '--launcher', 'none',
        '--no-validate', '--cfg-options', 'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=10',
        *(f'{name}.dataset.data_root={tmp_path}' for name in loaders),
        cwd=tmp_path)
    assert (tmp_path / 'work_dirs' / DEMO / 'epoch_1.pth').is_file()
