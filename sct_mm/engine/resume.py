"""Where a run begins: at the newest whole checkpoint, or another."""
import copy
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

# What mmengine's Runner.resume reads. It goes on without the last one, with
# an optimizer that has forgotten its momentum and a schedule that restarts.
_NEEDED = ('state_dict', 'meta', 'message_hub', 'optimizer')


ADAPTED = 'adapted.pth'  # what tools/adapt.py writes when all is done


class Candidate(NamedTuple):
    """A checkpoint of the run; the greatest is the newest."""
    modified: int
    number: int
    at_home: bool  # in the folder, rather than named by last_checkpoint
    path: str


def check_resumable(path: str) -> None:
    """Refuse a checkpoint from which a run cannot go on.

    Raises:
        UserError: see ``check_checkpoint``; also if it lacks the state of the
            training, as the best and published ones do.
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


def _places(cfg: Config) -> Iterator[tuple[str, str]]:
    """The folder and the template of the names of each CheckpointHook."""
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


def _patterns(cfg: Config) -> dict:
    """Folder -> the patterns of its checkpoints' names."""
    patterns: dict = {}
    for folder, template in _places(cfg):
        before, _, after = re.sub(r'\{[^{}]*\}', '\0', template,
                                  count=1).partition('\0')
        names = patterns.setdefault(osp.abspath(folder), [])
        for start in {before, 'epoch_', 'iter_'}:
            end = after if start == before else '.pth'
            names.append(re.compile(
                f'{re.escape(start)}([0-9]+){re.escape(end)}'))
    return patterns


def _named_last(cfg: Config) -> str | None:
    """What ``last_checkpoint`` names, which may be nothing or no file."""
    path = osp.join(cfg.work_dir, 'last_checkpoint')
    if not osp.isfile(path):
        return None
    with open(path, errors='replace') as file:
        return file.read().strip().strip('\0') or None


def candidates(cfg: Config) -> list[Candidate]:
    """The checkpoints of the run in ``cfg.work_dir``, the newest first: those
    of its CheckpointHook, by the time that they were written, and the one
    that ``last_checkpoint`` names."""
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
    """What a checkpoint is looked for, and how it is told."""
    check: Callable[[str], Any]  # raises UserError for one that will not do
    says: str
    option: str  # by which a user names another


RESUME = Use(check_resumable, 'The run goes on from', '--resume CHECKPOINT')
TEST = Use(check_checkpoint, 'Tested is', 'CHECKPOINT')


def _tell_last(last: str, chosen: Candidate, found: list[Candidate],
               use: Use) -> None:
    """Say why ``last``, which last_checkpoint names, is not chosen."""
    if not osp.isfile(last):
        print(f'last_checkpoint names {last!r}, which is no file.')
        return
    named = next(c for c in found if osp.samefile(c.path, last))
    if named.number > chosen.number:
        print(f'last_checkpoint names {last!r}, a file of an older time: if '
              'the folder was copied without its times, name it by '
              f'{use.option.replace("CHECKPOINT", last)}.', flush=True)


def newest_whole(cfg: Config, use: Use = RESUME) -> str | None:
    """The newest checkpoint of the run that will do, whatever
    ``last_checkpoint`` says; prints which it is, and what it passes over.

    Raises:
        UserError: if there are checkpoints, but none is whole.
    """
    last = _named_last(cfg)
    if last and ('://' in last or osp.isdir(last)):
        return last  # of a run that saves to a remote store, or by DeepSpeed
    found = candidates(cfg)
    for candidate in found:
        try:
            use.check(candidate.path)
        except UserError as error:
            print(f'Passed over: {error}', flush=True)
            continue
        if last:
            _tell_last(last, candidate, found, use)
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
    """The checkpoint to test at ``path``: of a work directory its newest
    whole one, of a folder of tools/adapt.py what it made in the end, else
    ``path``.

    Args:
        cfg: of the run, whose CheckpointHook may name files of its own.

    Raises:
        UserError: for a folder without a whole checkpoint.
    """
    folder = osp.expanduser(path)
    if not osp.isdir(folder):
        return path
    made = osp.join(folder, ADAPTED)
    if osp.isfile(made):
        print(f'{TEST.says} {made!r}, what tools/adapt.py made.', flush=True)
        return made
    cfg = Config() if cfg is None else copy.deepcopy(cfg)
    cfg.work_dir = folder
    newest = newest_whole(cfg, TEST)
    if newest is None:
        raise UserError(f'{path!r} must hold a checkpoint of a training, but '
                        'it has none. Train first, or name a file.')
    return newest


def _remove_partial(cfg: Config) -> None:
    """Remove what a run that was killed while it saved has left."""
    for folder, patterns in _patterns(cfg).items():
        for name in os.listdir(folder) if osp.isdir(folder) else ():
            whole = name.removesuffix(PARTIAL)
            # best_METRIC_epoch_3.pth ends as the name of a checkpoint does
            if whole != name and any(
                    re.search(p.pattern + '$', whole) for p in patterns):
                os.remove(osp.join(folder, name))


def on_main_process(function: Callable, *args):
    """What ``function`` returns or refuses on the main process, on each.

    Without a process group every process calls it.
    """
    answer = [None, None]
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
    """Whether to resume, and what to load."""
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
    """Set ``cfg.resume`` and ``cfg.load_from``, alike on every process.

    Args:
        resume: a checkpoint; 'auto' for the newest whole one of
            ``cfg.work_dir``, if there is any, else ``cfg.load_from``; None
            leaves it to the config.

    Raises:
        UserError: if it cannot be resumed or loaded.
    """
    cfg.resume, cfg.load_from = on_main_process(_choose, cfg, resume)
    if cfg.load_from and '://' in cfg.load_from:
        # On every process: they wait for each other while one downloads.
        (check_resumable if cfg.resume else check_checkpoint)(cfg.load_from)
