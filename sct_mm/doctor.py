"""``python -m sct_mm.doctor``: find packages that conflict or that sct_mm
lacks, and print the commands that fix it. ``pip check`` finds the rest.

It needs the standard library only, and runs where sct_mm cannot be imported.
"""
import argparse
import json
import os.path as osp
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata, util
from typing import NamedTuple

# {import: the distributions that install it, of which one may be there}
DISTRIBUTIONS = {
    'numpy': ('numpy', ), 'torch': ('torch', ),
    'torchvision': ('torchvision', ), 'timm': ('timm', ),
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'cv2': ('opencv-python', 'opencv-python-headless',
            'opencv-contrib-python', 'opencv-contrib-python-headless')}
HOSTS = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet')
NEEDED = ('numpy', 'torch', 'mmengine', 'mmcv')
NEED_OPERATORS = ('mmdet', 'mmseg', 'mmpose', 'mmrotate')
# {distribution: (import, distribution) that it uses and does not require}
UNDECLARED = {'mmengine': ('pkg_resources', 'setuptools<81'),
              'onedl-mmdetection': ('faster_coco_eval', 'faster-coco-eval')}
# The answers of the child are the lines that begin so; packages may print.
MARK = '@sct_mm '
CHILD = r"""
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
def answer(name, error):
    print('\n@sct_mm ' + json.dumps((name, error)), flush=True)
for name in sys.argv[2:]:
    answer(name, 'it ends Python')
    try:
        module, error = importlib.import_module(name), ''
        if name == 'mmcv._ext':
            import torch
            if torch.cuda.is_available() and (
                    module.get_compiling_cuda_version() == 'not available'):
                error = 'compiled without CUDA, but torch sees a GPU'
    except BaseException as raised:
        first = (str(raised).strip() or 'no message').splitlines()[0]
        error = f'{type(raised).__name__}: {first}'
    answer(name, error)
"""
Owners = dict[str, dict[str, str]]


class Conflict(NamedTuple):
    what: str
    fix: tuple[str, ...]  # commands


def owners_of_imports() -> Owners:
    """{import: {distribution: version}} of what is installed."""
    owners: Owners = {}
    for name, distributions in DISTRIBUTIONS.items():
        for each in distributions:
            try:
                version = metadata.version(each)
            except (metadata.PackageNotFoundError, FileNotFoundError):
                continue
            if version:  # a record of an interrupted installation has none
                owners.setdefault(name, {})[each] = version
    return owners


def has(name: str) -> bool:
    return util.find_spec(name) is not None


def is_onedl(owners: Owners) -> bool:
    """Whether most of the hosts are OneDL's forks."""
    found = [each for name in HOSTS if name != 'mmcv'
             for each in owners.get(name, ())]
    return 2 * sum(each.startswith('onedl') for each in found) > len(found)


def pip(*words: str) -> str:
    return shlex.join((sys.executable, '-m', 'pip', *words))


def install_tested(owners: Owners) -> str:
    """The command that installs the versions with which sct_mm is tested."""
    try:
        metadata.version('sct_mm')
        source = 'sct_mm'
    except metadata.PackageNotFoundError:
        source = osp.dirname(osp.dirname(osp.abspath(__file__)))
    extras = (('onedl', 'onedl-detection') if is_onedl(owners)
              else ('classification', 'detection'))
    return pip('install', f'{source}[{extras[has("mmdet")]}]')


def build_mmcv(owners: Owners, version: str,
               cuda: bool = False) -> tuple[str, ...]:
    """The commands that install mmcv with compiled operators."""
    name = 'onedl-mmcv' if is_onedl(owners) else 'mmcv'
    return (pip('install', 'setuptools>=77,<81', 'wheel', 'ninja'),
            f'MMCV_WITH_OPS=1 {"FORCE_CUDA=1 " if cuda else ""}'
            + pip('install', '--no-build-isolation', '--no-cache-dir',
                  '--no-deps', '--force-reinstall', '--no-binary', name,
                  f'{name}=={version}'))


def missing(owners: Owners) -> Iterator[Conflict]:
    lacks = [name for name in NEEDED if not has(name)]
    if lacks:
        yield Conflict(f'sct_mm needs {" and ".join(lacks)}, but cannot find '
                       f'{"it" if len(lacks) == 1 else "them"}.',
                       (install_tested(owners), ))
    for name, (module, distribution) in UNDECLARED.items():
        if not has(module) and any(name in each for each in owners.values()):
            yield Conflict(f'{name} uses {module} without requiring it, but '
                           'it is not installed.',
                           (pip('install', distribution), ))


def doubled(owners: Owners) -> Iterator[Conflict]:
    operators = any(map(has, NEED_OPERATORS))
    for name, found in owners.items():
        if len(found) == 1:
            continue
        ranks = {each: (
            each.startswith('onedl') == is_onedl(owners),
            each.endswith('-lite') == (name == 'mmcv' and not operators),
            each.endswith('-headless')) for each in found}
        keep = max(ranks, key=ranks.__getitem__)
        again = (build_mmcv(owners, found[keep])
                 if name == 'mmcv' and operators else
                 (pip('install', '--no-deps', '--force-reinstall',
                      f'{keep}=={found[keep]}'), ))
        yield Conflict(f'{name} comes from {" and ".join(sorted(found))}, '
                       'which overwrite one another.',
                       (pip('uninstall', '-y', *sorted(found)), *again))


def mixed(owners: Owners) -> Iterator[Conflict]:
    found = [each for name in HOSTS for each in owners.get(name, ())
             if len(owners[name]) == 1]
    onedl = [each for each in found if each.startswith('onedl')]
    upstream = [each for each in found if each not in onedl]
    if onedl and upstream:
        yield Conflict(
            f'{" and ".join(onedl)} of OneDL and {" and ".join(upstream)} of '
            'OpenMMLab do not go together.',
            (pip('uninstall', '-y', *(upstream if is_onedl(owners) else
                                      onedl)), install_tested(owners)))


def import_errors(names: list[str]) -> dict[str, str]:
    """{name: error, or ''} of the imports of ``names`` in one other process,
    up to one that ends it."""
    done = subprocess.run(
        [sys.executable, '-c', CHILD, json.dumps(sys.path), *names],
        capture_output=True, text=True)
    return dict(json.loads(line.removeprefix(MARK))
                for line in done.stdout.splitlines() if line.startswith(MARK))


def unusable(owners: Owners) -> Iterator[Conflict]:
    names = [name for name in DISTRIBUTIONS if has(name)]
    users = [name for name in NEED_OPERATORS if has(name)]
    if has('mmcv') and users:
        names.append('mmcv._ext')
    if set(NEEDED) <= set(names):
        names.append('sct_mm')
    errors = import_errors(names)
    operators = errors.pop('mmcv._ext', '')
    if operators and not errors['mmcv']:
        lacks = operators.startswith('ModuleNotFoundError')
        version = next(iter(owners.get('mmcv', {'': '2.1.0'}).values()))
        yield Conflict(
            f'mmcv has {"no" if lacks else "unusable"} compiled operators'
            f'{"" if lacks else f" ({operators})"}, but {users[0]} needs '
            'them.', build_mmcv(owners, version, 'CUDA' in operators))
    if any(errors.get(name) for name in NEEDED):
        errors.pop('sct_mm', None)
    for error in dict.fromkeys(errors.values()):
        if not error or 'mmcv._ext' in error:  # reported above
            continue
        failed = [name for name in errors if errors[name] == error]
        yield Conflict(f'{", ".join(failed)} cannot be imported ({error}).',
                       (install_tested(owners), ))


def main() -> int:
    argparse.ArgumentParser('python -m sct_mm.doctor',
                            description=__doc__.partition(': ')[2]
                            ).parse_args()
    owners = owners_of_imports()
    print(f'Python {platform.python_version()} ({sys.executable})')
    for found in owners.values():
        for name, version in found.items():
            print(f'  {name} {version}')
    conflicts = [conflict for check in (missing, doubled, mixed, unusable)
                 for conflict in check(owners)]
    for conflict in conflicts:
        print(f'Conflict: {conflict.what} Fix it by',
              *(f'    {line}' for line in conflict.fix), sep='\n')
    if not conflicts:
        print('Nothing conflicts.')
    return bool(conflicts)


if __name__ == '__main__':
    sys.exit(main())
