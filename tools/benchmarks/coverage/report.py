"""The page docs/coverage.md, from the rows of the families."""
from collections.abc import Sequence
from typing import Any

from checks import CHECKS

_INTRODUCTION = """\
# Coverage

In which families of networks SSBN and SCT work. The page is written by

    python tools/benchmarks/coverage/run.py

It takes the families of the hosts that are installed, and of each family the
smallest network that has batch normalization. Every check compares with the
network that the host builds itself.
"""

_MARK = '## Sibling hosts'
_SIBLINGS = f"""{_MARK}

Configs that the siblings ship, with smaller images, on about ten images in the
format of their data sets (`tests/test_hosts`). This section is written by

    export PYTHONPATH=.venv/hosts    # after make test-hosts
    python tools/benchmarks/coverage/siblings.py

A step of `SCTLossHook` is compared with networks of the host, one per scale,
on a batch that is resized by hand: the worst difference of loss, gradients and
statistics, relative to the largest entry of a tensor. Then the tools run, and
the host's own test of an exported scale gives the metrics of ours. `-`: not
run.
"""

_MEANING = dict(
    builds='every norm is SSBN, and each scale starts as the host starts it',
    sct_step='a step of `SCTLossHook` gives the gradients and statistics of '
    'the host\'s networks, one per scale; parameters stay finite',
    saved='a new network that loads the weights, saved by `torch.save` or by '
    'safetensors, gives the same outputs, to the bit',
    chooses='unpinned, the outputs at each scale are those of the network '
    'pinned to it, to the bit, and not those of another scale',
    extracts='an extracted scale has the host\'s layers; the host\'s own '
    'network loads it strictly; the outputs are equal',
    deploys='what the host fuses for inference in its own network, it fuses '
    'in an extracted scale; outputs within 1e-4')

_HEAD = ('family', 'network', 'SSBN by', 'scales', 'norms', *CHECKS)


def right(row: dict[str, Any]) -> bool:
    """Whether the network passed every check that applies to it."""
    return row['builds'] == 'yes' and 'no' not in [row[c] for c in CHECKS]


def fixed(row: dict[str, Any]) -> bool:
    return len(row['scales']) == 1


def _line(cells) -> str:
    return '| ' + ' | '.join(str(c).replace('|', '/') for c in cells) + ' |'


def _table(head, rows) -> list[str]:
    return [_line(head), '|' + '---|' * len(head), *map(_line, rows), '']


def _cells(row: dict[str, Any]) -> list[str]:
    checks = [row[check] for check in CHECKS]
    if row['deployed_by']:
        checks[-1] = ', '.join(row['deployed_by'])
    return [row['family'], row['network'], row['by'],
            ', '.join(map(str, row['scales'])), str(row['norms']), *checks]


def siblings(rows: Sequence[dict[str, str]], columns: Sequence[str],
             versions: Sequence[str]) -> str:
    """The section of the hosts of tools/dev/hosts.txt.

    Args:
        rows: with the keys host, config and ``columns``.
    """
    head = ('host', 'config', *columns)
    return '\n'.join([
        _SIBLINGS, *_table(head, ([row[name] for name in head]
                                  for row in rows)),
        'Versions: ' + ', '.join(versions) + '.'])


def with_siblings(page: str, section: str) -> str:
    """``page``, at whose end ``section`` replaces that of the siblings."""
    return page.partition(_MARK)[0].rstrip() + '\n\n' + section + '\n'


def siblings_in(page: str) -> str:
    """The section of the siblings of ``page``; '' if it has none."""
    return ''.join(page.partition(_MARK)[1:]).rstrip()


def markdown(versions: dict[str, str], rows: list[dict[str, Any]],
             untried: Sequence[str] = ()) -> str:
    """The page.

    Args:
        versions: of the packages, by their names.
        rows: of the families; their keys are documented in run.py.
        untried: host/family of those that were not checked yet.
    """
    hosts = list(dict.fromkeys(row['host'] for row in rows))
    tried = {host: [r for r in rows if r['host'] == host and (
        r['norms'] or r['note'])] for host in hosts}
    none = {host: [r['family'] for r in rows if r['host'] == host
                   and not r['norms'] and not r['note']] for host in hosts}
    lines = [_INTRODUCTION, *_table(('check', 'what holds'),
                                    _MEANING.items()),
             '`-`: the check does not apply: nothing to fuse, or one size.',
             '', *_table(
                 ('host', 'families with batch normalization',
                  'pass every check', 'of these, at one size only',
                  'exceptions'),
                 [(host, len(of), sum(map(right, of)),
                   sum(right(r) and fixed(r) for r in of),
                   sum(not right(r) for r in of))
                  for host, of in tried.items()])]
    lines += ['Versions: ' + ', '.join(
        f'{name} {number}' for name, number in versions.items()) + '.', '']
    if untried:
        lines += [f'Not run yet ({len(untried)}): {", ".join(untried)}.', '']
    for host, of in tried.items():
        lines += [f'## {host}', '', *_table(_HEAD, map(_cells, of))]
        notes = [f'- {r["family"]}: {r["note"]}.' for r in of if r['note']]
        if notes:
            lines += [*notes, '']
        if none[host]:
            lines += ['Without batch normalization: '
                      + ', '.join(none[host]) + '.', '']
    return '\n'.join(lines).rstrip() + '\n'
