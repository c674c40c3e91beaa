"""In which networks of which hosts SSBN and SCT work, as a table."""
import argparse
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from checks import CHECKS, Nothing, Trial, outcome, said
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
from report import markdown, right
from rich.progress import Progress
from torch import nn

from sct_mm.models.size_selection import ssbn_layers
from sct_mm.utils.checkpoint import AtomicLocalBackend, dump
from sct_mm.utils.cli import cli
from sct_mm.utils.errors import UserError

# Base scale and a smaller one, in pixels: the first pair that the host takes.
SIZES = dict.fromkeys(HOSTS, ((96, 64), (128, 96), (224, 160), (256, 192),
                              (384, 320)))
SIZES['mmdet'] = ((128, 96), (128, 64), (256, 128), (512, 384))
_CANDIDATES = dict(mmdet=6)  # networks of a family that are looked at
_TURNS = 25  # of a process, before a new one takes its place


def _named(subject: Subject) -> tuple[Builder, int]:
    """The first network of a family that has batch normalization, and how
    many of its norms are.

    Raises:
        Nothing: if none has; its text is empty if that is all.
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
            except RuntimeError:  # it computes with values as it is built
                model = builder()
        except Exception as error:
            why = why or f'{name} cannot be built here: {said(error)}'
            continue
        if batch_norms(model):
            return builder, len(batch_norms(model))
        built = True
    raise Nothing('' if built else why)


def _refusal(model: nn.Module, builder: Builder,
             scales: tuple[int, ...]) -> dict[int, str]:
    """{scale: what the host's own network says to images of it}; of the
    scales at which it runs, none."""
    said_at = {}
    trial = Trial(builder, scales, 'norm_cfg')
    for scale in scales:
        edge = trial.batch(model, scale)['inputs'].shape[-1]
        try:
            if edge != scale:
                raise ValueError(f'padded to {edge} pixels')
            with torch.no_grad():
                trial.loss(model.train(), scale)
        except Exception as error:
            said_at[scale] = said(error)
            break
    return said_at


def _fitted(subject: Subject,
            builder: Builder) -> tuple[Builder, tuple[int, ...], str]:
    """The builder, the scales that its network takes, and why there is only
    one, if so.

    Raises:
        Nothing: if the host's own network runs at none of the sizes.
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
                why = why or said(error)
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
        raise Nothing(f'the host itself does not run: {why}')
    return one


def _way(builder: Builder, scales: Sequence[int],
         norms: int) -> tuple[str, str]:
    """How SSBN reaches every norm: by 'norm_cfg', if that does, else by
    'WithSSBN' or 'convert_to_ssbn'; and what is to be said of it."""
    if builder.config is None:
        return 'convert_to_ssbn', ''
    try:
        reached = len(ssbn_layers(builder(scales, 'norm_cfg', False)))
    except Exception as error:
        return 'WithSSBN', f'norm_cfg: {said(error)}'
    return ('norm_cfg', '') if reached == norms else (
        'WithSSBN', f'norm_cfg reaches {reached} of {norms} norms')


def try_family(subject: Subject) -> dict[str, Any]:
    """The row of one family: see :func:`coverage`."""
    row: dict[str, Any] = dict(
        host=subject.host, family=subject.family, network='', by='',
        scales=[], norms=0, **dict.fromkeys(CHECKS, '-'), deployed_by=[],
        note='')
    try:
        builder, norms = _named(subject)
        row.update(network=builder.name, norms=norms)
        builder, scales, fixed = _fitted(subject, builder)
        by, how = _way(builder, scales, norms)
    except Nothing as why:
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
    """A process of its own for one family after another."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):  # hosts print; some from C
        os.dup2(file, stream)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    # Some of mmdet's heads ask a Runner's which epoch it is.
    MessageHub.get_current_instance().update_info('epoch', 0)
    while True:
        try:
            subject = pipe.recv()
        except EOFError:  # whoever asked has ended
            return
        start = time.perf_counter()
        try:
            row = try_family(subject)
        except Exception as error:
            row = dict(failed(subject, said(error)))
        pipe.send(dict(row, seconds=round(time.perf_counter() - start, 1)))


def failed(subject: Subject, why: str) -> dict[str, Any]:
    return dict(host=subject.host, family=subject.family, network='', by='',
                scales=[], norms=0, **dict(dict.fromkeys(CHECKS, '-'),
                                           builds='no'),
                deployed_by=[], note=why, seconds=0.0)


class Worker:
    """A process that tries families; a new one after a crash, a time-out or
    many turns."""

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


def coverage(hosts: Sequence[str] = HOSTS, only: str = '', out: str = 'docs',
             jobs: int = 1, again: bool = False,
             limit: float = 600) -> list[dict[str, Any]]:
    """Try the families of ``hosts`` and write ``out``/coverage.json and .md.

    What stands there already, from the same versions of the hosts, is not
    tried again. A row has the keys host, family, network, by (how SSBN came
    in), scales, norms, the names of :data:`CHECKS` ('yes', 'no' or '-'),
    deployed_by, note and seconds.

    Args:
        only: a regular expression, which host/family must contain.
        jobs: processes at once.
        again: try also what is there.
        limit: seconds for one family.

    Returns:
        All rows, also those that were there.
    """
    families = subjects(hosts)
    try:
        wanted = [s for s in families if re.search(only, s.key)]
    except re.error as error:
        raise UserError(f'`only` must be a regular expression, but got '
                        f'{only!r} ({error}). Leave it out for all.') from None
    versions, folder = host_versions(), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'coverage.json'
    rows = known_rows(path, versions)
    todo = [s for s in wanted if again or s.key not in rows]

    def keep(row: dict[str, Any]) -> None:
        rows[f'{row["host"]}/{row["family"]}'] = row
        found = sorted(rows.values(), key=lambda r: (
            HOSTS.index(r['host']), r['family'].lower()))
        dump(dict(versions=versions, rows=found), str(path))
        untried = [s.key for s in families if s.key not in rows]
        AtomicLocalBackend().put_text(markdown(versions, found, untried),
                                      folder / 'coverage.md')

    log = os.environ.get('SCT_COVERAGE_LOG', os.devnull)
    workers = [Worker(log, limit) for _ in range(jobs)]
    try:
        with Progress() as progress, ThreadPoolExecutor(jobs) as pool:
            task = progress.add_task('coverage', total=len(todo))
            for row in as_completed(_shared(pool, workers, todo)):
                keep(row.result())
                progress.advance(task)
    finally:
        for worker in workers:
            worker.stop()
    return list(rows.values())


def _shared(pool: ThreadPoolExecutor, workers: list[Worker],
            todo: list[Subject]) -> list:
    """A future a family; each takes a worker that is free."""
    def turn(subject: Subject) -> dict[str, Any]:
        worker = workers.pop()
        try:
            return worker.ask(subject)
        finally:
            workers.append(worker)
    return [pool.submit(turn, subject) for subject in todo]


def known_rows(path: Path, versions: dict[str, str]) -> dict[str, dict]:
    """{host/family: row} of what an earlier run with ``versions`` found."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding='utf-8'))
    if found['versions'] != versions:
        return {}
    return {f'{row["host"]}/{row["family"]}': row for row in found['rows']}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--hosts', nargs='+', default=HOSTS,
                        help='of ' + ', '.join(HOSTS) + '; default: all')
    parser.add_argument('--only', default='', metavar='REGEX',
                        help='which host/family must contain')
    parser.add_argument('--out', default='docs', metavar='DIR')
    parser.add_argument('--jobs', type=int, default=1,
                        help='processes at once, of one thread each')
    parser.add_argument('--again', action='store_true',
                        help='try also what the table has')
    parser.add_argument('--limit', type=float, default=600, metavar='SECONDS',
                        help='for one family')
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, but got {args.jobs}.')
    return args


def main() -> None:
    # Before the processes start that import torch.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    rows = [row for row in coverage(**vars(parse_args())) if row['norms']
            or row['note']]
    exceptions = [row for row in rows if not right(row)]
    for row in exceptions:
        print(f'{row["host"]}/{row["family"]}: {row["note"]}')
    print(f'{len(rows) - len(exceptions)} of {len(rows)} families are right.')


if __name__ == '__main__':
    cli(main)
