"""What is installed: by pip's records, and by importing it elsewhere."""
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata, util
from typing import NamedTuple

NEEDED = ('numpy', 'torch', 'mmengine', 'mmcv')
SHOWN = ('numpy', 'cv2', 'torch', 'torchvision', 'mmengine', 'mmcv',
         'mmpretrain', 'mmdet', 'timm')
SIBLINGS = ('mmseg', 'mmpose', 'mmrotate', 'mmaction', 'mmrazor')
OPERATORS = 'mmcv._ext'
# What an answer's line begins with: the packages may print lines of theirs.
MARK = '@sct_mm '
CHILD = r"""
import importlib, io, json, sys
sys.path[:] = json.loads(sys.argv[1])
def tell(**answer):
    print('\n@sct_mm ' + json.dumps(answer), flush=True)
for name in sys.argv[2:]:
    tell(begun=name)
    error = version = None
    try:
        module = importlib.import_module(name)
        version = getattr(module, '__version__', None)
        if name == 'torch' and hasattr(module, 'cuda') and (
                module.cuda.is_available()):
            tell(gpu=module.cuda.get_device_name())
        if name == 'mmcv._ext':
            built_for = getattr(module, 'get_compiling_cuda_version', str)()
            tell(cpu_operators=built_for == 'not available')
        if name == 'sct_mm':  # it allows the types of mmengine's checkpoints
            import torch
            from mmengine.logging import HistoryBuffer
            file = io.BytesIO()
            torch.save(HistoryBuffer([1.], [1]), file)
            torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    except BaseException as raised:
        first = (str(raised).strip() or 'no message').splitlines()[0]
        error = f'{type(raised).__name__}: {first}'
    tell(name=name, error=error, version=version and str(version))
"""


class Environment(NamedTuple):
    owners: dict[str, dict[str, str]]  # import -> distribution -> version
    versions: dict[str, set[str]]  # distribution -> versions in its folder
    errors: dict[str, str | None]  # import -> error; absent: not tried
    imported: dict[str, str | None]  # import -> its __version__
    gpu: str | None = None
    cpu_operators: bool = False  # mmcv's are compiled without CUDA

    def has(self, name: str) -> bool:
        return bool(self.owners.get(name)) or name in self.imported

    def version(self, name: str) -> str:
        return (self.imported.get(name)
                or next(iter(self.owners.get(name, {}).values()), ''))

    def onedl(self) -> bool:
        """Whether most of the hosts are OneDL's."""
        hosts = [owner for name in ('mmengine', 'mmpretrain', 'mmdet')
                 for owner in self.owners.get(name, ())]
        return sum(o.startswith('onedl') for o in hosts) * 2 > len(hosts)


def modules_of(distribution: metadata.Distribution) -> set[str]:
    """The top-level imports that a distribution owns. A package without an
    ``__init__`` may be shared, as NVIDIA's is."""
    declared = set((distribution.read_text('top_level.txt') or '').split())
    if not distribution.read_text('RECORD'):
        return declared
    paths = [file.parts for file in distribution.files or ()]
    if any(p[0].startswith('__editable__') for p in paths):
        return declared
    return {p[0].split('.')[0] for p in paths
            if len(p) == 2 and p[1] == '__init__.py'
            or len(p) == 1 and p[0].endswith(('.py', '.so', '.pyd'))}


def read_records() -> tuple[dict[str, dict[str, str]], dict[str, set[str]]]:
    """Who owns which import, and the versions that a folder records."""
    owners, versions, folders = {}, {}, {}
    for distribution in metadata.distributions():
        try:
            name = distribution.metadata['Name']
        except FileNotFoundError:  # as importlib_metadata says it
            name = None
        if not name:  # what an installation that was interrupted leaves
            continue
        name = re.sub('[-_.]+', '-', name).lower()
        folder = str(distribution.locate_file(''))
        if folders.setdefault(name, folder) != folder:
            continue  # hidden by the one before it on the path
        versions.setdefault(name, set()).add(distribution.version)
        for module in modules_of(distribution):
            owners.setdefault(module, {})[name] = distribution.version
    return owners, versions


def try_imports(names: list[str]) -> Iterator[dict]:
    """Import ``names`` in one process after another, until each has been
    imported, or has failed, or has killed its process."""
    while names:
        done = subprocess.run([sys.executable, '-c', CHILD,
                               json.dumps(sys.path), *names],
                              capture_output=True, text=True)
        answers = [json.loads(line[len(MARK):])
                   for line in done.stdout.splitlines()
                   if line.startswith(MARK)]
        yield from (a for a in answers if 'begun' not in a)
        if not done.returncode or not answers or 'begun' not in answers[-1]:
            return
        dead = answers[-1]['begun']
        code = done.returncode
        how = (f'signal {signal.Signals(-code).name}' if code < 0
               else f'exit code {code}')
        yield dict(name=dead, version=None, error=f'it ends Python: {how}')
        names = names[names.index(dead) + 1:]


def examine() -> Environment:
    owners, versions = read_records()
    names = [name for name in (*SHOWN, *SIBLINGS)
             if owners.get(name) or util.find_spec(name)]
    if 'mmcv' in names:
        names.insert(names.index('mmcv') + 1, OPERATORS)
    if set(NEEDED) <= set(names):
        names.append('sct_mm')
    errors, imported, told = {}, {}, {}
    for answer in try_imports(names):
        if 'name' not in answer:  # the GPU, or what serves it
            told.update(answer)
            continue
        errors[answer['name']] = answer['error']
        if not answer['error']:
            imported[answer['name']] = answer['version']
    return Environment(owners, versions, errors, imported, **told)
