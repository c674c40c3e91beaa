"""Imports run down the layout only, and the package imports no tool."""
import ast
from pathlib import Path

import sct_mm

PACKAGE = Path(sct_mm.__file__).parent
# Each folder may import from itself and from those behind it.
FOLDERS = ('doctor', 'apis', 'export', 'engine', 'evaluation', 'models',
           'datasets', 'runtime', 'utils')
TOOLS = PACKAGE.parent / 'tools'


def parts(path):
    return path.relative_to(PACKAGE).with_suffix('').parts


def imported(path):
    """(module, line) of each import in the file at ``path``; a module of
    the package as the tuple of its names within it."""
    here = parts(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = here[:len(here) - node.level]
            for alias in node.names if node.module is None else ():
                yield (*folder, alias.name), node.lineno
            if node.module is not None:
                yield (*folder, *node.module.split('.')), node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield tuple(node.module.split('.')), node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split('.')), node.lineno


def own(module):
    """``module`` within the package; None for one of another."""
    if module[:1] == ('sct_mm', ):
        return module[1:]
    return module if (PACKAGE / module[0]).exists() or (
        PACKAGE / f'{module[0]}.py').exists() else None


def files():
    """The modules of the package, without those that name its parts."""
    return [path for path in sorted(PACKAGE.rglob('*.py'))
            if path.name != '__init__.py']


def test_imports_run_down_only():
    assert len(files()) > 30
    for path in files():
        folder = parts(path)[0]
        for module, line in imported(path):
            module = own(module)
            if module is not None:
                assert FOLDERS.index(module[0]) >= FOLDERS.index(folder), (
                    f'{path}:{line} imports {".".join(module)}')


def test_no_file_imports_one_that_imports_it():
    graph = {parts(path): {own(module) for module, _ in imported(path)}
             for path in files()}

    def reaches(start, seen):
        for module in graph.get(start, ()):
            if module not in seen:
                seen.add(module)
                reaches(module, seen)
        return seen

    for module in graph:
        assert module not in reaches(module, set()), module


def test_the_package_imports_no_tool():
    tools = {path.stem for path in TOOLS.rglob('*.py')} | {'tools'}
    for path in PACKAGE.rglob('*.py'):
        for module, line in imported(path):
            assert own(module) is not None or module[0] not in tools, (
                f'{path}:{line} imports {module[0]}')
