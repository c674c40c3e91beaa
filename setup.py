"""Installs sct_mm; its extras install the OpenMMLab packages."""
import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'",
                    (ROOT / 'sct_mm/__init__.py').read_text()).group(1)

# The two stacks with which the tests run, both with rich and matplotlib, which
# mmengine requires. torch 2.11 is the newest for which
# there is a torchvision and against which mmcv 2.1 compiles.
TORCH = ['torch==2.11.*', 'torchvision==0.26.*']
UPSTREAM = [*TORCH, 'mmengine==0.10.*', 'mmpretrain==1.2.*']
# The wheel of OneDL's mmcv has no compiled operators.
ONEDL = [*TORCH, 'onedl-mmengine==0.10.*', 'onedl-mmpretrain==1.3.*',
         'onedl-mmcv==2.3.*', 'numpy==2.2.*', 'opencv-python==4.12.*']

# torch.onnx.export needs onnxscript; onnxruntime runs the file that it makes.
RUNTIME = ['numpy', 'onnxruntime']
EXPORT = ['onnx', 'onnxscript', 'onnxruntime', 'safetensors']
TIMM = ['timm==1.0.*']

# The users' configs and tools; openmim looks for them in `.mim` of an
# installed package. The folders below tools/ are for this repository only.
SHIPPED = ('model-index.yml', 'configs/**/*.py', 'configs/**/*.yml',
           'tools/*.py')


class BuildWithMim(build_py):
    """Copies the files of SHIPPED into the package that is built.

    setuptools asks it which source files belong to an sdist. An editable
    install reads the files in the repository (sct_mm/utils/package.py).
    """

    def _copies(self):
        """{path in the build: path in the repository}"""
        if self.editable_mode:
            return {}
        folder = Path(self.build_lib, 'sct_mm', '.mim')
        return {str(folder / path): path for path in self._shipped()}

    @staticmethod
    def _shipped():
        return sorted(path.relative_to(ROOT).as_posix() for pattern in SHIPPED
                      for path in ROOT.glob(pattern))

    def run(self):
        super().run()
        for target, source in self._copies().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target, preserve_mode=False)

    def get_source_files(self):
        return super().get_source_files() + self._shipped()

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + list(self._copies())

    def get_output_mapping(self):
        return {**super().get_output_mapping(), **self._copies()}


setup(
    name='sct_mm',
    version=VERSION,
    description='Scale Calibrated Training for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    project_urls={'Paper': 'https://arxiv.org/abs/1909.00182'},
    keywords='OpenMMLab, multi-scale training, batch normalization',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        *(f'Programming Language :: Python :: 3.{minor}'
          for minor in (10, 11, 12)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    cmdclass={'build_py': BuildWithMim},
    packages=find_packages(include=['sct_mm*']),
    package_data={'sct_mm': ['py.typed']},
    python_requires='>=3.10',
    # mmengine and mmcv are imported, but several distributions install them
    # (mmcv, mmcv-lite, OneDL's forks): requiring one would replace another.
    # A machine that only runs exported files has no torch; elsewhere
    # sct_mm.utils.package asks for its version.
    install_requires=['numpy'],
    extras_require={
        'classification': [*UPSTREAM, 'mmcv-lite==2.1.*'],
        # PyPI has no wheel of mmcv with compiled operators: `make test`
        # builds it.
        'detection': [*UPSTREAM, 'mmcv==2.1.*', 'mmdet==3.3.*'],
        'onedl': ONEDL,
        # OneDL's mmdet imports faster-coco-eval without requiring it.
        'onedl-detection': [*ONEDL, 'onedl-mmdetection==3.5.*',
                            'faster-coco-eval==1.*'],
        'export': EXPORT,
        'runtime': RUNTIME,  # sct_mm.runtime alone
        'timm': TIMM,  # networks of mmpretrain's TIMMBackbone
        'docs': ['mkdocs-material==9.*'],
        'test': [*TORCH, *EXPORT, *TIMM, 'pytest', 'pytest-xdist',
                 'hypothesis', 'ruff', 'mypy==2.4.*', 'tensorboard'],
    },
)
