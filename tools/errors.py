"""Write docs/errors.md, every error of this package with its fix, from the
code that raises them."""
import argparse
import ast
import glob
import os.path as osp
import re

from sct_mm.utils.checkpoint import AtomicLocalBackend
from sct_mm.utils.cli import cli

HEAD = '''# Every error

What this package refuses, by the part of the code that does, with what to do
(made by `tools/errors.py`; `…` stands for a value). What is met most often is
explained in [Troubleshoot](troubleshoot.md).
'''
PARTS = {'__init__': 'Installation', 'arguments': 'Arguments',
         'cli': 'Commands', 'datasets': 'Images',
         'doctor': 'Installation', 'engine': 'Training and testing',
         'evaluation': 'Tools', 'export': 'Export', 'models': 'Layers',
         'tools': 'Commands'}


def text_of(node: ast.AST) -> str:
    """The text in code, values as `…`, those joined by + as one."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return ''.join(map(text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return '…'


def sentences_of(path: str) -> list[str]:
    """What the file raises with a sentence of its own."""
    with open(path, encoding='utf-8') as file:
        tree = ast.parse(file.read())
    said = [re.sub('…+', '…', text_of(node.exc.args[0]).strip())
            for node in ast.walk(tree) if isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call) and node.exc.args]
    # Others are caught, and told within a sentence.
    return [each for each in said if re.match(r'[A-Z`]|.*[.:] [A-Z`]', each)]


def split(sentence: str) -> tuple[str, str]:
    """What is wrong, and what to do: our errors end with it."""
    parts = re.fullmatch(r'(.*[.:]) (?=[A-Z`])(.*)', sentence)
    return parts.groups() if parts else (sentence, 'what it ends with')


def page(root: str) -> str:
    parts: dict[str, list[str]] = {}
    paths = [*sorted(glob.glob(osp.join(root, 'sct_mm', '**', '*.py'),
                               recursive=True)),
             *sorted(glob.glob(osp.join(root, 'tools', '*.py')))]
    for path in paths:
        name = osp.relpath(path, root).replace(f'sct_mm{osp.sep}', '')
        part = PARTS[re.split(r'[/.\\]', name)[0]]
        if said := sentences_of(path):
            parts.setdefault(part, []).extend(said)
    text = HEAD
    for part, said in parts.items():
        text += f'\n## {part}\n\n| it says | what to do |\n|---|---|\n'
        for sentence in sorted(set(said), key=lambda s: s.strip('`-')):
            cells = [cell.replace('|', '\\|') for cell in split(sentence)]
            text += f'| {" | ".join(cells)} |\n'
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.', metavar='FOLDER',
                        help='of the repository (default: this one)')
    root = parser.parse_args().root
    path = osp.join(root, 'docs', 'errors.md')
    AtomicLocalBackend().put(page(root).encode(), path)
    print(path)


if __name__ == '__main__':
    cli(main)
