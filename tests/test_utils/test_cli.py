"""Tools show one sentence for what a user can fix, and tracebacks of bugs."""
import argparse
import io
import os
import re
import subprocess
import sys
import warnings
from urllib.error import URLError

import pytest
import torch
from conftest import ROOT
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import MODELS

from sct_mm.utils.cli import add_cfg_options, cli
from sct_mm.utils.errors import UserError

TOOL = """
import warnings
from sct_mm.utils.cli import cli

def main():
    warnings.warn('24 pixels were not trained.', stacklevel=2)
    warnings.warn('torch.meshgrid: indexing. (Triggered internally at x:1.)')
    warnings.warn('Of torch. (Triggered internally at /torch/x.cpp:213.)')
    warnings.warn('autocast is old', FutureWarning)

cli(main)
"""


@pytest.mark.parametrize('text, value', [
    (' 0.1', 0.1), (' [1]', [1]), (' None', None),
    ('/a b/(c d)', '/a b/(c d)'), ("'a b'", 'a b'), ('[28, 21]', [28, 21]),
    ('(1, (2, 3))', (1, (2, 3))), ('a, b', ['a', 'b']), ('2', 2), ('', '')])
def test_settings_of_a_config_keep_the_spaces_of_a_path(text, value):
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    args = parser.parse_args(['--cfg-options', 'a.b=1', f'c={text}'])
    assert args.cfg_options == {'a.b': 1, 'c': value}


def _no_network():
    raise URLError('no route')


def show(*options):
    done = subprocess.run([sys.executable, *options, '-c', TOOL], cwd=ROOT,
                          capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_warnings_are_one_sentence_each():
    assert show() == ['-c: warning: 24 pixels were not trained.',
                      '-c: warning: Of torch.']


def test_all_warnings_in_full_where_they_are_asked_for():
    shown = show('-W', 'always::UserWarning', '-W', 'always::FutureWarning')
    assert sum('autocast is old' in line for line in shown) == 1
    assert any('UserWarning: torch.meshgrid' in line for line in shown)


def test_a_network_that_stacks_other_shapes_keeps_its_traceback():
    with pytest.raises(RuntimeError, match='stack expects each tensor'):
        cli(lambda: torch.stack([torch.ones(1), torch.ones(2)]))


@pytest.mark.parametrize('fail, said', [
    (lambda: open('/no/file'), "'/no/file' cannot be used (No such file"),
    (lambda: os.makedirs(__file__), 'cannot be used (File exists)'),
    (lambda: torch.utils.data.default_collate([torch.ones(1), torch.ones(2)]),
     'must have one shape, but stack expects each tensor to be equal size, '
     'but got [1] at entry 0 and [2] at entry 1. Crop or pad'),
    (lambda: torch.nn.BatchNorm1d(3)(torch.ones(1, 3)),
     'two images or more where a layer sees one pixel, but one has not '
     '(Expected more than 1 value per channel when training, got input size '
     'torch.Size([1, 3])). Set drop_last=True in'),
    (lambda: MODELS.build(dict(type=load_code)),
     'A file cannot be read (it holds print, which no checkpoint needs)'),
    (_no_network, 'A download failed (no route)'),
    (lambda: BaseDataset(lazy_init=True)._serialize_data(),
     'A data set must hold images, but the config makes an empty one.'),
    (lambda: Three(serialize_data=False, indices=[0, 3]),
     'The list of `indices` of a data set must be of images that it has'),
    (lambda: Three().get_subset_([3]), 'but one is beyond them. Leave it')])
def test_what_a_user_can_fix_is_one_sentence(fail, said, capsys):
    with pytest.raises(SystemExit):
        cli(fail)
    assert said in capsys.readouterr().err


class Three(BaseDataset):

    def load_data_list(self):
        return [dict(img=index) for index in range(3)]


def refuse(depth):
    raise KeyError(f'invalid depth {depth} for resnet')


def insist(depth):
    assert depth in (18, 34), f'{depth} is not a depth'


def load_code():
    file = io.BytesIO()
    torch.save(dict(a=print), file)
    file.seek(0)
    torch.load(file, weights_only=True)


class Buggy(torch.nn.Module):

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.weight = torch.ones(3)  # torch raises


class Missing:

    def __init__(self):
        raise ImportError('skimage is not installed. Please install it.')


@pytest.mark.parametrize('part, said', [
    (dict(type='Nonsense'), 'Nonsense is not in the mmengine::model registry'),
    (dict(type='BaseDataPreprocessor', much=1),
     "unexpected keyword argument 'much'"),
    ('Linear', "cfg should be a dict.* but got <class 'str'>"),
    (dict(type=refuse, depth=77), 'invalid depth 77'),
    (dict(type=insist, depth=77), '77 is not a depth'),
    (dict(type=Missing), 'skimage is not installed')])
def test_a_slip_in_a_config_is_one_sentence(part, said, capsys):
    with pytest.raises(SystemExit):
        cli(lambda: MODELS.build(part))
    assert re.search(rf'cannot be built \(.*{said}.*\). Fix it there',
                     capsys.readouterr().err)


@pytest.mark.parametrize('fail', [
    lambda: {}['key'], lambda: len(3),
    lambda: MODELS.build(dict(type=lambda: len(3))),
    lambda: MODELS.build(dict(type=lambda: {}['key'])), lambda: refuse(7),
    lambda: MODELS.build(dict(type=lambda: ConfigDict()['assigner'])),
    lambda: MODELS.build(dict(type=Buggy))])
def test_a_bug_keeps_its_traceback(fail):
    with pytest.raises((KeyError, TypeError)):
        cli(fail)


def test_a_failure_leaves_nothing_behind(capsys):
    stdout, shape = sys.stdout, warnings.formatwarning

    def main():
        print('before', end='')
        raise UserError('no')

    with pytest.raises(SystemExit, match='2'):
        cli(main)
    assert capsys.readouterr().out == 'before'
    assert sys.stdout is stdout and warnings.formatwarning is shape
