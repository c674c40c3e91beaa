"""Print what ``adapt`` has measured, and what its figures are worth."""
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from ..utils.cli import console_for
from .report import formatted, make_table

# What a size may keep, from the least change on.
NOTHING, MIXED = 'nothing', 'mix of its neighbours'
STATISTICS, TRAINED = 'statistics', 'trained'
# Of a trial of a learning rate; a shorter training has none, and shows little.
FEWEST_STEPS = 16
_WIDTH = 100  # columns of a terminal that the table takes at most
_UNCERTAIN = 5  # points from which on a warning names them
# {end of a metric's name: (its head in the table, what it is)}
_METRICS = {
    'agreement/all': ('all, %', 'all: images that get the same answer as at '
                      '{base} px.'),
    'agreement/sure': ('sure, %', 'sure: the same, of those with a confidence '
                       'above 0.5 at {base} px.'),
    'kl': ('KL', 'KL: distance from the answers at {base} px in nats; less '
           'is better.'),
    'bbox_mAP': ('mAP', 'mAP: with the boxes at {base} px as truth.'),
    'mIoU': ('mIoU, %', 'mIoU: with the labels at {base} px as truth.'),
    'loss': ('loss', 'loss: that of the training; less is better.')}
# {what is kept: (its name in the table, what it is)}
_KEPT = {
    TRAINED: (TRAINED, 'trained'),
    STATISTICS: (STATISTICS, 'statistics (re-estimated, nothing trained)'),
    MIXED: ('mix', 'mix (of its neighbours)'),
    NOTHING: (NOTHING, 'nothing (it answers as before)')}


def uncertainty(images: int) -> float:
    """The points of % by which a share of ``images`` is uncertain: two
    standard deviations of a share of a half, within which 95 % of such
    samples are."""
    return 100 / images ** 0.5


def doubt(images: int | None, steps: int | None,
          rate: float | None) -> str | None:
    """What to warn of beside figures that are uncertain; None if they are
    not.

    Args:
        images: that were measured on; None: not by shares of them.
        steps: of the training; None: there was none.
        rate: the learning rate, if the training was too short to find it.
    """
    why: list[str] = []
    points = 0.0 if images is None else uncertainty(images)
    if points > _UNCERTAIN:
        why.append(f'{images} held-out images leave a share in % uncertain by '
                   f'{points:.0f} points')
    if steps is not None and steps < FEWEST_STEPS:
        why.append(f'{steps} steps of training show little of what the '
                   'network can learn' + (
                       f', and are too few to try learning rates: it had '
                       f'{rate:g}' if rate is not None else ''))
    if not why:
        return None
    return f'Warning: {"; ".join(why)}. Give more images or --epochs.'


def _metrics_of(rows: Sequence[dict]) -> dict[str, tuple[str, str]]:
    """{name: (head, explanation)} of the metrics that the table shows."""
    found = {}
    for name in rows[0]['before']:
        for end, (head, text) in _METRICS.items():
            if name == end or name.endswith(f'/{end}'):
                task = name.removesuffix(end).rstrip('/')
                found[name] = (f'{task}\n{head}' if task else head, text)
    return found


def _table(rows: list[dict], heads: dict[str, str]) -> Table:
    """A line for each of ``rows``, with the metrics ``{name: head}``."""
    def cell(when: str, name: str) -> Callable[[dict], str]:
        return lambda row: formatted(row[when][name], [
            dict(metrics=each[when]) for each in rows], name)

    return make_table('', rows, {
        'size': lambda row: str(row['size']),
        **{f'{head}\n{when}': cell(when, name)
           for name, head in heads.items() for when in ('before', 'after')},
        'keeps': lambda row: _KEPT[row['keeps']][0]})


def print_adapted(result: dict) -> None:
    """Print how the answers of each smaller size compare with those of the
    base, before and after, and what the size keeps, of the result of
    :func:`sct_mm.apis.adapt`; then what the columns are, what was trained,
    and what to doubt."""
    rows, base = result['rows'], result['scales'][0]
    metrics = _metrics_of(rows)
    heads = {name: head for name, (head, _) in metrics.items()}
    table = _table(rows, heads)
    while Console(width=1000, markup=False).measure(table).maximum > _WIDTH:
        heads.popitem()
        table = _table(rows, heads)
    # Not the title of the table, which may be narrower.
    print(f'Compared with the base, {base} pixels, on {result["held_out"]} '
          'images that it was not adapted on:')
    console_for(table).print(table)
    texts = dict.fromkeys(metrics[name][1].format(base=base)
                          for name in heads)
    kept = dict.fromkeys(_KEPT[row['keeps']][1] for row in rows)
    print(' '.join(texts), f'keeps: what is written: {", ".join(kept)}.')
    for line in _sentences(result):
        print(line)


def _compared(row: dict) -> str:
    """'24 px (all 76.6 for 87.1)': the first metric of a size, after for
    before."""
    name, (head, _) = next(iter(_metrics_of([row]).items()))
    after, before = (formatted(row[when][name], [dict(metrics=row[when])],
                               name) for when in ('after', 'before'))
    head = head.replace('\n', ' ').removesuffix(', %')
    return f'{row["size"]} px ({head} {after} for {before})'


def _sentences(result: dict) -> Iterator[str]:
    """What to know beside the table."""
    trials, rate = result['trials'].get('steps'), result['lr']
    if trials:
        yield (f'The learning rate {rate:g} was chosen by trials of {trials} '
               'steps.')
    trained = [row for row in result['rows'] if TRAINED in row['found']]
    if trained and not any(row['keeps'] == TRAINED for row in trained):
        yield ('No size keeps what was trained: with the learning rate '
               f'{rate:g} it serves none better than what was there. Give a '
               'smaller --lr, or more images, and --force.')
    worse = [row for row in result['between'] if row['worse']]
    if worse:
        yield ('Warning: sizes between these are served by a mix, which is '
               'worse than the network as it was at '
               + ', '.join(map(_compared, worse)) + '. Test none of them, '
               'name them by --sizes, or train them by --between 0.5.')
    shares = any(name.endswith(('agreement/all', 'mIoU'))
                 for name in result['rows'][0]['before'])
    warning = doubt(result['held_out'] if shares else None,
                    result['steps'] or None,
                    rate if trials == 0 else None)
    if warning:
        yield warning
