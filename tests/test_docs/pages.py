"""Parse README and docs/: blocks of code, prose, tables and links."""
import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT

REPOSITORY = Path(ROOT)
PAGES = [REPOSITORY / 'README.md', *sorted(REPOSITORY.glob('docs/*.md'))]
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
SPAN = re.compile(r'(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)')
LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')


class Block(NamedTuple):
    """A block of code, its page and its language."""
    page: str
    language: str
    text: str


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def text_of(path: Path) -> str:
    return path.read_text(encoding='utf-8')


def prose_of(path: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub('', text_of(path))


def blocks() -> list[Block]:
    """All blocks of code; those indented by four spaces count as `bash`."""
    found = []
    for path in PAGES:
        found += [Block(name_of(path), *match)
                  for match in FENCE.findall(text_of(path))]
        found += [Block(name_of(path), 'bash', line.strip())
                  for line in prose_of(path).splitlines()
                  if line.startswith('    python ')]
    return found


def spans() -> Iterator[tuple]:
    """(page, code) of all inline code, with line breaks as spaces."""
    for path in PAGES:
        for code in SPAN.findall(prose_of(path)):
            yield name_of(path), ' '.join(code.split())


def tables_of(text: str) -> list[list[list[str]]]:
    """The tables of a page, each a list of rows of cells, without the line
    below the head."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if not line.startswith('|'):
            found.append([])
        elif not re.fullmatch(r'[|: -]+', line) or not found[-1]:
            found[-1].append([cell.strip()
                              for cell in line.split('|')[1:-1]])
    return [table for table in found if table]


def anchors_of(path: Path) -> set:
    """The anchors that GitHub and mkdocs give the headings of a page."""
    heads = re.findall(r'^#+ (.*)$', prose_of(path), re.M)
    return {re.sub(r'[^\w\- ]', '', head.lower()).strip().replace(' ', '-')
            for head in heads}


def is_config(code: str) -> bool:
    """Whether Python code is a config: only assignments, and no call but
    `dict`."""
    tree = ast.parse(code)
    return all(isinstance(node, ast.Assign) for node in tree.body) and all(
        isinstance(node.func, ast.Name) and node.func.id == 'dict'
        for node in ast.walk(tree) if isinstance(node, ast.Call))
