"""The command lines that train and test an arm, and which of them are done."""
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
from sct_mm.evaluation.results_file import numbers_of
from sct_mm.utils.config import load_config
from sct_mm.utils.errors import UserError

HERE = osp.dirname(osp.abspath(__file__))
ROOT = osp.dirname(osp.dirname(osp.dirname(HERE)))
# Configs that only the experiments use, from the root of the repository.
CONFIGS = osp.join(osp.relpath(HERE, ROOT), 'configs')
# Files in the folder of an arm: a digest of all that makes it, and a mark that
# it has been made.
RECIPE, DONE = 'recipe.txt', 'trained'
# Where every config of the experiments has its norm and its initialization.
_NORM = 'model.backbone.norm_cfg.scales'
_INIT = 'model.backbone.init_cfg'


class Newest(NamedTuple):
    """An option whose value is the newest whole checkpoint in a folder."""
    option: str
    folder: str


class Step(NamedTuple):
    """A command that fills ``folder``: the name of a tool, its arguments."""
    folder: str
    tool: str
    words: tuple[str | Newest, ...]
    recipe: str = ''  # '' if it tests


def on_few_images(arm: Arm, images: int) -> Arm:
    """``arm``, and what it starts from, trained on the first ``images``."""
    return arm._replace(
        options=(*arm.options, f'train_dataloader.dataset.indices={images}'),
        start=arm.start and on_few_images(arm.start, images))


def config_of(arm: Arm) -> str:
    """The path of its config from the root of the repository."""
    own = osp.join(CONFIGS, f'{arm.config}.py')
    return (own if osp.isfile(osp.join(ROOT, own))
            else osp.join('configs', f'{arm.config}.py'))


def folder_of(arm: Arm, seed: int, out: str) -> str:
    """The folder in which the arm is made, below ``out``."""
    parts = [f'adapt_{arm.config}' if arm.adapt else arm.config, *arm.options]
    if arm.epochs is not None:
        parts.append(f'{arm.epochs}-epochs')
    if arm.adapt:
        parts.append('-'.join(word.lstrip('-') for word in arm.adapt))
    elif arm.start is not None:
        parts.append(f'{"calibrated-" if arm.calibrate else ""}from-'
                     f'{arm.start.config}')
    return osp.join(out, '_'.join(parts), str(seed))


def checkpoint_of(arm: Arm, folder: str) -> str:
    """The checkpoint that tools/test.py gets of an arm made in ``folder``."""
    return osp.join(folder, 'calibrated.pth') if arm.calibrate else folder


@cache
def _text_of(config: str) -> str:
    return repr(load_config(config).to_dict())


def recipe_of(arm: Arm) -> str:
    """A digest of all that makes the arm, except the seed."""
    start = '' if arm.start is None else recipe_of(arm.start)
    parts = repr((_text_of(config_of(arm)), arm.epochs, arm.options,
                  arm.adapt, arm.calibrate, start))
    return hashlib.sha256(parts.encode()).hexdigest()


def is_done(arm: Arm, folder: str) -> bool:
    """Whether the arm has been made in ``folder``.

    Raises:
        UserError: if another arm was made, or begun, in that folder.
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


def step_to_make(arm: Arm, seed: int, out: str) -> Step:
    """The command that makes the arm after its ``start`` has been made."""
    folder = folder_of(arm, seed, out)
    options: list[str | Newest] = [
        '--cfg-options', f'randomness.seed={seed}', *arm.options]
    if arm.adapt:
        return Step(folder, 'adapt', (
            config_of(arm.start), folder_of(arm.start, seed, out), '--out',
            folder, '--resume', *arm.adapt, *options), recipe_of(arm))
    if arm.calibrate:
        return Step(folder, 'calibrate', (
            config_of(arm), folder_of(arm.start, seed, out), '--out',
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
        config_of(arm), '--work-dir', folder, '--resume', '--no-validate',
        *options), recipe_of(arm))


def step_to_test(arm: Arm, seed: int, out: str, sizes: Sequence[int],
                 images: int | None = None) -> Step:
    """The command that tests the arm at ``sizes``, on the first ``images``."""
    folder = folder_of(arm, seed, out)
    config = (osp.join(folder, f'adapt_{arm.config}.py') if arm.adapt
              else config_of(arm))
    options = [f'{_NORM}={",".join(map(str, arm.calibrate))}'
               ] if arm.calibrate else []
    if images is not None:
        options.append(f'test_dataloader.dataset.indices={images}')
    return Step(folder, 'test', (
        config, checkpoint_of(arm, folder), '--out', folder, '--scales',
        *map(str, sizes), *(('--cfg-options', *options) if options else ())))


def rows_in(folder: str) -> dict[int, dict]:
    """{size: row} of the test of the arm in ``folder``; {} if there is
    none."""
    path = osp.join(folder, 'scales.json')
    if not osp.exists(path):
        return {}
    with open(path) as file:
        return {row['scale']: {**row, 'metrics': numbers_of(row['metrics'])}
                for row in json.load(file)['models'][0]['rows']}


def steps_left(arm: Arm, seed: int, out: str, sizes: Sequence[int],
               images: int | None = None) -> list[Step]:
    """The commands that are still to be run until the arm has been tested at
    ``sizes`` on the first ``images``. A test includes the sizes of the test
    before it.

    Raises:
        UserError: see :func:`is_done`.
    """
    chain = [arm]
    while chain[0].start is not None:
        chain.insert(0, chain[0].start)
    steps = [step_to_make(each, seed, out) for each in chain
             if not is_done(each, folder_of(each, seed, out))]
    rows = rows_in(folder_of(arm, seed, out))
    if steps or set(sizes) - set(rows):
        steps.append(step_to_test(arm, seed, out,
                                  sorted({*rows, *sizes}, reverse=True),
                                  images))
    return steps


def command_of(step: Step, gpus: int = 1,
               python: str = sys.executable) -> list[str]:
    """The words of the command line, which starts ``gpus`` processes."""
    command, launcher = [python], []
    if gpus > 1:
        command += ['-m', 'torch.distributed.run', f'--nproc-per-node={gpus}']
        launcher = ['--launcher', 'pytorch']
    first, *words = [f'{word.option}{find_checkpoint(word.folder)}'
                     if isinstance(word, Newest) else word
                     for word in step.words]
    return [*command, osp.join('tools', f'{step.tool}.py'), first, *launcher,
            *words]


def command_line(step: Step, gpus: int = 1) -> str:
    """The command as a user types it in the root of the repository."""
    words = tuple(f'{word.option}{word.folder}/epoch_N.pth'
                  if isinstance(word, Newest) else word
                  for word in step.words)
    line = shlex.join(command_of(step._replace(words=words), gpus, 'python'))
    # These configs may import modules of this folder.
    return f'PYTHONPATH=. {line}' if words[0].startswith(CONFIGS) else line
