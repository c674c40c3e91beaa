"""Run tests/test_hosts, and write what was seen into docs/coverage.md.

    export PYTHONPATH=.venv/hosts    # after make test-hosts
    python tools/benchmarks/coverage/siblings.py
"""
import argparse
import os.path as osp
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from importlib.metadata import distributions

from report import siblings, with_siblings

from sct_mm.utils.checkpoint import AtomicLocalBackend
from sct_mm.utils.cli import cli
from sct_mm.utils.errors import UserError

# {test of tests/test_hosts: column}
TESTS = {'test_a_step_is_one_of_plain_networks': 'a step',
         'test_train_validate_test_and_export': 'train, test, export',
         'test_adapt': 'adapt', 'test_self_supervised': 'train, test, export'}
COLUMNS = tuple(dict.fromkeys(TESTS.values()))


def property_of(case: ET.Element, name: str) -> str | None:
    """What a test recorded by pytest's `record_property`."""
    return next((p.get('value') for p in case.iter('property')
                 if p.get('name') == name), None)


def outcome_of(case: ET.Element) -> str:
    """'yes', 'no' or '-' (skipped); of a step the worst difference."""
    if case.find('skipped') is not None:
        return '-'
    if case.find('failure') is not None or case.find('error') is not None:
        return 'no'
    return property_of(case, 'worst') or 'yes'


def rows_in(report: ET.Element) -> list[dict[str, str]]:
    """A row for each config of a JUnit report of pytest: host, config and
    COLUMNS."""
    rows: dict[str, dict[str, str]] = {}
    for case in report.iter('testcase'):
        match = re.fullmatch(r'(\w+)\[(.+)\]', case.get('name', ''))
        if match and match[1] in TESTS:
            row = rows.setdefault(match[2], dict(
                dict.fromkeys(COLUMNS, '-'), config=match[2],
                host=property_of(case, 'host') or '-'))
            row[TESTS[match[1]]] = outcome_of(case)
    return sorted(rows.values(), key=lambda row: (row['host'],
                                                  row['config']))


def run_tests() -> ET.Element:
    with tempfile.TemporaryDirectory() as folder:
        path = osp.join(folder, 'report.xml')
        subprocess.run([sys.executable, '-m', 'pytest', '-q',
                        '--numprocesses', 'auto', 'tests/test_hosts',
                        f'--junitxml={path}'], check=False)
        if not osp.exists(path):
            raise UserError('The tests must leave a report, but left none: '
                            'run make test-hosts.')
        return ET.parse(path).getroot()


def host_versions() -> list[str]:
    with open(osp.join('tools', 'dev', 'hosts.txt'), encoding='utf-8') as f:
        wanted = {line.partition('==')[0] for line in f
                  if line.startswith('mm')}
    return sorted(f'{d.name} {d.version}' for d in distributions()
                  if d.name in wanted)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--report', metavar='XML', help='a JUnit report of '
                        'the tests; default: run them')
    parser.add_argument('--out', default=osp.join('docs', 'coverage.md'),
                        metavar='FILE', help='the page')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    report = ET.parse(args.report).getroot() if args.report else run_tests()
    with open(args.out, encoding='utf-8') as file:
        text = with_siblings(file.read(), siblings(
            rows_in(report), COLUMNS, host_versions()))
    AtomicLocalBackend().put_text(text, args.out)
    print(f'The page is {args.out}.')


if __name__ == '__main__':
    cli(main)
