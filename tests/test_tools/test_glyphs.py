"""Letters and digits of fonts: seeded, resumed, families apart, legible."""
import glob
import json
import os.path as osp
import shutil

import glyphs
import matplotlib
import numpy as np
import pytest
from conftest import ROOT
from debian import download, unpack_package
from families import divide, families, first_word
from fontTools.ttLib import TTFont
from glyph_fonts import ALIKE, CHARACTERS, Refused, read_font, read_fonts
from glyphs import is_complete, make_glyphs, mask_of
from mmengine.config import Config
from mmpretrain.registry import DATASETS

from sct_mm.utils.config import check_data
from sct_mm.utils.errors import UserError

FONTS = osp.join(matplotlib.get_data_path(), 'fonts', 'ttf')
PATHS = sorted(glob.glob(osp.join(FONTS, '*.ttf')))
COUNTS = dict(train=40, val=8, test=12)
NAMES = [f'{name}-{kind}-ubyte' for name in ('train', 't10k')
         for kind in ('images-idx3', 'labels-idx1')]


def files(folder):
    return {name: (folder / name).read_bytes() for name in NAMES}


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp('glyphs')
    make_glyphs(PATHS, str(folder), **COUNTS)
    return folder


@pytest.fixture(scope='module')
def groups():
    return families(read_fonts(PATHS)[0], ALIKE)


def test_the_images_are_a_function_of_fonts_and_seed(
        drawn, run_tool, tmp_path):
    fonts, target = tmp_path / 'of' / 'mine', tmp_path / 'glyphs'
    shutil.copytree(FONTS, fonts)  # with files that are no fonts
    counts = [word for name, count in COUNTS.items()
              for word in (f'--{name}', count)]
    code, output = run_tool('dataset_converters/glyphs.py', target,
                            '--fonts', fonts.parent, *counts)
    assert code == 0, output
    assert files(target) == files(drawn)
    assert not list(target.glob('parts*'))
    assert is_complete(str(target), **COUNTS, seed=0)
    assert not is_complete(str(target), **COUNTS, seed=1)
    for name in files(target):  # lost, or cut off: drawn anew
        with open(target / name, 'r+b') as file:
            file.truncate(9)
        assert not is_complete(str(target), **COUNTS, seed=0)
        make_glyphs(PATHS, str(target), **COUNTS, seed=0)
        assert is_complete(str(target), **COUNTS, seed=0)
    assert files(target) == files(drawn)
    make_glyphs(PATHS, str(target), **COUNTS, seed=1)
    assert files(target) != files(drawn)


def test_the_host_reads_them(drawn):
    cfg = Config.fromfile(osp.join(ROOT, 'configs/_base_/glyphs.py'))

    def read(name, **options):
        dataset = dict(cfg[f'{name}_dataloader'].dataset, pipeline=[],
                       data_root=str(drawn))
        return DATASETS.build({**dataset, **options})

    train, val = read('train', indices=40), read('val', indices=-8)
    test = read('test')
    assert (len(train), len(val), len(test)) == (40, 8, 12)
    assert ''.join(test.CLASSES) == CHARACTERS
    for dataset, count in ((train, 40), (val, 8), (test, 12)):
        assert [int(dataset[i]['gt_label']) for i in range(count)] == [
            i % 36 for i in range(count)]
        images = np.stack([dataset[i]['img'] for i in range(count)])
        assert images.shape == (count, 96, 96)
        assert images.std((1, 2)).min() > 3
    with pytest.raises(UserError, match="must be at '.*/nowhere'"):
        check_data(Config(dict(dataset=dict(
            cfg.test_dataloader.dataset, data_root='nowhere'))))
    # the same characters, of other fonts and on other grounds
    assert not np.array_equal(train[0]['img'], val[0]['img'])
    assert not np.array_equal(train[0]['img'], test[0]['img'])


def test_no_family_is_in_two_splits(drawn, groups):
    summary = json.loads((drawn / 'glyphs.json').read_text())
    words = [{first_word(font) for font in summary['fonts'][split]}
             for split in ('train', 'val', 'test')]
    assert all(words) and not (words[0] & words[1] or words[0] & words[2]
                               or words[1] & words[2])
    together = {group[0].family: len(group) for group in groups}
    assert together['DejaVu Sans'] == 12  # with its Mono and its Serif
    # one family more moves only families at the borders of the shares
    before = divide(groups[1:], dict(test=0.4), 0, 'fonts')['test']
    after = divide(groups, dict(test=0.4), 0, 'fonts')['test']
    assert len([group for group in before if group not in after]) <= 1


def test_a_font_of_another_name_stays_with_what_it_looks_like(groups):
    known = [font for group in groups for font in group]
    copy = next(font for font in known if font.file == 'cmr10.ttf')._replace(
        family='Unheard Of')
    group, = (group for group in families([*known, copy], ALIKE)
              if copy.family in {font.family for font in group})
    assert {font.family for font in group} == {'cmr10', 'Unheard Of'}


def test_an_interrupted_run_goes_on(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, 'PART', 8)
    draw, calls = glyphs.draw, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 21:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(glyphs, 'draw', dies)
    with pytest.raises(KeyboardInterrupt):
        make_glyphs(PATHS, str(tmp_path), **COUNTS)
    assert not (tmp_path / 'glyphs.json').exists()
    make_glyphs(PATHS, str(tmp_path), **COUNTS)
    assert len(calls) == 21 + 60 - 16
    assert files(tmp_path) == files(drawn)
    make_glyphs(PATHS, str(tmp_path), **COUNTS)
    assert len(calls) == 21 + 60 - 16  # all are there


@pytest.mark.parametrize('change, reason', [
    (dict(Q='space'), 'blank'), (dict(Q=None), 'missing'),
    (dict(Q='O'), 'look the same'), (dict(zip(CHARACTERS, (
        *CHARACTERS[1:26], 'A', 'one', 'two', 'three', 'four', 'five', 'six',
        'seven', 'eight', 'nine', 'zero'), strict=True)), 'hard to read')])
def test_a_font_that_cannot_be_read_is_refused(tmp_path, change, reason):
    font = TTFont(osp.join(FONTS, 'cmr10.ttf'))
    for table in font['cmap'].tables:
        for character, name in change.items():
            if name is None:
                table.cmap.pop(ord(character), None)
            elif ord(character) in table.cmap:
                table.cmap[ord(character)] = name
    path = str(tmp_path / 'changed.ttf')
    font.save(path)
    assert read_font(osp.join(FONTS, 'cmr10.ttf')).family == 'cmr10'
    with pytest.raises(Refused, match=reason):
        read_font(path)


def test_a_character_is_as_large_as_asked_for(groups):
    rng = np.random.default_rng(0)
    for pixels in (12.5, 40, 90):
        for character in 'IW8':
            mask = mask_of(rng, groups, character, pixels)
            assert max(mask.shape) == np.ceil(pixels)
            assert 0 <= mask.min() and 0.3 < mask.max() <= 1
            # it fills that edge, but for what a turned one leaves empty
            longer = int(np.argmax(mask.shape))
            assert (mask > 0.1).any(1 - longer).mean() > 0.75


def test_what_cannot_be_drawn_is_one_sentence(run_tool, tmp_path):
    (tmp_path / 'text.ttf').write_text('no font')
    (tmp_path / 'fonts.deb').write_text('no package')
    code, output = run_tool('dataset_converters/glyphs.py', tmp_path / 'out',
                            '--fonts', tmp_path)
    assert code == 2 and "fonts.deb' cannot be unpacked" in output
    assert 'Traceback' not in output
    with pytest.raises(ValueError, match='at least 3 families .* got 0'):
        make_glyphs([str(tmp_path / 'text.ttf')], str(tmp_path / 'out'))
    with pytest.raises(ValueError, match='at least 3 families .* got 1'):
        make_glyphs(PATHS[:1] * 3, str(tmp_path / 'out'))
    with pytest.raises(ValueError, match='`val` must be an int from 1'):
        make_glyphs(PATHS, str(tmp_path / 'out'), val=0)
    assert not (tmp_path / 'out').exists()


def test_packages_of_the_mirrors_that_apt_uses(tmp_path, monkeypatch):
    programs, folder = tmp_path / 'bin', str(tmp_path)
    monkeypatch.setenv('PATH', str(programs))
    assert not download(['fonts-a'], folder)  # no apt
    assert not unpack_package('fonts-a.deb', folder)
    programs.mkdir()
    for name, does in (('apt-cache', 'echo fonts-a; echo fonts-b'),
                       ('apt-get', 'shift 3; echo "$@" > asked')):
        (programs / name).write_text(f'#!/bin/sh\n{does}\n')
        (programs / name).chmod(0o755)
    assert download(['fonts-b', 'fonts-of-another-release', 'fonts-a'], folder)
    assert (tmp_path / 'asked').read_text() == 'fonts-b fonts-a\n'
    assert not download(['fonts-of-another-release'], folder)
