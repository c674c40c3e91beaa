"""Check SSBN and SCT in the families of networks of the hosts, and write
docs/coverage.md.

The rows are kept in --work-dir, where an interrupted run goes on.
"""
import argparse
import json
import logging
import os
import os.path as osp
import re
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch
import torch.multiprocessing as mp
from checks import CHECKS, NotApplicable, Trial, one_line, outcome
from mmengine.logging import MessageHub
from networks import (
    HOSTS,
    KNOWN,
    Builder,
    Subject,
    batch_norms,
    host_versions,
    may_have_batch_norm,
    subjects,
)
from report import markdown, right, siblings_in, with_siblings
from rich.progress import Progress
from torch import nn

from sct_mm.models.size_selection import ssbn_layers
from sct_mm.utils.checkpoint import AtomicLocalBackend, dump
from sct_mm.utils.cli import cli
from sct_mm.utils.errors import UserError

# Pairs of a base scale and a smaller one, in pixels. The first at which the
# host's network runs is taken.
SIZES = dict.fromkeys(HOSTS, ((96, 64), (128, 96), (224, 160), (256, 192),
                              (384, 320)))
SIZES['mmdet'] = ((128, 96), (128, 64), (256, 128), (512, 384))
_CANDIDATES = dict(mmdet=6)  # networks of a family that are built; else 40
_TURNS = 25  # families that a process checks before a new one replaces it


def _first_with_norms(subject: Subject) -> tuple[Builder, int]:
    """The first network of a family that has batch normalization, and the
    number of these norms.

    Raises:
        NotApplicable: if none has; its text says why one could not be built.
    """
    why, built = '', False
    limit = _CANDIDATES.get(subject.host, 40)
    names = subject.candidates if may_have_batch_norm(subject) else ()
    for name in names[:limit]:
        try:
            builder = Builder(subject, name)
            try:
                with torch.device('cpu' if builder.config else 'meta'):
                    model = builder()
            except RuntimeError:  # its constructor computes with values
                model = builder()
        except Exception as error:
            why = why or f'{name} cannot be built here: {one_line(error)}'
            continue
        if batch_norms(model):
            return builder, len(batch_norms(model))
        built = True
    raise NotApplicable('' if built else why)


def _refusal(model: nn.Module, builder: Builder,
             scales: tuple[int, ...]) -> dict[int, str]:
    """{scale: error} of the first of ``scales`` at which the host's own
    network does not run; {} if it runs at all."""
    trial = Trial(builder, scales, 'norm_cfg')
    for scale in scales:
        edge = trial.batch(model, scale)['inputs'].shape[-1]
        try:
            if edge != scale:
                raise ValueError(f'padded to {edge} pixels')
            with torch.no_grad():
                trial.loss(model.train(), scale)
        except Exception as error:
            return {scale: one_line(error)}
    return {}


def _fitted(subject: Subject,
            builder: Builder) -> tuple[Builder, tuple[int, ...], str]:
    """The builder, the scales at which its network runs, and, if there is only
    one, the reason.

    Raises:
        NotApplicable: if the host's own network runs at none.
    """
    one: tuple | None = None
    why, model = '', None
    for options in (False, True):
        for scales in SIZES[subject.host]:
            try:
                if options:
                    builder = Builder(subject, builder.name,
                                      img_size=scales[0])
                if options or model is None:
                    model = builder()
            except Exception as error:
                why = why or one_line(error)
                break
            refused = _refusal(model, builder, scales)
            if not refused:
                return builder, scales, ''
            why = why or next(iter(refused.values()))
            if scales[0] not in refused and one is None:
                one = (builder, scales[:1], f'fixed to one size by the host: '
                       f'built for {scales[0]} pixels, at {scales[1]} it '
                       f'raises {refused[scales[1]]}')
    if one is None:
        raise NotApplicable(f'the host itself does not run: {why}')
    return one


def _way(builder: Builder, scales: Sequence[int],
         norms: int) -> tuple[str, str]:
    """By what every norm becomes SSBN, 'norm_cfg', 'WithSSBN' or
    'convert_to_ssbn', and a note if 'norm_cfg' does not reach all."""
    if builder.config is None:
        return 'convert_to_ssbn', ''
    try:
        reached = len(ssbn_layers(builder(scales, 'norm_cfg', False)))
    except Exception as error:
        return 'WithSSBN', f'norm_cfg: {one_line(error)}'
    return ('norm_cfg', '') if reached == norms else (
        'WithSSBN', f'norm_cfg reaches {reached} of {norms} norms')


def try_family(subject: Subject) -> dict[str, Any]:
    """The row of one family; see :func:`coverage`."""
    row: dict[str, Any] = dict(
        host=subject.host, family=subject.family, network='', by='',
        scales=[], norms=0, **dict.fromkeys(CHECKS, '-'), deployed_by=[],
        note='')
    try:
        builder, norms = _first_with_norms(subject)
        row.update(network=builder.name, norms=norms)
        builder, scales, fixed = _fitted(subject, builder)
        by, how = _way(builder, scales, norms)
    except NotApplicable as why:
        reasons = filter(None, (str(why), KNOWN.get(subject.key)))
        return dict(row, note='; '.join(reasons))
    trial = Trial(builder, scales, by)
    found = outcome(trial)
    wrong = found.pop('note')
    notes = filter(None, (fixed, how, wrong,
                          wrong and KNOWN.get(subject.key)))
    return dict(row, by=by, scales=list(scales), **found,
                deployed_by=getattr(trial, 'deployed_by', []),
                note='; '.join(notes))


def _serve(pipe, log: str) -> None:
    """Answer each subject that comes through ``pipe`` with its row, in a
    process whose output goes to the file ``log``."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):  # some hosts print from C
        os.dup2(file, stream)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    # Some heads of mmdet read the epoch from the message hub of a Runner.
    MessageHub.get_current_instance().update_info('epoch', 0)
    while True:
        try:
            subject = pipe.recv()
        except EOFError:  # the other process has ended
            return
        start = time.perf_counter()
        try:
            row = try_family(subject)
        except Exception as error:
            row = dict(failed(subject, one_line(error)))
        pipe.send(dict(row, seconds=round(time.perf_counter() - start, 1)))


def failed(subject: Subject, why: str) -> dict[str, Any]:
    """The row of a family of which no network could be checked."""
    return dict(host=subject.host, family=subject.family, network='', by='',
                scales=[], norms=0, **dict(dict.fromkeys(CHECKS, '-'),
                                           builds='no'),
                deployed_by=[], note=why, seconds=0.0)


class Worker:
    """A process that checks families. After a crash, a time-out or _TURNS
    families, a new process replaces it."""

    def __init__(self, log: str, limit: float) -> None:
        self.log, self.limit, self.process = log, limit, None

    def ask(self, subject: Subject) -> dict[str, Any]:
        if self.process is None:
            context = mp.get_context('spawn')
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(
                target=_serve, args=(theirs, self.log), daemon=True)
            self.process.start()
            theirs.close()
            self.turns = 0
        self.turns += 1
        try:
            self.pipe.send(subject)
            if self.pipe.poll(self.limit):
                row = self.pipe.recv()
                if self.turns == _TURNS:
                    self.stop()
                return row
            why = f'not done after {self.limit:.0f} s'
        except (EOFError, OSError):
            self.process.join(10)
            why = f'the process ended with {self.process.exitcode}'
        self.stop()
        return failed(subject, why)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process = None


def coverage(hosts: Sequence[str] = HOSTS, only: str = '',
             out: str = osp.join('docs', 'coverage.md'),
             work_dir: str = osp.join('work_dirs', 'coverage'),
             jobs: int = 1, again: bool = False,
             limit: float = 600) -> list[dict[str, Any]]:
    """Check the families of ``hosts``; keep their rows in
    ``work_dir``/coverage.json, and write the page when all are checked.

    Rows that are there, of the same versions of the hosts, are not checked
    again. The keys of a row are host, family, network, by (how SSBN came in),
    scales, norms, the names of :data:`CHECKS` ('yes', 'no' or '-'),
    deployed_by, note and seconds.

    Args:
        only: a regular expression, which host/family must contain.
        out: path of the page. While a family of any host is not checked, the
            page goes to ``work_dir`` instead.
        jobs: number of processes.
        again: check families again that have a row.
        limit: seconds for one family.

    Returns:
        All rows, those of earlier runs included.

    Raises:
        UserError: for an ``only`` that is no regular expression.
    """
    families = subjects(hosts)
    try:
        wanted = [s for s in families if re.search(only, s.key)]
    except re.error as error:
        raise UserError(f'`only` must be a regular expression, but got '
                        f'{only!r} ({error}). Leave it out for all.') from None
    versions, state = host_versions(), osp.join(work_dir, 'coverage.json')
    os.makedirs(work_dir, exist_ok=True)
    rows = known_rows(state, versions)
    todo = [s for s in wanted if again or s.key not in rows]
    log = osp.join(work_dir, 'output.txt')
    workers = [Worker(log, limit) for _ in range(jobs)]
    try:
        with Progress() as progress, ThreadPoolExecutor(jobs) as pool:
            task = progress.add_task('coverage', total=len(todo))
            for future in as_completed(_shared(pool, workers, todo)):
                row = future.result()
                rows[f'{row["host"]}/{row["family"]}'] = row
                dump(dict(versions=versions, rows=in_order(rows)), state)
                progress.advance(task)
    finally:
        for worker in workers:
            worker.stop()
    untried = [s.key for s in subjects(HOSTS) if s.key not in rows]
    page = osp.join(work_dir, 'coverage.md') if untried else out
    text = markdown(versions, in_order(rows), untried)
    if osp.exists(page):
        with open(page, encoding='utf-8') as file:
            kept = siblings_in(file.read())
        text = with_siblings(text, kept) if kept else text
    AtomicLocalBackend().put_text(text, page)
    print(f'The page is {page}.')
    return list(rows.values())


def in_order(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows.values(), key=lambda row: (
        HOSTS.index(row['host']), row['family'].lower()))


def _shared(pool: ThreadPoolExecutor, workers: list[Worker],
            todo: list[Subject]) -> list:
    """A future per family, each of which takes a free worker."""
    def turn(subject: Subject) -> dict[str, Any]:
        worker = workers.pop()
        try:
            return worker.ask(subject)
        finally:
            workers.append(worker)
    return [pool.submit(turn, subject) for subject in todo]


def known_rows(path: str, versions: dict[str, str]) -> dict[str, dict]:
    """{host/family: row} that an earlier run with ``versions`` kept in the
    file at ``path``."""
    if not osp.exists(path):
        return {}
    with open(path, encoding='utf-8') as file:
        found = json.load(file)
    if found['versions'] != versions:
        return {}
    return {f'{row["host"]}/{row["family"]}': row for row in found['rows']}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--hosts', nargs='+', default=HOSTS,
                        help='of ' + ', '.join(HOSTS) + '; default: all')
    parser.add_argument('--only', default='', metavar='REGEX',
                        help='which host/family must contain')
    parser.add_argument('--out', default=osp.join('docs', 'coverage.md'),
                        metavar='FILE', help='the page; while a family is '
                        'not checked, it goes to --work-dir')
    parser.add_argument('--work-dir', metavar='DIR',
                        default=osp.join('work_dirs', 'coverage'),
                        help='where rows are kept, and what the hosts print')
    parser.add_argument('--jobs', type=int, default=1,
                        help='number of processes, of one thread each')
    parser.add_argument('--again', action='store_true',
                        help='check families again that have a row')
    parser.add_argument('--limit', type=float, default=600, metavar='SECONDS',
                        help='for one family')
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, but got {args.jobs}.')
    return args


def main() -> None:
    args = parse_args()
    # Before the processes start that import torch.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    rows = [row for row in coverage(**vars(args))
            if row['norms'] or row['note']]
    exceptions = [row for row in rows if not right(row)]
    for row in exceptions:
        print(f'{row["host"]}/{row["family"]}: {row["note"]}')
    print(f'{len(rows) - len(exceptions)} of {len(rows)} families pass every '
          'check that applies.')


if __name__ == '__main__':
    cli(main)
