"""What conflicts in an environment, and the commands that fix it."""
import ast
import os.path as osp
import re
import shlex
import sys
from collections.abc import Iterator
from importlib import metadata, util
from importlib.machinery import PathFinder
from typing import NamedTuple

from .environment import NEEDED, OPERATORS, SHOWN, SIBLINGS, Environment

NEED_OPERATORS = ('mmdet', 'mmseg', 'mmpose', 'mmrotate')
DISTRIBUTIONS = dict(cv2='opencv-python-headless', yaml='pyyaml',
                     PIL='pillow', faster_coco_eval='faster-coco-eval',
                     pkg_resources='setuptools<81')
ONEDL = dict(mmengine='onedl-mmengine', mmcv='onedl-mmcv',
             mmpretrain='onedl-mmpretrain', mmdet='onedl-mmdetection')
# What a distribution imports when it works, without requiring it.
UNSAID = {'mmengine': 'pkg_resources', 'onedl-mmdetection': 'faster_coco_eval'}


class Conflict(NamedTuple):
    what: str
    fix: tuple[str, ...]  # commands


def command(*words: str, module: str = 'pip') -> str:
    python = sys.executable
    if python.startswith(osp.join(osp.abspath('.'), '')):
        python = osp.relpath(python)
    return shlex.join((python, '-m', module, *words))


def wanted(distribution: str) -> str:
    """A distribution in the version that sct_mm is tested with."""
    try:
        requirements = metadata.requires('sct_mm') or []
    except metadata.PackageNotFoundError:
        requirements = []
    pins = [re.match(rf'{distribution}(==[\w.*]+)', r) for r in requirements]
    return distribution + next((pin.group(1) for pin in pins if pin), '')


def build(distribution: str, version: str,
          variables: str = 'MMCV_WITH_OPS=1 ') -> tuple[str, ...]:
    """The commands that install mmcv with its compiled operators."""
    return (command('install', 'setuptools>=77,<81', 'wheel', 'ninja'),
            variables + command(
                'install', '--no-build-isolation', '--no-cache-dir',
                '--no-deps', '--force-reinstall', '--no-binary',
                distribution, distribution + version))


def reinstall(distribution: str, version: str) -> tuple[str, ...]:
    if distribution in ('mmcv', 'onedl-mmcv'):
        return build(distribution, f'=={version}')
    return (command('install', '--no-deps', '--force-reinstall',
                    f'{distribution}=={version}'), )


def to_keep(env: Environment, name: str) -> str:
    """Which owner of an import the others of the environment go with."""
    def fits(owner: str) -> tuple:
        needed = any(map(env.has, NEED_OPERATORS))
        return (owner.startswith('onedl') == env.onedl(),
                owner.endswith('-lite') == (name == 'mmcv' and not needed),
                owner.endswith('-headless'), owner)

    return max(env.owners[name], key=fits)


def missing(env: Environment) -> Iterator[Conflict]:
    names = [name for name in NEEDED if not env.has(name)
             and name not in env.errors]
    if names:
        mmcv = ('onedl-mmcv' if env.onedl() else 'mmcv-lite')
        installed = [mmcv if name == 'mmcv' else ONEDL.get(name, name)
                     if env.onedl() else name for name in names]
        yield Conflict(
            f'sct_mm needs {" and ".join(names)}, but cannot find '
            f'{"it" if len(names) == 1 else "them"}.',
            (command('install', *map(wanted, installed)), ))
    for owner, name in UNSAID.items():
        if owner in env.versions and not util.find_spec(name):
            yield Conflict(
                f'{owner} uses {name} without requiring it, but it is not '
                'installed.',
                (command('install', DISTRIBUTIONS.get(name, name)), ))


def doubled(env: Environment) -> Iterator[Conflict]:
    for name, owners in sorted(env.owners.items()):
        if len(owners) > 1:
            keep = to_keep(env, name)
            yield Conflict(
                f'{name} comes from {" and ".join(sorted(owners))}, which '
                'overwrite one another.',
                (command('uninstall', '-y', *sorted(owners)),
                 *reinstall(keep, owners[keep])))
    for owner, versions in sorted(env.versions.items()):
        if len(versions) > 1:
            yield Conflict(
                f'{owner} is recorded as {" and as ".join(sorted(versions))}'
                ': an installation was interrupted.',
                (command('install', '--force-reinstall', '--no-deps',
                         f'{owner}=={max(versions, key=numbers)}'), ))


def numbers(version: str) -> tuple[int, ...]:
    """The release of a version: '2.0.0rc4' and '2.0+cpu' are (2, 0)."""
    release = re.match(r'\d+(\.\d+)*', version)
    found = [int(n) for n in release.group().split('.')] if release else []
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def bounds_of(name: str) -> dict[str, str]:
    """What a host's ``__init__`` says of the versions of mmcv and mmengine
    that it accepts, without running it."""
    spec = util.find_spec(name)
    if spec is None or not spec.origin or not osp.isfile(spec.origin):
        return {}
    with open(spec.origin, encoding='utf-8') as file:
        body = ast.parse(file.read()).body
    return {node.targets[0].id: node.value.value for node in body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id.endswith('imum_version')
            and isinstance(node.value, ast.Constant)}


def out_of_bounds(env: Environment) -> Iterator[Conflict]:
    for host in filter(env.owners.get, (*SHOWN, *SIBLINGS)):
        bounds = bounds_of(host)
        for name in ('mmcv', 'mmengine'):
            low = bounds.get(f'{name}_minimum_version', '0')
            high = bounds.get(f'{name}_maximum_version')
            got = env.version(name)
            if not high or not got or (
                    numbers(low) <= numbers(got) < numbers(high)):
                continue
            spec = f'>={low},<{high}'
            yield Conflict(
                f'{host} {env.version(host)} wants {name}{spec}, but got '
                f'{got}.', within(env, host, name, spec))


def within(env: Environment, host: str, name: str,
           spec: str) -> tuple[str, ...]:
    """The commands that bring ``host`` and ``name`` together."""
    owner = to_keep(env, name) if env.owners.get(name) else name
    if owner.startswith('onedl'):  # the line where the host's fork is right
        return (command('uninstall', '-y', *env.owners[host]),
                command('install', wanted(ONEDL.get(host, f'onedl-{host}'))))
    if owner == 'mmcv':
        return build(owner, spec)
    return (command('install', owner + spec), )


def operators(env: Environment) -> Iterator[Conflict]:
    error = env.errors.get(OPERATORS)
    users = [name for name in NEED_OPERATORS if env.has(name)]
    one = 'onedl-mmcv' if env.onedl() else 'mmcv'
    version = f'=={env.version("mmcv")}'
    if users and env.gpu and env.cpu_operators:
        yield Conflict(
            f'torch sees a GPU ({env.gpu}), but the operators of mmcv are '
            f'compiled without CUDA: {users[0]} stops there.',
            build(one, version, 'MMCV_WITH_OPS=1 FORCE_CUDA=1 '))
    if not error or env.errors.get('mmcv'):
        return
    lacks = error.startswith('ModuleNotFoundError')
    if users or not lacks:
        why = (f'has no compiled operators, but {users[0]} needs them' if lacks
               else f'has operators for another torch ({error})')
        yield Conflict(f'mmcv {why}.', build(one, version))


def unimportable(env: Environment) -> Iterator[Conflict]:
    """Imports that fail, those with one and the same error together."""
    failed = {}
    for name, error in env.errors.items():
        follows = name == 'sct_mm' and any(map(env.errors.get, NEEDED))
        if error and name != OPERATORS and not follows and (
                'is used but incompatible' not in error):  # out of bounds
            failed.setdefault(error, []).append(name)
    for error, names in failed.items():
        if error.startswith('UnpicklingError'):
            yield Conflict(
                f'torch {env.version("torch")} refuses the checkpoints of '
                f'mmengine {env.version("mmengine")} ({error}).',
                (command('install', wanted('torch'), wanted('torchvision')),))
            continue
        lacks = re.search(r"No module named '(\w+)", error)
        if not lacks or env.has(lacks.group(1)) or (
                lacks.group(1) not in NEEDED):
            yield Conflict(
                f'{", ".join(names)} cannot be imported ({error}).',
                remedy(env, names[0], error, lacks and lacks.group(1)))


def remedy(env: Environment, name: str, error: str,
           lacks: str | None) -> tuple[str, ...]:
    """The commands for ``name``, which cannot be imported."""
    owner = next(iter(env.owners.get(name, ())), name)
    if lacks:
        return (command('install', DISTRIBUTIONS.get(lacks, lacks)), )
    if 'torchvision::' in error:  # its operators are for another torch
        torch = env.version('torch').partition('+')[0]
        return (command('install', f'torch=={torch}', 'torchvision'), )
    if name == 'cv2' and '.so' in error:  # a library of a desktop
        return (command('uninstall', '-y', owner),
                command('install', '--no-deps', wanted(DISTRIBUTIONS[name])))
    if re.search('numpy|_ARRAY_API', error):  # built for another numpy
        return (command('install', '--upgrade', owner, 'numpy'), )
    return (command('install', '--force-reinstall', '--no-deps',
                    f'{owner}=={env.version(name)}'.removesuffix('==')), )


def old_torch(env: Environment) -> Iterator[Conflict]:
    version = env.version('torch')
    if version and numbers(version) < (2, 7):
        why = ('runs the code in a checkpoint when it loads it'
               if numbers(version) < (2, 6)
               else 'does not tell a layer that it is exported')
        yield Conflict(
            f'torch {version} {why}: sct_mm needs 2.7 or later.',
            (command('install', '--upgrade', 'torch>=2.7', 'torchvision'), ))


def conflicts_of(env: Environment) -> list[Conflict]:
    found = [conflict for check in (missing, doubled, out_of_bounds, operators,
                                    old_torch, unimportable)
             for conflict in check(env)]
    # As in a venv of uv; setuptools' own finder warns when it is asked.
    if found and not PathFinder.find_spec('pip'):
        found.insert(0, Conflict('This Python has no pip, which fixes what '
                                 'follows.', (command(module='ensurepip'), )))
    return found
