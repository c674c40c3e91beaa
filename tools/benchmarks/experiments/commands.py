"""The commands that make and test an arm, as a user types them."""
import hashlib
import json
import os.path as osp
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from experiments import Arm

from sct_mm.engine.resume import find_checkpoint
from sct_mm.utils.config import config_name, load_config
from sct_mm.utils.errors import UserError
from sct_mm.utils.package import PREFIX, is_installed, tool_command

_NORM = 'model.backbone.norm_cfg.scales'  # of every network here
_INIT = 'model.backbone.init_cfg'
# In the folder of an arm: the recipe of what is made there, and that it is.
RECIPE, DONE = 'recipe.txt', 'trained'


class Newest(NamedTuple):
    """An option that names the newest whole checkpoint of a run."""
    option: str
    folder: str


class Step(NamedTuple):
    """A command, as a tool's name and its arguments."""
    folder: str  # what it makes
    tool: str
    words: tuple[str | Newest, ...]
    recipe: str = ''  # of what it makes; none of a test


def config_of(arm: Arm, folder: str = 'configs') -> str:
    """The path of its config without `.py`; of one that tools/adapt.py has
    made, in the folder of the arm."""
    if not arm.adapt and is_installed():
        return f'{PREFIX}{arm.config}'
    if not arm.adapt:
        return osp.join('configs', arm.config)
    return osp.join(folder, f'adapt_{osp.basename(arm.config)}')


def folder_of(arm: Arm, seed: int, out: str) -> str:
    """Where the arm lies."""
    parts = [config_name(f'{config_of(arm)}.py'), *arm.options]
    if arm.epochs is not None:
        parts.append(f'{arm.epochs}-epochs')
    if arm.adapt:
        parts.append('-'.join(word.lstrip('-') for word in arm.adapt))
    elif arm.start is not None:
        parts.append(f'{"calibrated-" if arm.calibrate else ""}from-'
                     f'{osp.basename(arm.start.config)}')
    return osp.join(out, '_'.join(parts), str(seed))


def checkpoint_of(arm: Arm, folder: str) -> str:
    """What tools/test.py is given of an arm that was made in ``folder``."""
    return osp.join(folder, 'calibrated.pth') if arm.calibrate else folder


@cache
def _text_of(config: str) -> str:
    return repr(load_config(config).to_dict())


def recipe_of(arm: Arm) -> str:
    """A digest of all that makes the arm, but for the seed."""
    start = '' if arm.start is None else recipe_of(arm.start)
    text = _text_of(f'{config_of(arm._replace(adapt=()))}.py')
    told = repr((text, arm.epochs, arm.options, arm.adapt, arm.calibrate,
                 start))
    return hashlib.sha256(told.encode()).hexdigest()


def is_done(arm: Arm, folder: str) -> bool:
    """Whether the arm has been made in ``folder``.

    Raises:
        UserError: if another has, or was begun, under the same name.
    """
    recipe, done = osp.join(folder, RECIPE), osp.join(folder, DONE)
    found = None
    if osp.exists(recipe):
        with open(recipe) as file:
            found = file.read().strip()
    if found == recipe_of(arm) or (found is None and not osp.exists(done)):
        return osp.exists(done)
    raise UserError(f'{folder!r} holds what was made by another config or '
                    'with other options. Move it away, or give another --out.')


def step_of(arm: Arm, seed: int, out: str) -> Step:
    """What makes the arm, once there is what it starts from."""
    folder = folder_of(arm, seed, out)
    options: list[str | Newest] = [
        '--cfg-options', f'randomness.seed={seed}', *arm.options]
    if arm.adapt:
        return Step(folder, 'adapt', (
            f'{config_of(arm.start)}.py', folder_of(arm.start, seed, out),
            '--out', folder, '--resume', *arm.adapt, *options), recipe_of(arm))
    if arm.calibrate:
        return Step(folder, 'calibrate', (
            f'{config_of(arm)}.py', folder_of(arm.start, seed, out), '--out',
            checkpoint_of(arm, folder), '--force', '--sizes',
            *map(str, arm.calibrate), *options), recipe_of(arm))
    if arm.epochs is not None:
        options += [f'train_cfg.max_epochs={arm.epochs}',
                    f'train_cfg.val_interval={arm.epochs}',
                    f'param_scheduler.1.T_max={arm.epochs}']
    if arm.start is not None:
        options += [f'{_INIT}.type=Pretrained', f'{_INIT}.prefix=backbone.',
                    Newest(f'{_INIT}.checkpoint=',
                           folder_of(arm.start, seed, out))]
    return Step(folder, 'train', (
        f'{config_of(arm)}.py', '--work-dir', folder, '--resume',
        '--no-validate', *options), recipe_of(arm))


def test_of(arm: Arm, seed: int, out: str, sizes: Sequence[int]) -> Step:
    """What tests the arm at ``sizes``."""
    folder = folder_of(arm, seed, out)
    named = (('--cfg-options',
              f'{_NORM}={",".join(map(str, arm.calibrate))}')
             if arm.calibrate else ())
    return Step(folder, 'test', (
        f'{config_of(arm, folder)}.py', checkpoint_of(arm, folder), '--out',
        folder, '--scales', *map(str, sizes), *named))


def rows_in(folder: str) -> dict[int, dict]:
    """{size: row} of the test of the one model in ``folder``; {} if none."""
    path = osp.join(folder, 'scales.json')
    if not osp.exists(path):
        return {}
    with open(path) as f:
        return {row['scale']: row for row in json.load(f)['models'][0]['rows']}


def steps_left(arm: Arm, seed: int, out: str,
               sizes: Sequence[int]) -> list[Step]:
    """What is still to be run until the arm has been tested at ``sizes``;
    sizes that it was tested at before are kept.

    Raises:
        UserError: see :func:`is_done`.
    """
    chain = [arm]
    while chain[0].start is not None:
        chain.insert(0, chain[0].start)
    steps = [step_of(each, seed, out) for each in chain
             if not is_done(each, folder_of(each, seed, out))]
    rows = rows_in(folder_of(arm, seed, out))
    if steps or set(sizes) - set(rows):
        steps.append(test_of(arm, seed, out,
                             sorted({*rows, *sizes}, reverse=True)))
    return steps


def command_of(step: Step, gpus: int = 1,
               python: str = sys.executable) -> list[str]:
    """The words of a command line, for so many processes."""
    command = tool_command(step.tool, python)
    launcher = []
    if gpus > 1:
        command[1:1] = ['-m', 'torch.distributed.run',
                        f'--nproc-per-node={gpus}']
        launcher = ['--launcher', 'pytorch']
    first, *words = [f'{word.option}{find_checkpoint(word.folder)}'
                     if isinstance(word, Newest) else word
                     for word in step.words]
    return [*command, first, *launcher, *words]


def shown(step: Step, gpus: int = 1) -> str:
    """The command line, before anything of it has been run."""
    words = tuple(f'{word.option}{word.folder}/epoch_N.pth'
                  if isinstance(word, Newest) else word
                  for word in step.words)
    return shlex.join(command_of(step._replace(words=words), gpus, 'python'))
