"""Prints the diagnosis; the exit code is 1 if something conflicts."""
import argparse
import platform
import sys

from .checks import Conflict, conflicts_of
from .environment import OPERATORS, SHOWN, SIBLINGS, Environment, examine


def row(env: Environment, name: str) -> str:
    owners = env.owners.get(name, {})
    source = ', '.join(f'{owner} {version}'
                       for owner, version in sorted(owners.items()))
    if not owners:
        source = 'not from a distribution' if env.has(name) else 'absent'
    if name == 'mmcv' and env.has(name):
        operators = OPERATORS in env.imported
        source += f', {"with" if operators else "without"} operators'
    state = ''
    if env.errors.get(name):
        state = '  (cannot be imported)'
    return f'  {name:<12}{env.version(name) or "-":<16}{source}{state}'


def notes(env: Environment) -> list[str]:
    """What is no conflict, but good to know."""
    if 'onedl-mmengine' in env.owners.get('mmengine', ()):
        return ['OneDL\'s mmengine runs the code in a checkpoint that torch '
                'refuses; the tools of sct_mm do not. For your own scripts '
                'set TORCH_FORCE_WEIGHTS_ONLY_LOAD=1.']
    if env.has('mmengine'):
        return ['torch reads the checkpoints of mmengine where sct_mm is '
                'imported: keep it in `custom_imports`.']
    return []


def report(env: Environment, conflicts: list[Conflict]) -> str:
    lines = [f'  {"Python":<12}{platform.python_version():<16}'
             f'{sys.executable}']
    lines += [row(env, name) for name in (*SHOWN, *SIBLINGS)
              if name in SHOWN or env.has(name)]
    lines += [f'  {"GPU":<12}{env.gpu or "none that torch sees"}', '']
    lines += [f'Note: {note}' for note in notes(env)]
    for i, conflict in enumerate(conflicts, 1):
        lines += [f'Conflict {i}: {conflict.what} Fix it by',
                  *(f'    {line}' for line in conflict.fix)]
    return '\n'.join(lines + ([] if conflicts else ['Nothing conflicts.']))


def main() -> int:
    argparse.ArgumentParser(
        'python -m sct_mm.doctor', description='Say what is installed, what '
        'conflicts, and the commands that fix it; the exit code is 1 if '
        'something does.').parse_args()
    env = examine()
    conflicts = conflicts_of(env)
    print(report(env, conflicts))
    return bool(conflicts)


if __name__ == '__main__':
    sys.exit(main())
