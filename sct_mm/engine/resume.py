"""Choose the checkpoint that a training resumes or starts from, or that a test
loads: by default, the newest one that is whole."""
import copy
import glob
import os
import os.path as osp
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process

from ..utils.checkpoint import PARTIAL, check_checkpoint
from ..utils.config_walk import type_name
from ..utils.errors import UserError

# What mmengine's Runner.resume reads. Without the last one it would go on, but
# with an optimizer that has lost its momentum and a schedule that restarts.
_NEEDED = ('state_dict', 'meta', 'message_hub', 'optimizer')
ADAPTED = 'adapted.pth'  # the result of tools/adapt.py


class Candidate(NamedTuple):
    """A checkpoint of the run; the greatest is the newest."""
    modified: int
    number: int
    at_home: bool  # in the run's folder, not only in last_checkpoint
    path: str


def check_resumable(path: str) -> None:
    """Refuse a checkpoint that a training cannot be resumed from.

    Raises:
        UserError: as ``check_checkpoint``; also if it lacks the state of the
            training, as the best checkpoints and published ones do.
    """
    checkpoint = check_checkpoint(path)
    lacking = [name for name in _NEEDED if name not in checkpoint]
    lacking += [f'meta.{name}' for name in ('epoch', 'iter')
                if name not in checkpoint.get('meta', ())]
    if lacking:
        raise UserError(
            f'The checkpoint {path!r} cannot be resumed: it lacks '
            f'{", ".join(lacking)}. Name one that CheckpointHook saved with '
            'its optimizer, or start from its weights by `load_from`.')


def places_of(cfg: Config) -> Iterator[tuple[str, str]]:
    """The folder that each CheckpointHook writes to, and the template of its
    files' names."""
    hooks = [(cfg.get('default_hooks') or {}).get('checkpoint'),
             *(cfg.get('custom_hooks') or ())]
    for hook in hooks:
        if isinstance(hook, dict) and type_name(hook).endswith(
                'CheckpointHook'):
            folder = cfg.work_dir
            if hook.get('out_dir'):
                folder = osp.join(hook['out_dir'], osp.basename(
                    osp.abspath(cfg.work_dir)))
            yield folder, hook.get('filename_tmpl') or 'epoch_{}.pth'
    yield cfg.work_dir, 'epoch_{}.pth'
    yield cfg.work_dir, 'iter_{}.pth'


def _patterns(cfg: Config) -> dict[str, list[re.Pattern]]:
    """The patterns of the names of checkpoints, for each folder of the run."""
    patterns: dict[str, list[re.Pattern]] = {}
    for folder, template in places_of(cfg):
        before, _, after = re.sub(r'\{[^{}]*\}', '\0', template,
                                  count=1).partition('\0')
        names = patterns.setdefault(osp.abspath(folder), [])
        for start in {before, 'epoch_', 'iter_'}:
            end = after if start == before else '.pth'
            names.append(re.compile(
                f'{re.escape(start)}([0-9]+){re.escape(end)}'))
    return patterns


def _named_last(cfg: Config) -> str | None:
    """The path in the run's ``last_checkpoint``, which may be missing, empty,
    or name no file."""
    path = osp.join(cfg.work_dir, 'last_checkpoint')
    if not osp.isfile(path):
        return None
    with open(path, errors='replace') as file:
        return file.read().strip().strip('\0') or None


def candidates(cfg: Config) -> list[Candidate]:
    """The checkpoints of the run in ``cfg.work_dir``, the newest first by the
    time of writing: those of its CheckpointHook, and the one that
    ``last_checkpoint`` names."""
    found = {}
    for folder, patterns in _patterns(cfg).items():
        for name in os.listdir(folder) if osp.isdir(folder) else ():
            matches = [p.fullmatch(name) for p in patterns]
            numbers = [int(match[1]) for match in matches if match]
            path = osp.join(folder, name)
            if numbers and osp.isfile(path):
                found[osp.realpath(path)] = Candidate(
                    os.stat(path).st_mtime_ns, numbers[0], True, path)
    last = _named_last(cfg)
    if last and osp.isfile(last) and osp.realpath(last) not in found:
        number = re.search(r'([0-9]+)\D*$', osp.basename(last))
        found[osp.realpath(last)] = Candidate(
            os.stat(last).st_mtime_ns, int(number[1]) if number else 0,
            False, last)
    return sorted(found.values(), reverse=True)


class Use(NamedTuple):
    """The purpose that a checkpoint is searched for."""
    check: Callable[[str], Any]  # raises UserError if it does not fit
    says: str  # begins the message that names it
    option: str  # the option by which a user names another


RESUME = Use(check_resumable, 'The run goes on from', '--resume CHECKPOINT')
LOAD = Use(check_checkpoint, 'Using', 'CHECKPOINT')


def _explain_last(last: str, chosen: Candidate, found: list[Candidate],
                  use: Use) -> None:
    """Print why ``last``, which last_checkpoint names, was not chosen."""
    if not osp.isfile(last):
        print(f'last_checkpoint names {last!r}, which is no file.')
        return
    named = next(c for c in found if osp.samefile(c.path, last))
    if named.number > chosen.number:
        print(f'last_checkpoint names {last!r}, a file of an older time: if '
              'the folder was copied without its times, name it by '
              f'{use.option.replace("CHECKPOINT", last)}.', flush=True)


def newest_whole(cfg: Config, use: Use = RESUME) -> str | None:
    """The newest whole checkpoint of the run that fits ``use``, whatever
    ``last_checkpoint`` names; None for a run without checkpoints. Prints
    which it is, and which newer ones it passes over.

    Raises:
        UserError: if there are checkpoints, but none is whole.
    """
    last = _named_last(cfg)
    if last and ('://' in last or osp.isdir(last)):
        return last  # the run saves to a remote store, or by DeepSpeed
    found = candidates(cfg)
    for candidate in found:
        try:
            use.check(candidate.path)
        except UserError as error:
            print(f'Passed over: {error}', flush=True)
            continue
        if last:
            _explain_last(last, candidate, found, use)
        print(f'{use.says} {candidate.path!r}, the newest whole checkpoint.',
              flush=True)
        return candidate.path
    if found:
        names = ', '.join(candidate.path for candidate in found)
        raise UserError(
            f'No checkpoint in {cfg.work_dir!r} is whole: {names}. Name '
            f'another by {use.option}, or move them away to start anew.')
    if last:
        raise UserError(
            f'last_checkpoint in {cfg.work_dir!r} names {last!r}, but there '
            'is no such file, nor another checkpoint. Name one by '
            f'{use.option}, or remove last_checkpoint to start anew.')
    return None


def find_checkpoint(path: str, cfg: Config | None = None) -> str:
    """The checkpoint that ``path`` stands for: for a work directory, its
    newest whole one, as `--resume` takes it, not the one that `save_best`
    kept, whose path is printed; for a folder of tools/adapt.py, its result;
    else ``path`` itself.

    Args:
        cfg: the config of the run, whose CheckpointHook may name the files.

    Raises:
        UserError: for a folder without a whole checkpoint.
    """
    folder = osp.expanduser(path)
    if not osp.isdir(folder):
        return path
    result = osp.join(folder, ADAPTED)
    if osp.isfile(result):
        print(f'{LOAD.says} {result!r}, the result of tools/adapt.py.',
              flush=True)
        return result
    cfg = Config() if cfg is None else copy.deepcopy(cfg)
    cfg.work_dir = folder
    newest = newest_whole(cfg, LOAD)
    best = ', '.join(sorted(glob.glob(osp.join(glob.escape(folder),
                                               'best_*.pth'))))
    if newest is None:
        raise UserError(f'{path!r} must hold a checkpoint of a training, but '
                        + (f'it has the best by its validation alone: {best}.'
                           ' Name it to use it.' if best else
                           'it has none. Train first, or name a file.'))
    if best:
        print(f'The best by its validation is there, too: {best}. Name it to '
              'use it.', flush=True)
    return newest


def _remove_partial(cfg: Config) -> None:
    """Remove the partial files of a run that was killed while it saved."""
    for folder, patterns in _patterns(cfg).items():
        for name in os.listdir(folder) if osp.isdir(folder) else ():
            whole = name.removesuffix(PARTIAL)
            # A best checkpoint ends so, too: best_METRIC_epoch_3.pth.
            if whole != name and any(
                    re.search(p.pattern + '$', whole) for p in patterns):
                os.remove(osp.join(folder, name))


def on_main_process(function: Callable, *args):
    """Call ``function`` on the main process alone; what it returns, or the
    UserError that it raises, reaches every process.

    Without a process group every process calls it.
    """
    answer: list[Any] = [None, None]
    if is_main_process():
        try:
            answer[0] = function(*args)
        except UserError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    return answer[0]


def _choose(cfg: Config, resume: str | None) -> tuple[bool, str | None]:
    """Whether to resume, and the path to load."""
    start = cfg.get('load_from')
    if resume is None and cfg.get('resume'):
        resume = start or 'auto'
    if resume == 'auto':
        newest = newest_whole(cfg)
        if newest:
            _remove_partial(cfg)
            return True, newest
    elif resume:
        if '://' not in resume:
            check_resumable(resume)
        return True, resume
    if start and '://' not in start:
        check_checkpoint(start)
    return False, start


def choose_start(cfg: Config, resume: str | None = None) -> None:
    """Set ``cfg.resume`` and ``cfg.load_from``, to the same on every process.

    Args:
        resume: path or address of a checkpoint; 'auto' takes the newest whole
            one of ``cfg.work_dir``, or ``cfg.load_from`` if there is none;
            None leaves it to the config.

    Raises:
        UserError: if the checkpoint cannot be resumed or loaded.
    """
    cfg.resume, cfg.load_from = on_main_process(_choose, cfg, resume)
    if cfg.load_from and '://' in cfg.load_from:
        # Every process must call this: all wait while one downloads.
        (check_resumable if cfg.resume else check_checkpoint)(cfg.load_from)
