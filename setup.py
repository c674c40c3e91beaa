"""Installs sct_mm; the OpenMMLab packages come by an extra or by yourself."""
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'",
                    (ROOT / 'sct_mm/__init__.py').read_text()).group(1)

# The combination that the tests run with. torch 2.11 is the newest that
# torchvision has a build for and that mmcv 2.1 compiles against.
OPENMMLAB = ['torch==2.11.*', 'torchvision==0.26.*', 'mmengine==0.10.*',
             'mmpretrain==1.2.*']
CLASSIFICATION = [*OPENMMLAB, 'mmcv-lite==2.1.*']
# mmcv with compiled operators has no wheel: `make test` builds it.
DETECTION = [*OPENMMLAB, 'mmcv==2.1.*', 'mmdet==3.3.*']

setup(
    name='sct_mm',
    version=VERSION,
    description='Scale Calibrated Training for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['sct_mm*']),
    python_requires='>=3.10',
    # mmengine and mmcv are imported, but have several distributions each
    # (mmcv, mmcv-lite, the onedl forks): none is forced on those who have one.
    install_requires=['torch>=2.5', 'numpy', 'rich', 'matplotlib'],
    extras_require=dict(
        classification=CLASSIFICATION,
        detection=DETECTION,
        test=[*OPENMMLAB, 'pytest', 'hypothesis', 'ruff']),
)
