"""The commands that make and test an arm, as a user types them."""
import os.path as osp
import shlex
import sys
from typing import List, NamedTuple, Sequence, Tuple, Union

from ..engine.config import config_name
from ..engine.package import PREFIX, is_installed, tool_command
from ..engine.resume import find_checkpoint
from .experiments import Arm

_NORM = 'model.backbone.norm_cfg.scales'  # of every network here
_INIT = 'model.backbone.init_cfg'


class Newest(NamedTuple):
    """An option that names the newest whole checkpoint of a run."""
    option: str
    folder: str


class Step(NamedTuple):
    """A command, as a tool's name and its arguments."""
    folder: str  # what it makes
    tool: str
    words: Tuple[Union[str, Newest], ...]

    @property
    def done(self) -> str:
        """The file that says that it has been run."""
        return osp.join(self.folder, 'trained')


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
    if arm.start is not None and not arm.adapt:
        parts.append(f'{"calibrated-" if arm.calibrate else ""}from-'
                     f'{osp.basename(arm.start.config)}')
    return osp.join(out, '_'.join(parts), str(seed))


def checkpoint_of(arm: Arm, folder: str) -> str:
    """What tools/test.py is given of an arm that was made in ``folder``."""
    return osp.join(folder, 'calibrated.pth') if arm.calibrate else folder


def _own_step(arm: Arm, seed: int, out: str) -> Step:
    folder = folder_of(arm, seed, out)
    options: List[Union[str, Newest]] = [
        '--cfg-options', f'randomness.seed={seed}', *arm.options]
    if arm.adapt:
        return Step(folder, 'adapt', (
            f'{config_of(arm.start)}.py', folder_of(arm.start, seed, out),
            '--out', folder, '--resume', *arm.adapt, *options))
    if arm.calibrate:
        return Step(folder, 'calibrate', (
            f'{config_of(arm)}.py', folder_of(arm.start, seed, out), '--out',
            checkpoint_of(arm, folder), '--force', '--sizes',
            *map(str, arm.calibrate), *options))
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
        '--no-validate', *options))


def steps_of(arm: Arm, seed: int, out: str) -> List[Step]:
    """What makes the arm, from what it starts from on."""
    started = [] if arm.start is None else steps_of(arm.start, seed, out)
    return [*started, _own_step(arm, seed, out)]


def test_of(arm: Arm, seed: int, out: str, sizes: Sequence[int]) -> Step:
    """What tests the arm at ``sizes``."""
    folder = folder_of(arm, seed, out)
    named = (('--cfg-options',
              f'{_NORM}={",".join(map(str, arm.calibrate))}')
             if arm.calibrate else ())
    return Step(folder, 'test', (
        f'{config_of(arm, folder)}.py', checkpoint_of(arm, folder), '--out',
        folder, '--scales', *map(str, sizes), *named))


def command_of(step: Step, gpus: int = 1,
               python: str = sys.executable) -> List[str]:
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
