"""sct_mm.runtime works in an environment of numpy and onnxruntime alone."""
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from exports import tiny_files, tiny_network

from sct_mm.runtime import Predictor

USES = """
import json, sys
from sct_mm.runtime import Predictor
third = {name.partition('.')[0] for name, module in sys.modules.items()
         if 'site' in (getattr(module, '__file__', None) or '')}
import numpy
image = numpy.arange(30 * 40 * 3, dtype=numpy.uint8).reshape(30, 40, 3)
one = Predictor(sys.argv[1], 12)(image)
found = Predictor(sys.argv[1], cascade=(8, 16), thresholds=0.6
                  ).predict([image, image[::-1]])
print(json.dumps(dict(
    third=sorted(third), one=one.tolist(), scores=found.scores.tolist(),
    sizes=found.sizes.tolist(),
    heavy=sorted(set(sys.modules) & {'torch', 'mmengine', 'mmcv', 'PIL',
                                     'matplotlib', 'rich'}))))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tiny_files(tiny_network(), tmp_path_factory.mktemp('files'))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Run Python code where nothing but the named packages is installed."""

    def run(code, *arguments, packages=('numpy', 'onnxruntime')):
        site = tmp_path_factory.mktemp('environment') / 'site'
        site.mkdir()
        for name in packages:
            folder = Path(importlib.util.find_spec(name).origin).parent
            for each in (folder, folder.with_name(f'{name}.libs')):
                if each.is_dir():
                    (site / each.name).symlink_to(each)
        (site / 'sct_mm').symlink_to(Path(ROOT, 'sct_mm'))
        done = subprocess.run(
            [sys.executable, '-S', '-W', 'error', '-c', code, *arguments],
            capture_output=True, text=True, cwd=site,
            env={'PYTHONPATH': str(site), 'OMP_NUM_THREADS': '1',
                 'PATH': os.environ['PATH']})
        return done.returncode, done.stdout, done.stderr

    return run


def test_it_runs_as_here(run, folder):
    code, output, errors = run(USES, str(folder))
    assert code == 0, errors
    found = json.loads(output)
    assert not found['heavy']
    # So its import takes as long as that of numpy.
    assert set(found['third']) == {'numpy', 'sct_mm'}
    image = np.arange(3600, dtype=np.uint8).reshape(30, 40, 3)
    np.testing.assert_allclose(
        found['one'], Predictor(str(folder), 12)(image), atol=1e-6)
    want = Predictor(str(folder), cascade=(8, 16), thresholds=0.6
                     ).predict([image, image[::-1]])
    np.testing.assert_allclose(found['scores'], want.scores, atol=1e-6)
    assert found['sizes'] == want.sizes.tolist()


def test_everything_else_names_the_doctor(run):
    code, output, errors = run('import sct_mm; sct_mm.__version__\n'
                               'from sct_mm import SSBN')
    assert code == 1 and "(No module named 'torch'). Run `python" in errors
    assert "run pip install 'sct_mm[runtime]'" in errors
    code, output, errors = run('import sct_mm; sct_mm.none')
    assert code == 1 and "'sct_mm' has no attribute 'none'" in errors


def test_without_onnxruntime(run):
    code, output, errors = run('import sct_mm.runtime', packages=('numpy', ))
    assert code == 1
    assert "run pip install 'sct_mm[runtime]'" in errors.splitlines()[-1]
