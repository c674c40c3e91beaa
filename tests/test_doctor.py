"""The doctor finds conflicts in environments that are made here, by hand."""
import subprocess
import sys
from importlib import metadata

import pytest
from conftest import ROOT

from sct_mm.doctor import DISTRIBUTIONS, owners_of_imports

GPU = """class cuda:
    is_available, get_device_name = lambda: True, lambda: 'Hopper'
"""
KILLED = 'import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n'


def put(folder, distribution, version, module, code='', part='__init__'):
    """One more installed distribution, with a module and its record."""
    (folder / module).mkdir(exist_ok=True)
    (folder / module / f'{part}.py').write_text(
        f"__version__ = '{version}'\n{code}\n")
    record = folder / f'{distribution.replace("-", "_")}-{version}.dist-info'
    record.mkdir()
    (record / 'METADATA').write_text(
        f'Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n')
    (record / 'RECORD').write_text(f'{module}/{part}.py,,\n')


def run(folder, *command):
    """The answer where ``folder`` is all that is installed (-S)."""
    done = subprocess.run([sys.executable, '-S', *command], cwd=folder,
                          capture_output=True, text=True,
                          env={'PYTHONPATH': f'{folder}:{ROOT}'})
    return done.returncode, done.stdout + done.stderr


CASES = {
    'two mmcv': (
        [('mmcv', '2.1.0', 'mmcv'), ('mmcv-lite', '2.1.0', 'mmcv')],
        ['mmcv comes from mmcv and mmcv-lite, which overwrite one another',
         'uninstall -y mmcv mmcv-lite',
         'install --no-deps --force-reinstall mmcv-lite==2.1.0']),
    'two mmcv for mmdet': (
        [('mmcv', '2.1.0', 'mmcv'), ('mmcv-lite', '2.1.0', 'mmcv'),
         ('mmdet', '3.3.0', 'mmdet')],
        ['MMCV_WITH_OPS=1', '--no-binary mmcv mmcv==2.1.0']),
    'two lines of mmcv': (
        [('mmcv', '2.1.0', 'mmcv'), ('onedl-mmcv', '2.3.6', 'mmcv'),
         ('onedl-mmengine', '0.10.12', 'mmengine')],
        ['mmcv comes from mmcv and onedl-mmcv', 'onedl-mmcv==2.3.6']),
    'two mmengine': (
        [('mmengine', '0.10.7', 'mmengine'),
         ('mmengine-lite', '0.10.7', 'mmengine')],
        ['comes from mmengine and mmengine-lite', 'mmengine==0.10.7']),
    'two opencv': (
        [('opencv-python', '4.12.0', 'cv2'),
         ('opencv_python_headless', '4.12.0', 'cv2')],
        ['cv2 comes from opencv-python and opencv-python-headless',
         '--force-reinstall opencv-python-headless==4.12.0']),
    'another line than mmdet': (
        [('onedl-mmcv', '2.3.6', 'mmcv'), ('mmdet', '3.3.0', 'mmdet')],
        ['onedl-mmcv of OneDL and mmdet of OpenMMLab do not go together',
         'uninstall -y onedl-mmcv', '[detection]']),
    'another line than mmengine': (
        [('onedl-mmengine', '0.10.12', 'mmengine'),
         ('onedl-mmpretrain', '1.3.6', 'mmpretrain'),
         ('mmdet', '3.3.0', 'mmdet')],
        ['onedl-mmengine and onedl-mmpretrain of OneDL and mmdet of',
         'uninstall -y mmdet', '[onedl-detection]']),
    'no operators': (
        [('mmcv', '2.1.0', 'mmcv'),
         ('mmdet', '3.3.0', 'mmdet', 'import mmcv._ext')],
        ['mmcv has no compiled operators, but mmdet needs them',
         'MMCV_WITH_OPS=1']),
    'operators for another torch': (
        [('mmcv', '2.1.0', 'mmcv'), ('mmdet', '3.3.0', 'mmdet'),
         ('ops', '1', 'mmcv', "raise ImportError('undefined symbol: _ZN')",
          '_ext')],
        ['unusable compiled operators (ImportError: undefined symbol: _ZN)']),
    'operators that no GPU runs': (
        [('torch', '2.11.0', 'torch', GPU), ('mmcv', '2.1.0', 'mmcv'),
         ('ops', '1', 'mmcv',
          "get_compiling_cuda_version = lambda: 'not available'", '_ext'),
         ('mmdet', '3.3.0', 'mmdet')],
        ['(compiled without CUDA, but torch sees a GPU), but mmdet needs',
         'MMCV_WITH_OPS=1 FORCE_CUDA=1', '--no-binary mmcv mmcv==2.1.0']),
    'killed': (
        [('numpy', '2.4.6', 'numpy', KILLED), ('torch', '2.11.0', 'torch')],
        ['numpy cannot be imported (it ends Python)', 'torch 2.11.0']),
    'a library of a desktop': (
        [('opencv-python', '4.12.0', 'cv2',
          "raise ImportError('libGL.so.1: cannot open shared object file')")],
        ['cv2 cannot be imported (ImportError: libGL.so.1']),
    'one cause of two': (
        [('torch', '2.11.0', 'torch', "raise OSError('libcudart')"),
         ('timm', '1', 'timm', 'import torch')],
        ['torch, timm cannot be imported (OSError: libcudart)',
         '[classification]']),
    'what is not required': (
        [('mmengine', '0.10.7', 'mmengine'),
         ('onedl-mmdetection', '3.5.1', 'mmdet')],
        ['mmengine uses pkg_resources without requiring it',
         "'setuptools<81'", 'onedl-mmdetection uses faster_coco_eval']),
    'nothing': (
        [], ['sct_mm needs numpy and torch and mmengine and mmcv, but',
             'install', '[classification]']),
}


@pytest.mark.parametrize('installed, told', CASES.values(), ids=CASES)
def test_conflict_and_what_fixes_it(tmp_path, installed, told):
    for one in installed:
        put(tmp_path, *one)
    code, output = run(tmp_path, '-m', 'sct_mm.doctor')
    assert code == 1 and 'Traceback' not in output, output
    for words in told:
        assert words in output, output
    assert "No module named 'mmcv._ext'" not in output


def test_what_a_package_prints_is_no_answer(tmp_path):
    put(tmp_path, 'mmcv', '2.1.0', 'mmcv', "print('@sct_mm', end='')")
    put(tmp_path, 'torch', '2.11.0', 'torch', "print('{}')")
    code, output = run(tmp_path, '-m', 'sct_mm.doctor')
    assert code == 1 and 'Traceback' not in output
    assert '  mmcv 2.1.0\n' in output and 'cannot be imported' not in output


def test_the_import_names_the_doctor(tmp_path):
    code, output = run(tmp_path, '-c', 'import sct_mm')
    assert code == 1 and 'Run `python -m sct_mm.doctor`' in output


def test_it_takes_no_options():
    code, output = run(ROOT, '-m', 'sct_mm.doctor', '--fix')
    assert code == 2 and 'unrecognized arguments: --fix' in output


def test_here_nothing_conflicts():
    done = subprocess.run([sys.executable, '-m', 'sct_mm.doctor'], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith('Nothing conflicts.\n')
    owners = metadata.packages_distributions()
    for name in filter(owners.get, DISTRIBUTIONS):
        for distribution in set(owners[name]):
            version = metadata.version(distribution)
            assert f'  {distribution} {version}\n' in done.stdout


def test_a_record_without_a_version_is_passed_over(tmp_path, monkeypatch):
    """An installation that was interrupted leaves such a record."""
    (tmp_path / 'mmcv_full-1.0.dist-info').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert 'mmcv-full' not in owners_of_imports()['mmcv']
