"""Processes that find torch and the hosts imported, which takes each five
seconds: forks of multiprocessing's server."""
import multiprocessing
import os
import os.path as osp
import resource
import runpy
import sys
import tempfile
from pathlib import Path

import torch

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
multiprocessing.set_forkserver_preload([
    'sct_mm.apis', 'mmpretrain.apis', 'mmdet.apis', 'matplotlib.figure'])


def in_two_processes(work, *arguments):
    """Run work(rank, *arguments) in two processes until both have ended."""
    torch.multiprocessing.start_processes(work, arguments, 2,
                                          start_method='forkserver')


def run(script, *arguments, cwd=ROOT, limit=None, **environment):
    """Run ``python script arguments``, which may write files of ``limit``
    bytes; returns (exit code, all its output)."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ('output', 'errors')]
        process = multiprocessing.get_context('forkserver').Process(
            target=_become, args=(
                [osp.join(ROOT, script), *map(str, arguments)], str(cwd),
                files, limit, {**os.environ, 'PYTHONPATH': ROOT,
                               'COLUMNS': '120', **environment}))
        process.start()
        process.join()
        return process.exitcode, ''.join(f.read_text() for f in files)


def _become(argv, cwd, files, limit, environment):
    """Make of this process one that was started so."""
    for number, name in enumerate(files, 1):
        file = os.open(name, os.O_CREAT | os.O_WRONLY, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    own = tuple(osp.join(ROOT, name, '') for name in ('tests', 'tools'))
    sys.path[:] = [osp.dirname(argv[0]), *(
        path for path in sys.path if not osp.join(path, '').startswith(own))]
    sys.argv = argv
    multiprocessing.set_start_method(None, force=True)  # the default
    from sct_mm.evaluation import measure
    measure.SECONDS = 0.0  # as in conftest
    runpy.run_path(argv[0], run_name='__main__')
