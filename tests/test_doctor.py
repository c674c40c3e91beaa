"""The doctor reads records that are made here, by hand, as pip writes them."""
import subprocess
import sys
from importlib import metadata

import pytest
from conftest import ROOT

from sct_mm.doctor.checks import conflicts_of
from sct_mm.doctor.environment import SHOWN, Environment

BOUNDS = """mmcv_minimum_version = '2.0.0rc4'
mmcv_maximum_version = '2.2.0'
import mmcv
assert mmcv.__version__ < '2.2.0', f'MMCV=={mmcv.__version__} is used but incompatible.'
"""  # noqa: E501
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
    'two lines': (
        [('mmcv', '2.1.0', 'mmcv'), ('onedl-mmcv', '2.3.6', 'mmcv'),
         ('onedl-mmengine', '0.10.12', 'mmengine')],
        ['mmcv comes from mmcv and onedl-mmcv', 'onedl-mmcv==2.3.6']),
    'a torchvision for another torch': (
        [('torch', '2.11.0', 'torch'), ('torchvision', '0.21.0', 'torchvision',
          "raise RuntimeError('operator torchvision::nms does not exist')")],
        ['torchvision cannot be imported', 'no pip', '-m ensurepip',
         'install torch==2.11.0 torchvision']),
    'two mmengine': (
        [('mmengine', '0.10.7', 'mmengine'),
         ('mmengine-lite', '0.10.7', 'mmengine')],
        ['comes from mmengine and mmengine-lite', 'mmengine==0.10.7']),
    'two opencv': (
        [('opencv-python', '4.12.0', 'cv2'),
         ('opencv_python_headless', '4.12.0', 'cv2')],
        ['cv2 comes from opencv-python and opencv-python-headless',
         '--force-reinstall opencv-python-headless==4.12.0']),
    'two of anything': (
        [('left', '1', 'shared'), ('right', '1', 'shared')],
        ['shared comes from left and right']),
    'two records': (
        [('torch', '2.10.0', 'torch'), ('torch', '2.11.0', 'torch')],
        ['torch is recorded as 2.10.0 and as 2.11.0', 'torch==2.11.0']),
    'mmcv out of bounds': (
        [('mmcv', '2.2.0', 'mmcv'), ('mmdet', '3.3.0', 'mmdet', BOUNDS)],
        ['mmdet 3.3.0 wants mmcv>=2.0.0rc4,<2.2.0, but got 2.2.0',
         "'mmcv>=2.0.0rc4,<2.2.0'"]),
    'another line than the host': (
        [('onedl-mmcv', '2.3.6', 'mmcv'),
         ('mmdet', '3.3.0', 'mmdet', BOUNDS)],
        ['mmdet 3.3.0 wants mmcv>=2.0.0rc4,<2.2.0, but got 2.3.6',
         'uninstall -y mmdet', 'onedl-mmdetection']),
    'no operators': (
        [('mmcv', '2.1.0', 'mmcv'), ('mmdet', '3.3.0', 'mmdet')],
        ['mmcv has no compiled operators, but mmdet needs them',
         'MMCV_WITH_OPS=1']),
    'operators for another torch': (
        [('mmcv', '2.1.0', 'mmcv'),
         ('ops', '1', 'mmcv', "raise ImportError('undefined symbol: _ZN')",
          '_ext')],
        ['operators for another torch (ImportError: undefined symbol: _ZN)']),
    'operators that no GPU runs': (
        [('torch', '2.11.0', 'torch', GPU), ('mmcv', '2.1.0', 'mmcv'),
         ('ops', '1', 'mmcv',
          "get_compiling_cuda_version = lambda: 'not available'", '_ext'),
         ('mmdet', '3.3.0', 'mmdet')],
        ['torch sees a GPU (Hopper), but the operators of mmcv are compiled '
         'without CUDA: mmdet stops there',
         'MMCV_WITH_OPS=1 FORCE_CUDA=1', '--no-binary mmcv mmcv==2.1.0']),
    'killed': (
        [('numpy', '2.4.6', 'numpy', KILLED), ('torch', '2.11.0', 'torch')],
        ['numpy cannot be imported (it ends Python: signal SIGSEGV)',
         'torch       2.11.0']),
    'a library of a desktop': (
        [('opencv-python', '4.12.0', 'cv2',
          "raise ImportError('libGL.so.1: cannot open shared object file')")],
        ['cv2 cannot be imported (ImportError: libGL.so.1',
         'uninstall -y opencv-python', 'opencv-python-headless']),
    'another numpy': (
        [('opencv-python', '4.8.0', 'cv2',
          "raise ImportError('numpy.core.multiarray failed to import')")],
        ['cv2 cannot be imported (ImportError: numpy.core.multiarray',
         'install --upgrade opencv-python numpy']),
    'one cause of two': (
        [('torch', '2.11.0', 'torch', "raise OSError('libcudart')"),
         ('timm', '1', 'timm', 'import torch')],
        ['torch, timm cannot be imported (OSError: libcudart)',
         '--force-reinstall --no-deps torch==2.11.0']),
    'a part of a package': (
        [('mmengine', '0.10.7', 'mmengine', 'import addict')],
        ["mmengine cannot be imported (ModuleNotFoundError: No module named "
         "'addict')", 'pip install addict']),
    'an old torch': (
        [('torch', '2.5.1', 'torch')],
        ['torch 2.5.1 runs the code in a checkpoint', "'torch>=2.7'"]),
    'a torch that does not tell an export': (
        [('torch', '2.6.0', 'torch')],
        ['torch 2.6.0 does not tell a layer that it is exported',
         "'torch>=2.7'"]),
    'what is not required': (
        [('mmengine', '0.10.7', 'mmengine'),
         ('onedl-mmdetection', '3.5.1', 'mmdet')],
        ['mmengine uses pkg_resources without requiring it',
         "'setuptools<81'", 'onedl-mmdetection uses faster_coco_eval']),
    'nothing': (
        [], ['sct_mm needs numpy and torch and mmengine and mmcv']),
}


@pytest.mark.parametrize('installed, told', CASES.values(), ids=CASES)
def test_conflict_and_what_fixes_it(tmp_path, installed, told):
    for one in installed:
        put(tmp_path, *one)
    code, output = run(tmp_path, '-m', 'sct_mm.doctor')
    assert code == 1 and 'Traceback' not in output, output
    for words in told:
        assert words in output, output
    assert 'is used but incompatible' not in output  # it was told before


def test_what_a_package_prints_is_no_answer(tmp_path):
    put(tmp_path, 'mmcv', '2.1.0', 'mmcv', "print('@sct_mm', end='')")
    put(tmp_path, 'torch', '2.11.0', 'torch', "print('{}')")
    code, output = run(tmp_path, '-m', 'sct_mm.doctor')
    assert code == 1 and 'Traceback' not in output
    assert 'mmcv        2.1.0           mmcv 2.1.0' in output


def test_a_torch_that_refuses_checkpoints():
    env = Environment({'torch': {'torch': '9.0'}}, {},
                      {'sct_mm': 'UnpicklingError: Unsupported global'}, {})
    whats = [conflict.what for conflict in conflicts_of(env)]
    assert any('torch 9.0 refuses the checkpoints' in what for what in whats)


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
    for name in filter(owners.get, SHOWN):
        row = [line.split() for line in done.stdout.splitlines()
               if line.startswith(f'  {name} ')][0]
        assert [row[2]] == list(dict.fromkeys(owners[name]))
        assert row[3].rstrip(',') == metadata.version(row[2])


def test_a_record_without_a_name_is_passed_over(tmp_path, monkeypatch):
    """As an installation that was interrupted leaves."""
    from sct_mm.doctor.environment import read_records
    (tmp_path / 'broken-1.0.dist-info').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert 'torch' in read_records()[0]
