"""Install the sibling hosts of hosts.txt into a folder, for tests/test_hosts.

    python tools/dev/install_hosts.py FOLDER

The hosts are older than the torch, numpy and mmdet with which sct_mm is
tested: EDITS lists what is changed in their files to import them, and ADDED
which modules they lack. Nothing that is tested is changed.
"""
import argparse
import os
import os.path as osp
import shutil
import subprocess
import sys
from typing import NamedTuple

from sct_mm.utils.cli import cli
from sct_mm.utils.errors import UserError

REQUIREMENTS = osp.join(osp.dirname(__file__), 'hosts.txt')


class Edit(NamedTuple):
    """`old` is replaced by `new` in `file` of `host`, for `reason`."""
    host: str
    file: str
    old: str
    new: str
    reason: str


class Added(NamedTuple):
    """`text` becomes the new `file`, which `host` imports, for `reason`."""
    host: str
    file: str
    text: str
    reason: str


QUANTIZATION = 'its quantization imports what torch 2 has removed'

EDITS = (
    Edit('mmyolo', 'mmyolo/__init__.py',
         "mmcv_maximum_version = '2.1.0'", "mmcv_maximum_version = '2.2.0'",
         'the bound on mmcv excludes 2.1.0, which it works with'),
    Edit('mmrotate', 'mmrotate/__init__.py',
         "mmdet_maximum_version = '3.1.0'", "mmdet_maximum_version = '3.4.0'",
         'the bound on mmdet excludes 3.3.0, which it works with'),
    Edit('mmocr', 'mmocr/__init__.py',
         "mmdet_maximum_version = '3.2.0'", "mmdet_maximum_version = '3.4.0'",
         'the bound on mmdet excludes 3.3.0, which it works with'),
    Edit('mmrotate', 'mmrotate/models/detectors/refine_single_stage.py',
         'from collections import Sequence',
         'from collections.abc import Sequence',
         'Python 3.10 has removed the name'),
    Edit('mmpose', 'xtcocotools/mask.py', 'import xtcocotools._mask as _mask',
         'import pycocotools._mask as _mask',
         'its binary is compiled against numpy 1'),
    *(Edit('mmrazor', f'mmrazor/{file}',
           "digit_version(torch.__version__) >= digit_version('1.13.0')",
           "digit_version(torch.__version__) == digit_version('1.13.0')",
           QUANTIZATION)
      for file in ('models/quantizers/native_quantizer.py',
                   'structures/quantization/backend_config/mapping.py',
                   'structures/quantization/backend_config/'
                   'common_operator_config_utils.py')),
)

# What a host needs only to be imported, and calls in nothing that is tested.
CANNOT = """\
def {name}(*args, **kwargs):
    raise NotImplementedError('{name} is not installed: a stub stands here.')
"""
JIT = """\
def jit(*args, **kwargs):
    return args[0] if args and callable(args[0]) else lambda call: call


njit = jit
"""
ADDED = (
    Added('mmaction2', 'mmaction/models/localizers/drn/drn.py',
          'class DRN:\n    """Not in the wheel of mmaction2 1.2.0."""\n',
          'its wheel lacks the module'),
    Added('mmocr', 'skimage/morphology.py', CANNOT.format(name='skeletonize'),
          'only the postprocessor of TextSnake calls it'),
    Added('mmocr', 'imgaug/augmenters/__init__.py',
          'class meta:\n    Augmenter = object\n',
          'imgaug, for ImgAugWrapper only, needs numpy 1'),
    Added('mmrazor', 'joblib.py',
          ''.join(CANNOT.format(name=name) for name in ('dump', 'load')),
          'only its predictors of metrics call it'),
    Added('mmdet3d', 'numba.py', JIT,
          'it only makes functions faster; its data sets need more, and are '
          'not tested'),
)

# Top-level packages of the wheels that are no part of the hosts.
SURPLUS = ('tests', 'bin')


def install(folder):
    """Install what REQUIREMENTS lists into `folder`, without dependencies."""
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet',
                    '--no-deps', '--pre', '--target', folder,
                    '-r', REQUIREMENTS], check=True)


def change(folder):
    """Make EDITS and ADDED in the hosts of `folder`.

    Raises:
        UserError: If a file has nothing to change, or is there already.
    """
    for name in SURPLUS:
        shutil.rmtree(osp.join(folder, name), ignore_errors=True)
    for edit in EDITS:
        path = osp.join(folder, edit.file)
        with open(path, encoding='utf-8') as file:
            text = file.read()
        if edit.old not in text:
            raise UserError(f'`EDITS` must name what {path} has, but it has '
                            f'no {edit.old!r}: change the entry of '
                            f'{edit.host}, or remove it')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text.replace(edit.old, edit.new))
    for added in ADDED:
        path = osp.join(folder, added.file)
        if osp.exists(path):
            raise UserError(f'`ADDED` must name what {added.host} lacks, but '
                            f'{path} is there: remove the entry')
        os.makedirs(osp.dirname(path), exist_ok=True)
        with open(path, 'w', encoding='utf-8') as file:
            file.write(added.text)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', help='it must not exist')
    return parser.parse_args()


def main():
    folder = parse_args().folder
    if osp.exists(folder):
        raise UserError(f'`folder` must be new, but {folder} exists: remove '
                        'it')
    install(folder)
    change(folder)


if __name__ == '__main__':
    cli(main)
