"""Composed images: seeded, resumed, families apart, cut-outs put whole."""
import json
import os.path as osp

import numpy as np
import photos
import pytest
from families import divide, families
from mmengine.config import Config
from mmpretrain.registry import DATASETS
from photo_sources import (
    KINDS,
    Kind,
    Source,
    family_of,
    looks_of,
    read,
    read_sources,
    source_of,
)
from photos import Composer, fetch_sources, is_complete, make_photos, one_of
from PIL import Image

from sct_mm.utils.errors import UserError

COUNTS = dict(train=(6, 5), test=(4, 3))
ROOT = osp.dirname(osp.dirname(osp.dirname(osp.abspath(__file__))))


def cut_out(colour, edge=80):
    """A disc of one colour in a transparent square of another."""
    y, x = np.mgrid[:edge, :edge] - edge / 2
    image = np.empty((edge, edge, 4), np.uint8)
    image[..., :3] = (0, 255, 0)
    image[..., 3] = 0
    image[x**2 + y**2 < edge**2 / 4] = (*colour, 255)
    return Image.fromarray(image)


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """Five families of each kind; of the first, a second member."""
    folder = tmp_path_factory.mktemp('sources')
    rng = np.random.default_rng(0)
    for kind in KINDS:
        (folder / kind / 'symbols').mkdir(parents=True)
        for index, name in enumerate(
                ['ant', 'bee_1', 'bee_2', 'cow', 'dog', 'emu']):
            if kind == 'wallpapers':
                coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
                image = Image.fromarray(coarse).resize((800, 620))
            else:
                image = cut_out(rng.integers(0, 256, 3), 80 + 20 * index)
                # Of a shape of its own: families do not look alike.
                image.paste(0, (10 * index, 0, 10 * index + 12, 70))
            image.save(folder / kind / f'{name}.png')
        (folder / kind / 'text.png').write_text('no image')
        cut_out((0, 0, 0), 8).save(folder / kind / 'small.png')
    cut_out((1, 2, 3)).save(folder / 'stamps' / 'symbols' / 'letter.png')
    (folder / 'drawings' / 'link.png').symlink_to('ant.png')
    copy = (folder / 'drawings' / 'ant.png').read_bytes()
    (folder / 'drawings' / 'zoo.png').write_bytes(copy)
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def composed(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    make_photos([str(sources)], str(folder), **COUNTS)
    return folder


def test_the_images_are_a_function_of_sources_and_seed(
        composed, sources, run_tool, tmp_path):
    counts = [word for split, pair in COUNTS.items()
              for word in (f'--{split}', *pair)]
    tool = ('dataset_converters/photos.py', tmp_path, '--sources', sources,
            *counts)
    code, output = run_tool(*tool)
    assert code == 0, output
    assert files(tmp_path) == files(composed)
    assert len(files(composed)) == 1 + sum(map(sum, COUNTS.values()))
    settings = photos.checked(0, **COUNTS)
    assert is_complete(str(composed), settings)
    assert not is_complete(str(composed), photos.checked(1, **COUNTS))
    (tmp_path / 'test' / 'stamps_00001.jpg').unlink()
    assert not is_complete(str(tmp_path), settings)
    make_photos([str(sources)], str(tmp_path), **COUNTS)
    assert files(tmp_path) == files(composed)
    make_photos([str(sources)], str(tmp_path), **COUNTS, seed=1)
    assert files(tmp_path) != files(composed)
    # more images, from the same seed: the first ones stay
    make_photos([str(sources)], str(tmp_path), train=(7, 6), test=(5, 4))
    more = files(tmp_path)
    assert all(more[name] == data for name, data in files(composed).items()
               if name != 'photos.json')


def test_no_family_is_in_two_splits(composed):
    found = json.loads((composed / 'photos.json').read_text())['sources']
    for kind in KINDS:
        train, test = ({name.split('.')[0].split('_')[0]
                        for group in found[split][kind] for name in group}
                       for split in ('train', 'test'))
        assert len(test) == 1 and train | test == {'ant', 'bee', 'cow', 'dog',
                                                   'emu'}
        assert not train & test


def test_what_is_of_no_use_is_left_out(sources, tmp_path):
    found = read_sources([str(sources)])
    assert {kind: [source.file for source in each]
            for kind, each in found.items()} == dict.fromkeys(KINDS, [
                'ant.png', 'bee_1.png', 'bee_2.png', 'cow.png', 'dog.png',
                'emu.png'])
    huge = tmp_path / 'huge.png'
    Image.new('1', (7000, 7000)).save(huge)
    with pytest.raises(ValueError, match='too large'):
        read(huge.read_bytes(), 320)
    blank = tmp_path / 'blank.png'
    Image.new('RGBA', (90, 90)).save(blank)
    kind = Kind((), 64, 320)
    assert source_of(str(huge), str(tmp_path), kind) is None
    assert source_of(str(blank), str(tmp_path), kind) is None


def test_sources_that_look_alike_stay_together():
    """Recoloured, or at another size; not those of another outline."""
    rng = np.random.default_rng(0)
    square = cut_out((200, 30, 30))
    square.paste((200, 30, 30, 255), (10, 0, 20, 80))

    def source(name, image):
        return Source(name, '', name, name, looks_of(image))

    members = [source('a', cut_out((200, 30, 30))),
               source('b', cut_out((200, 60, 30), 200)),
               source('c', square),
               source('d', Image.fromarray(rng.integers(
                   0, 256, (9, 9, 4), np.uint8)))]
    groups = families(members, 0.97)
    assert [[member.file for member in group] for group in groups] == [
        ['a', 'b'], ['c'], ['d']]
    for member in members:
        assert np.linalg.norm(member.shapes) == pytest.approx(1)
        assert member.shapes.mean() == pytest.approx(0, abs=1e-6)
    with pytest.raises(UserError, match='Stamps of at least 2 families'):
        divide(groups[:1], dict(test=0.2), 0, 'stamps')


@pytest.mark.parametrize('file, family', [
    ('animals/birds/frog-1.png', 'frog'), ('jigsaw_red_05.png', 'jigsaw_red'),
    ('usr/wallpapers/Altai/contents/images_dark/5120x2880.png', 'Altai'),
    ('2021.png', '2021')])
def test_the_name_of_a_family(file, family):
    assert family_of(file) == family


def test_all_families_take_turns():
    groups = [['a'], ['b', 'c'], ['d']]
    assert ''.join(one_of(groups, i) for i in range(9)) == 'abdacdabd'


def test_a_cut_out_is_put_whole_and_without_the_colour_behind(tmp_path):
    path = tmp_path / 'disc.png'
    cut_out((200, 0, 0)).save(path)
    source = source_of(str(path), str(tmp_path), KINDS['stamps'])
    composer = Composer(dict(stamps=[[source]], wallpapers=[]))
    for seed in range(5):
        image = Image.new('RGBA', (photos.EDGE, ) * 2, (200, 0, 200, 255))
        composer.put(np.random.default_rng(seed), image, 'stamps', 0, 0.5,
                     0.5)
        levels = np.asarray(image).astype(int)
        assert levels[..., 1].max() < 20  # no green of transparent pixels
        disc = levels[..., 2] < 100
        assert disc.sum() == pytest.approx(np.pi * 80**2, rel=0.03)
        assert {np.ptp(where) + 1 for where in disc.nonzero()} == {160}


def test_an_interrupted_run_goes_on(composed, sources, tmp_path, monkeypatch):
    put, calls = Composer.put, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return put(*arguments)

    monkeypatch.setattr(Composer, 'put', dies)
    with pytest.raises(KeyboardInterrupt):
        make_photos([str(sources)], str(tmp_path), **COUNTS)
    assert not (tmp_path / 'photos.json').exists()
    kept = len(list(tmp_path.rglob('*.jpg')))
    assert 0 < kept < 18
    monkeypatch.setattr(Composer, 'put', put)
    make_photos([str(sources)], str(tmp_path), **COUNTS)
    assert files(tmp_path) == files(composed)


def test_the_host_reads_them(composed):
    cfg = Config.fromfile(osp.join(ROOT, 'configs/_base_/photos.py'))
    dataset = DATASETS.build(dict(cfg.train_dataloader.dataset,
                                  data_root=str(composed)))
    assert len(dataset) == sum(COUNTS['train'])
    for index in (0, -1):
        image = dataset[index]['inputs']
        assert image.shape == (3, 224, 224)
        assert image.float().std() > 3


def test_what_cannot_be_composed_is_one_sentence(sources, run_tool, tmp_path,
                                                 monkeypatch):
    code, output = run_tool('dataset_converters/photos.py', tmp_path / 'out',
                            '--sources', tmp_path)
    assert code == 2 and '--sources must be a folder of sources' in output
    assert 'Traceback' not in output
    with pytest.raises(UserError, match='at least 2 families .* got 0'):
        make_photos([str(tmp_path)], str(tmp_path / 'out'))
    with pytest.raises(ValueError, match='`test` must be an int from 1'):
        make_photos([str(sources)], str(tmp_path / 'out'), test=(0, 1))
    with pytest.raises(ValueError, match='`seed` must be an int from 0'):
        make_photos([str(sources)], str(tmp_path / 'out'), seed=-1)
    monkeypatch.setattr(photos, 'download', lambda packages, folder: False)
    with pytest.raises(UserError, match='drawings .* by apt-get'):
        fetch_sources(None, str(tmp_path / 'none'))
    (tmp_path / 'given' / 'stamps').mkdir(parents=True)
    (tmp_path / 'given' / 'stamps' / 'a.deb').write_text('no package')
    with pytest.raises(UserError, match="a.deb' cannot be unpacked"):
        fetch_sources(str(tmp_path / 'given'), str(tmp_path / 'unpacked'))
    assert not (tmp_path / 'out').exists()
