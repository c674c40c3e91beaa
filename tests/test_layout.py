"""The package's imports run down only, as its layout says."""
import ast
from pathlib import Path

import sct_mm

PACKAGE = Path(sct_mm.__file__).parent
# A folder or file of the package may import those below it, and its own.
LAYERS = (('arguments', ), ('models', 'datasets'), ('engine', ),
          ('evaluation', 'export'), ('cli', 'doctor'))


def layer_of(part):
    return [i for i, layer in enumerate(LAYERS) if part in layer][0]


def imported(path):
    """The modules of the package that the file at ``path`` imports, as
    paths of names within it."""
    here = path.relative_to(PACKAGE).with_suffix('').parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = tuple(filter(None, (node.module or '').split('.')))
            yield here[:len(here) - node.level] + module
        elif isinstance(node, ast.ImportFrom) and (
                node.module or '').startswith('sct_mm.'):
            yield tuple(node.module.split('.')[1:])


def files():
    return [path for path in sorted(PACKAGE.rglob('*.py'))
            if path.name != '__init__.py']


def test_imports_run_down_only():
    assert files()
    for path in files():
        own = path.relative_to(PACKAGE).with_suffix('').parts
        for module in imported(path):
            assert layer_of(module[0]) < layer_of(own[0]) or (
                module[0] == own[0]), f'{path} imports {module}'


def test_no_file_imports_one_that_imports_it():
    graph = {path.relative_to(PACKAGE).with_suffix('').parts:
             set(imported(path)) for path in files()}

    def reaches(start, seen):
        for module in graph.get(start, ()):
            if module not in seen:
                seen.add(module)
                reaches(module, seen)
        return seen

    for module in graph:
        assert module not in reaches(module, set()), module
