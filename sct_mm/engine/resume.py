"""Where a run begins: at the newest whole checkpoint, or another."""
import os
import os.path as osp
import re
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process

from ..datasets.pipeline import type_name
from .checkpoint import PARTIAL, check_checkpoint
from .config import UserError

# What mmengine's Runner.resume reads. It goes on without the last one, with
# an optimizer that has forgotten its momentum and a schedule that restarts.
_NEEDED = ('state_dict', 'meta', 'message_hub', 'optimizer')


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


def _places(cfg: Config) -> Iterator[Tuple[str, str]]:
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


def _named_last(cfg: Config) -> Optional[str]:
    """What ``last_checkpoint`` names, which may be nothing or no file."""
    path = osp.join(cfg.work_dir, 'last_checkpoint')
    if not osp.isfile(path):
        return None
    with open(path, errors='replace') as file:
        return file.read().strip().strip('\0') or None


def candidates(cfg: Config) -> List[Candidate]:
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


def newest_whole(cfg: Config) -> Optional[str]:
    """The newest checkpoint of the run from which it can go on, whatever
    ``last_checkpoint`` says; prints which it is, and what it passes over.

    Raises:
        UserError: if there are checkpoints, but none is whole.
    """
    last = _named_last(cfg)
    if last and ('://' in last or osp.isdir(last)):
        return last  # of a run that saves to a remote store, or by DeepSpeed
    passed_over = []
    found = candidates(cfg)
    for candidate in found:
        try:
            check_resumable(candidate.path)
        except UserError as error:
            passed_over.append(candidate.path)
            print(f'Passed over: {error}', flush=True)
            continue
        if last and not osp.isfile(last):
            print(f'last_checkpoint names {last!r}, which is no file.')
        named = [c for c in found if last and osp.isfile(last)
                 and osp.samefile(c.path, last)]
        if named and named[0].number > candidate.number:
            print(f'last_checkpoint names {last!r}, a file of an older time: '
                  'if the folder was copied without its times, go on from '
                  f'there by --resume {last}.', flush=True)
        print(f'The run goes on from {candidate.path!r}, the newest whole '
              'checkpoint.', flush=True)
        return candidate.path
    if found:
        raise UserError(
            f'No checkpoint in {cfg.work_dir!r} is whole: '
            f'{", ".join(passed_over)}. Name another by --resume CHECKPOINT, '
            'or move them away to start anew.')
    if last:
        raise UserError(
            f'last_checkpoint in {cfg.work_dir!r} names {last!r}, but there '
            'is no such file, nor another checkpoint. Name one by --resume '
            'CHECKPOINT, or remove last_checkpoint to start anew.')
    return None


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


def _choose(cfg: Config, resume: Optional[str]) -> Tuple[bool, Optional[str]]:
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


def choose_start(cfg: Config, resume: Optional[str] = None) -> None:
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
