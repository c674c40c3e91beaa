"""The commands in README and docs/ are accepted by the tools."""
import argparse
import os.path as osp
import re
import shlex
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from pages import REPOSITORY, blocks, spans, text_of

from sct_mm.utils.config import config_path

STARTS = ('python ', 'torchrun ', 'make ', 'mim ', 'pip ')
COMMANDS = sorted({
    *((block.page, line) for block in blocks() if block.language == 'bash'
      for line in block.text.replace('\\\n', ' ').splitlines()
      if line.strip() and not line.startswith('#')),
    *((page, code) for page, code in spans() if code.startswith(STARTS))})
# Options of programs that are not ours.
OTHERS = {'--hypothesis-profile', '--nproc_per_node', '--no-deps'}


class Parsed(Exception):
    """Ends a tool after it has parsed its arguments."""


@cache
def tool(script):
    path = REPOSITORY / script
    spec = spec_from_file_location(f'docs_{path.stem}', path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(script, words):
    """The parser of a tool, which has parsed ``words``; the tool ends then."""
    parse_args, seen = argparse.ArgumentParser.parse_args, []
    module = tool(script)

    def stop(parser, argv=None, namespace=None):
        seen.append(parser)
        found = parse_args(parser, argv, namespace)
        if not hasattr(module, 'parse_args'):
            raise Parsed
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LOCAL_RANK', '0')
        patch.setenv('RANK', '0')  # as torchrun does
        patch.setattr(sys, 'argv', [script, *words])
        patch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        try:
            getattr(module, 'parse_args', module.main)()
        except (Parsed, SystemExit) as end:
            if isinstance(end, SystemExit) and words:
                raise AssertionError((script, words)) from end
    for word in words:  # argparse accepts a prefix of a name
        if word.startswith('--'):
            assert word in seen[0]._option_string_actions, (script, word)
    return seen[0]


def check_python(words):
    """Check a command ``python`` with these words."""
    if words[0] == '-m':
        if words[1] == 'pytest':
            for word in words[2:]:
                assert word[0] == '-' or (REPOSITORY / word).exists(), word
            return
        if words[1] == 'sct_mm.doctor':
            assert not words[2:]
            return
        words = [words[1].replace('sct_mm.', '').replace('.', '/') + '.py',
                 *words[2:]]
    assert words[0].startswith(('tools/', 'tests/')), words
    parse(words[0], words[1:])
    for word in words[1:]:
        if re.search(r'^configs/|::', word):
            assert osp.isfile(config_path(str(REPOSITORY / word) if
                                          '::' not in word else word)), word


def check_make(words):
    text = text_of(REPOSITORY / 'Makefile')
    for word in words:
        name, is_set, _ = word.partition('=')
        assert re.search(rf'\$\({name}\)' if is_set else rf'^{name}:', text,
                         re.M), word


def check_pip(words):
    for extra in re.findall(r'(?<=[\[,])\w+(?=[\],])', ' '.join(words)):
        assert f"'{extra}': " in text_of(REPOSITORY / 'setup.py'), extra


def check_source(words):
    name, = words
    assert re.search(rf'VENV := {name.partition("/")[0]}$',
                     text_of(REPOSITORY / 'Makefile'), re.M), name


def check_mim(words):
    assert words[:2] == ['train', 'sct_mm']
    assert (REPOSITORY / 'configs' / words[2]).is_file()


@pytest.mark.parametrize('page, line', COMMANDS)
def test_a_command_can_be_typed(page, line):
    program, *words = shlex.split(line, comments=True)
    if program == 'torchrun':
        start = [word.endswith('.py') for word in words].index(True)
        program, words = 'python', words[start:]
    dict(python=check_python, make=check_make, pip=check_pip,
         mim=check_mim, source=check_source)[program](words)


def scripts():
    """The tools that parse arguments, by their path."""
    return [path.relative_to(REPOSITORY).as_posix()
            for path in sorted(REPOSITORY.glob('tools/**/*.py'))
            if 'ArgumentParser(' in text_of(path)]


def test_every_option_is_one_of_its_tool():
    """Also in inline code that names a tool with options, or only options."""
    flags = {script: set(parse(script, [])._option_string_actions)
             for script in scripts()}
    assert len(flags) > 10
    every = set.union(OTHERS, *flags.values())
    found = 0
    for page, code in spans():
        if not code.startswith(('--', 'tools/')):
            continue
        script = re.match(r'tools/[\w/]+\.py', code)
        for flag in re.findall(r'(?<!\S)--[\w-]+', code):
            known = flags[script[0]] if script else every
            assert flag in known, (page, code)
            found += 1
    assert found > 20
