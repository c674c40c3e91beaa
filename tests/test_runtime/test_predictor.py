"""Predictor does what the network does, and refuses what it cannot."""
import builtins
import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from conftest import SCALES
from exports import tiny_files, tiny_network

from sct_mm import Cascade, use_scale
from sct_mm.datasets.base_size import BaseSize
from sct_mm.export.any_size_file import make_any_size
from sct_mm.export.verified_file import Request, make_graph
from sct_mm.runtime import (
    NetworkFile,
    Predictor,
    latencies_ms,
    network_file,
    predictor,
)
from sct_mm.runtime.latency import input_shape
from sct_mm.runtime.predictor import sigmoid, softmax
from sct_mm.utils.errors import UserError

SHAPES = ((30, 40), (25, 21), (20, 20), (16, 33), (90, 60), (17, 17))


@pytest.fixture(scope='module')
def network():
    return tiny_network()


@pytest.fixture(scope='module')
def folder(network, tmp_path_factory):
    return tiny_files(network, tmp_path_factory.mktemp('files'))


def image(shape=(30, 40), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*shape, 3), np.uint8)


def images():
    return [image(shape, seed) for seed in range(4) for shape in SHAPES]


def normalized(folder, size):
    """(N, 3, H, W) that a network gets for :func:`images`."""
    run = Predictor(str(folder), size)
    return torch.from_numpy(np.stack([run.prepare(x, size)
                                      for x in images()]))


def changed(folder, path, change):
    """A copy of a file, or of that of 16 pixels, with other metadata."""
    model = onnx.load(folder if isinstance(folder, str)
                      else folder / 'net-16px.onnx')
    entry, = model.metadata_props
    found = json.loads(entry.value)
    entry.value = change if isinstance(change, str) else json.dumps(
        {k: v for k, v in {**found, **change}.items() if v != 'gone'})
    onnx.save(model, path)
    return str(path)


@pytest.mark.parametrize('size', SCALES)
def test_the_scores_are_those_of_the_network(size, folder, network):
    x = normalized(folder, size)
    with use_scale(network, size), torch.no_grad():
        want = network(x).softmax(1)
    for path in (folder, folder / f'net-{size}px.onnx'):
        run = Predictor(str(path), size)
        found = run.predict(images())
        np.testing.assert_allclose(found.scores, want, atol=1e-5)
        assert (found.labels == want.argmax(1).numpy()).all()
        assert (found.sizes == size).all() and run.classes == list('abcde')
        one = run(image())
        assert one.shape == (5, ) and one.dtype == np.float32
        np.testing.assert_allclose(one, want[0], atol=1e-5)


def test_images_are_normalized_as_by_the_network(folder, network):
    x = image((20, 20))  # only cropped
    want = network.data_preprocessor(dict(inputs=[torch.from_numpy(
        x[2:18, 2:18, ::-1].copy()).permute(2, 0, 1)]))['inputs'][0]
    before = x.copy()
    run = Predictor(str(folder))
    np.testing.assert_allclose(run.prepare(x, 16), want, rtol=1e-5, atol=1e-6)
    assert (x == before).all() and run.sizes == (16, )
    bgr = Predictor(str(folder), channels='BGR')
    assert (bgr.prepare(x[..., ::-1], 16) == run.prepare(x, 16)).all()


@pytest.mark.parametrize('sizes, thresholds', [
    ((8, 16), 0.6), (np.array([8, 12, 16]), (0.8, 0.5)), ((12, 16), 0.0),
    ((8, 12), 1.0)])
def test_the_cascade_is_that_of_the_network(sizes, thresholds, folder,
                                            network):
    cascade = Cascade(network, sizes, thresholds)
    want = cascade(normalized(folder, sizes[-1]))
    run = Predictor(str(folder), cascade=sizes, thresholds=thresholds)
    found = run.predict(images())
    np.testing.assert_allclose(found.scores, want.scores, atol=1e-5)
    assert (found.labels == want.labels.numpy()).all()
    assert (found.sizes == want.sizes.numpy()).all()
    if thresholds == 0.6:
        assert set(found.sizes) == {8, 16}
    x = image()
    np.testing.assert_allclose(run(x), found.scores[0], atol=1e-6)


def test_the_thresholds_of_a_test(folder, tmp_path):
    path = tmp_path / 'cascade.json'
    path.write_text(json.dumps(dict(models=[dict(cascade=dict(
        sizes=[8, 16], thresholds=[0.25]))])))
    run = Predictor(folder, cascade=(8, 16), thresholds=path)
    assert run.thresholds == (0.25, ) and run.sizes == (8, 16)
    with pytest.raises(UserError, match=r'sizes of .*\(8, 16\), but got'):
        Predictor(str(folder), cascade=(8, 12), thresholds=str(path))
    path.write_text('{"models": []}')
    for name in (path, tmp_path / 'none.json'):
        with pytest.raises(UserError, match='must be those of a cascade.json'):
            Predictor(str(folder), cascade=(8, 12), thresholds=str(name))


def test_a_budget_takes_the_largest_size_that_fits(folder, monkeypatch):
    monkeypatch.setattr(predictor, 'latencies_ms', lambda files: {
        size: size / 4 for size in files})
    for budget, size in ((3.5, 12), (2, 8), (100, 16)):
        run = Predictor(str(folder), budget_ms=budget)
        assert run.sizes == (size, ) and run.latencies[8] == 2
    with pytest.raises(UserError, match='at most 1 ms an image here: the '
                       'nearest is 8 pixels, 2 ms'):
        Predictor(str(folder), budget_ms=1)


def test_what_is_measured(folder):
    files = {size: NetworkFile(str(folder / f'net-{size}px.onnx'), 1)
             for size in SCALES}
    found = latencies_ms(files)
    assert list(found) == list(SCALES) and min(found.values()) > 0
    assert input_shape(files[12], 12) == [1, 3, 12, 12]


@pytest.fixture(scope='module')
def any_file(network, tmp_path_factory):
    """A file of :func:`tiny_network` for every size."""
    path = tmp_path_factory.mktemp('any') / 'any.onnx'
    steps = [dict(type='resize_short', edge=20, backend='pillow',
                  interpolation='bicubic'),
             dict(type='center_crop', height=16, width=16)]
    made = make_any_size(
        network, BaseSize(16, 16, SCALES),
        lambda size: [torch.randn(n, 3, size, size) for n in (3, 1)],
        Request('onnx'), 0,
        dict(channels='RGB', classes=list('abcde'), steps=steps))
    path.write_bytes(made.data)
    return str(path)


@pytest.mark.parametrize('size', [16, 14, 12, 9, 8])
def test_a_file_for_any_size(size, any_file, network):
    run = Predictor(any_file, size)
    x = torch.from_numpy(np.stack([run.prepare(x, size) for x in images()]))
    assert x.shape[-2:] == (size, size)
    with use_scale(network, size), torch.no_grad():
        want = network(x).softmax(1)
    found = run.predict(images())
    np.testing.assert_allclose(found.scores, want, atol=1e-5)
    for _ in range(2):  # the second time the file is open for this shape
        np.testing.assert_allclose(run(image()), want[0], atol=1e-5)


def test_the_cascade_of_a_file_for_any_size(any_file, folder):
    want, found = (Predictor(path, cascade=(8, 12, 16), thresholds=0.6
                             ).predict(images())
                   for path in (str(folder), any_file))
    np.testing.assert_allclose(found.scores, want.scores, atol=1e-5)
    assert (found.sizes == want.sizes).all() and len(set(found.sizes)) > 1


def billions(size):
    """The multiply-adds of :class:`conftest.TinyModel` at ``size`` pixels, by
    hand: convolutions from 3 to 4 and to 6 channels, and a classifier."""
    pixels = ((size + 1) // 2)**2
    return (pixels * 9 * (3 * 4 + 4 * 6) + 6 * 5) / 1e9


@pytest.mark.parametrize('file', ['folder', 'any_file'])
def test_what_each_image_costs(file, request):
    path = str(request.getfixturevalue(file))
    found = Predictor(path, cascade=(8, 12, 16), thresholds=0.6
                      ).predict(images())
    passed = {8: (8, ), 12: (8, 12), 16: (8, 12, 16)}
    assert set(found.sizes) == {*passed}
    np.testing.assert_allclose(found.gflops, [
        sum(map(billions, passed[size])) for size in found.sizes])
    one = Predictor(path, 12).predict([image()])
    np.testing.assert_allclose(one.gflops, billions(12))


def test_costs_that_a_file_does_not_say(any_file, folder, tmp_path):
    found = Predictor(any_file, cascade=(8, 14, 16), thresholds=0.6
                      ).predict(images())
    np.testing.assert_equal(np.isnan(found.gflops), found.sizes > 8)
    path = changed(folder, tmp_path / 'a.onnx', dict(gflops='gone'))
    assert np.isnan(Predictor(path).predict([image()]).gflops).all()


def test_a_file_is_opened_for_a_few_shapes(any_file, monkeypatch):
    file = NetworkFile(any_file, 1)
    opened = []
    own = NetworkFile._opened
    monkeypatch.setattr(NetworkFile, '_opened', lambda self, lengths: (
        opened.append(lengths), own(self, lengths))[1])
    monkeypatch.setattr(network_file, '_MORE_SHAPES', 1)
    for count in (3, 1):  # a batch is run one by one
        for size in range(8, 17):
            file.run(np.zeros((count, 3, size, size), np.float32))
    assert [sorted(lengths.values()) for lengths in opened] == [
        [1, size, size] for size in (8, 9, 10, 11)]


def test_each_size_is_measured_as_it_will_run(any_file, monkeypatch):
    """Not some of fixed shapes, and others of dynamic ones."""
    monkeypatch.setattr(network_file, '_MORE_SHAPES', 0)
    file = NetworkFile(any_file, 1)
    monkeypatch.setattr(file, 'session', SimpleNamespace(
        get_inputs=file.session.get_inputs))  # which cannot run
    assert list(latencies_ms(dict.fromkeys(SCALES, file))) == list(SCALES)


def test_a_budget_for_a_file_for_any_size(any_file, monkeypatch):
    """The sizes that are measured are those of the scales."""
    monkeypatch.setattr(predictor, 'latencies_ms', lambda files: {
        size: size / 4 for size in files})
    assert Predictor(any_file, budget_ms=3).sizes == (12, )


def test_a_file_that_has_the_size_as_an_input(tmp_path):
    """As where the images' shapes do not tell it."""
    model, shape = tiny_network(), (3, 3, 16, 16)
    made = make_any_size(
        model, BaseSize(16, 16, SCALES),
        lambda size: [torch.randn(n, *shape[1:]) for n in (3, 1)],
        Request('onnx'), 0, dict(channels='RGB', steps=None))
    (tmp_path / 'a.onnx').write_bytes(made.data)
    file, x = NetworkFile(str(tmp_path / 'a.onnx')), torch.randn(shape)
    for size in (None, 16, 12, 10):
        with use_scale(model, size or 16), torch.no_grad():
            want = model(x)
        for images_ in (x, x[:1]):
            np.testing.assert_allclose(file.run(images_.numpy(), size),
                                       want[:len(images_)], atol=1e-4)


SHORT = dict(type='resize_short', edge=16, backend='cv2',
             interpolation='bilinear')


def test_images_that_keep_their_aspect(any_file, tmp_path):
    run = Predictor(changed(any_file, tmp_path / 'a.onnx', dict(
        steps=[SHORT])))
    assert run.prepare(image((30, 45)), 16).shape == (3, 16, 24)
    assert run.predict([image((30, 45))] * 2).scores.shape == (2, 5)
    with pytest.raises(ValueError, match=r'must have one shape when they are '
                       r'prepared, but got \[\(16, 24\), \(24, 16\)\]. Cl'):
        run.predict([image((30, 45)), image((45, 30))])


def test_oblong_images(any_file, network, tmp_path):
    x, crop = torch.randn(3, 3, 16, 24), dict(type='center_crop', height=16,
                                              width=24)
    made = make_graph(network, 16, [x, x[:1]], Request('onnx'), 0,
                      images=dict(channels='RGB', steps=[SHORT, crop]))
    (tmp_path / 'a.onnx').write_bytes(made.data)
    run = Predictor(str(tmp_path / 'a.onnx'))
    assert run(image((30, 60))).shape == (5, )
    with pytest.raises(ValueError, match=r'\(30, 40\) is cut to \(16, 21\)'):
        run(image())
    # What is measured is what will run.
    for steps, divisor, shape in (([SHORT, crop], 1, (8, 12)),
                                  ([SHORT], 1, (8, 8)), (None, 1, (8, 8)),
                                  ([SHORT, crop], 5, (10, 15))):
        path = changed(any_file, tmp_path / 'b.onnx', dict(
            steps=steps, pad_size_divisor=divisor))
        assert input_shape(NetworkFile(path), 8) == [1, 3, *shape]


def test_a_cascade_of_oblong_images(network, tmp_path):
    """5/4 of 10 pixels is 12 in the pipeline, and 13 in training."""
    files = []
    for size, width in ((16, 20), (10, 12)):
        x = torch.randn(3, 3, size, width)
        made = make_graph(network, size, [x, x[:1]], Request('onnx'), 0, 12,
                          dict(channels='RGB', steps=[dict(
                              SHORT, type='resize', height=size,
                              width=width)]))
        files.append(dict(file=f'{size}.onnx'))
        (tmp_path / f'{size}.onnx').write_bytes(made.data)
    (tmp_path / 'manifest.json').write_text(json.dumps(dict(
        format='onnx', files=files)))
    run = Predictor(tmp_path, cascade=(10, 16), thresholds=0.0)
    assert run.predict([image((32, 40))]).sizes == 10


def test_scores():
    x = np.float32([[1000, 999, 0], [-5, -200, 200]])
    torch.testing.assert_close(torch.from_numpy(softmax(x)),
                               torch.from_numpy(x).softmax(1))
    torch.testing.assert_close(torch.from_numpy(sigmoid(x[1:])),
                               torch.from_numpy(x[1:]).sigmoid())


def test_several_labels(folder, tmp_path):
    path = changed(folder, tmp_path / 'a.onnx',
                   dict(scores='sigmoid', sizes=[16, 8]))
    logits = np.log(Predictor(str(folder))(image()))
    scores = Predictor(path)(image())
    apart = np.log(scores / (1 - scores)) - logits  # one number for all
    np.testing.assert_allclose(apart, apart[0], atol=1e-3)
    with pytest.raises(UserError, match='one label an image, but .* several'):
        Predictor(path, cascade=(8, 16), thresholds=0.5)


def test_a_cascade_of_one_class_is_always_sure(tmp_path):
    one = tiny_network()
    one.net[-1] = torch.nn.Linear(6, 1)
    path = str(tiny_files(one, tmp_path))
    assert Predictor(path)(image()) == 1
    with pytest.raises(UserError, match='two classes or more, but .* gives '
                       'one score an image, which is always 1. Name one'):
        Predictor(path, cascade=(8, 16), thresholds=0.5)


def test_a_small_image_is_warned_of(folder):
    with pytest.warns(UserWarning, match=r'at least 8 pixels, the smallest '
                      r'scale of the network, but got \(7, 30\)'):
        assert Predictor(str(folder))(image((7, 30))).shape == (5, )


@pytest.mark.parametrize('change, match', [
    ('{', 'has no metadata of sct_mm'), ('[]', 'has no metadata of sct_mm'),
    (dict(version='gone'), 'must be of version 1, but is of version None. '
                           'Write it again by tools/export.py'),
    (dict(version=2), 'is of version 2. Update sct_mm'),
    (dict(steps='gone'), "lacks 'steps'. Write it again"),
    (dict(steps=None, unknown='Rotate has no step'),
     'does not say how images are prepared: Rotate has no step'),
    (dict(steps=[dict(type='rotate')]), "asks for 'rotate'"),
    (dict(outputs=['output_0', 'output_1']),
     'runs classifiers, but the outputs of .* are output_0, output_1'),
    (dict(channels=''), "one of GRAY, RGB, BGR, but those of .* are 'others'"),
    (dict(mean=[1, 2]), "'mean' in the .* must be 3 numbers, but are 2"),
    (dict(steps=[{}]), 'asks for None'),
    (dict(steps=[dict(type=['resize'])]), r"asks for \['resize'\]"),
    (dict(steps=[dict(type='resize_short')]),
     "step 'resize_short' must have 'edge' in pixels, but the file has None"),
    (dict(steps=[dict(type='center_crop', height=16, width='16')]),
     "step 'center_crop' must have 'width' in pixels, but .* '16'"),
    (dict(steps=[dict(type='resize', height=16, width=16)]),
     'asks for None of None'),
    (dict(steps=[dict(type='resize', height=16, width=16, backend=['cv2'],
                      interpolation='bilinear')]), r"of \['cv2'\]")])
def test_a_file_of_another_kind_or_version(change, match, folder, tmp_path):
    path = changed(folder, tmp_path / 'a.onnx', change)
    with pytest.raises(UserError, match=match):
        Predictor(path)


@pytest.mark.parametrize('name, value', [
    ('size', '16'), ('size', None), ('size', 0), ('sizes', [16, '8']),
    ('sizes', []), ('sizes', None), ('scales', ['a']), ('gflops', 3),
    ('gflops', ['a']), ('outputs', None), ('channels', 3), ('mean', 'a'),
    ('std', [1, 0, 1]), ('steps', 'resize'), ('steps', dict(type='resize')),
    ('scores', 'relu'), ('classes', 3), ('pad_size_divisor', 0)])
def test_metadata_that_were_edited_wrongly(name, value, folder, tmp_path):
    path = changed(folder, tmp_path / 'a.onnx', {name: value})
    with pytest.raises(UserError, match=f"has a '{name}' that no version "):
        Predictor(path)


def test_a_file_without_metadata(folder, tmp_path):
    model = onnx.load(folder / 'net-8px.onnx')
    del model.metadata_props[:]
    onnx.save(model, tmp_path / 'a.onnx')
    with pytest.raises(UserError, match='has no metadata of sct_mm. Write it'):
        Predictor(str(tmp_path / 'a.onnx'))


def test_what_is_no_file(folder, tmp_path):
    (tmp_path / 'a.onnx').write_text('no network')
    with pytest.raises(UserError, match='onnxruntime cannot read .*a.onnx'):
        Predictor(str(tmp_path / 'a.onnx'))
    with pytest.raises(UserError, match="must be a file, but got 'none.onnx'"):
        Predictor('none.onnx')
    with pytest.raises(UserError, match='must have the manifest.json'):
        Predictor(str(tmp_path))
    (tmp_path / 'manifest.json').write_text('{"format": "pt2", "files": []}')
    with pytest.raises(UserError, match='format onnx, but are pt2'):
        Predictor(str(tmp_path))
    (tmp_path / 'manifest.json').write_text('{"format": "onnx", "files": []}')
    with pytest.raises(UserError, match='must name files, but names none'):
        Predictor(str(tmp_path))
    (tmp_path / 'manifest.json').write_text(
        '{"format": "onnx", "files": [{"file": 3}]}')
    with pytest.raises(UserError, match='manifest.json of .* cannot be read'):
        Predictor(str(tmp_path))


@pytest.mark.parametrize('arguments, kind, match', [
    (dict(size=10), UserError, 'one that a file is for, 16, 12, 8, but got 1'),
    (dict(size=0), ValueError, '`size` must be an int from 1'),
    (dict(size=8, budget_ms=1), UserError, 'one of `size`, .* got several'),
    (dict(budget_ms='5'), TypeError, '`budget_ms` must be a number'),
    (dict(cascade=(8, 16)), UserError, '`cascade` needs `thresholds`'),
    (dict(thresholds=0.5), UserError, '`thresholds` needs `cascade`'),
    (dict(cascade=(16, 8), thresholds=0.5), UserError, 'must ascend'),
    (dict(cascade=(8, 9), thresholds=0.5), UserError, '16, 12, 8, but got 9'),
    (dict(cascade=(8, 16), thresholds=2), ValueError, '`thresholds` must be'),
    (dict(channels='GRAY'), ValueError, 'one of RGB, BGR'),
    (dict(threads=0), ValueError, '`threads` must be an int from 1'),
    (dict(providers='CPUExecutionProvider'), UserError, 'a list with one'),
    (dict(providers=['None']), UserError, r"CPUExec.*, but got \['None'\]")])
def test_arguments_that_do_not_fit(arguments, kind, match, folder):
    with pytest.raises(kind, match=match):
        Predictor(str(folder), **arguments)


@pytest.mark.parametrize('x, kind, match', [
    (image().astype(np.float32), TypeError, 'of uint8, but got float32'),
    ('a.png', TypeError, 'of uint8, but got str'),
    (image()[..., 0], ValueError, r'be \(H, W, 3\), but got \(30, 40\)'),
    (image()[:0], ValueError, r'be \(H, W, 3\), but got \(0, 40, 3\)')])
def test_what_is_no_image(x, kind, match, folder):
    with pytest.raises(kind, match=match):
        Predictor(str(folder))(x)


def test_how_an_image_is_decoded(folder, tmp_path):
    for change, mode in (({}, 'RGB'), (dict(channels='GRAY', mean='gone',
                                            std='gone'), 'L')):
        run = Predictor(changed(folder, tmp_path / 'a.onnx', change))
        with pytest.raises(TypeError, match='ImageOps.exif_transpose.*'
                           f"convert\\('{mode}'\\)"):
            run('a.png')


def test_no_images(folder):
    with pytest.raises(ValueError, match='must be at least one'):
        Predictor(str(folder)).predict([])


def test_an_image_that_is_only_cropped(folder, tmp_path):
    path = changed(folder, tmp_path / 'a.onnx', dict(
        channels='GRAY', mean='gone', std='gone',
        steps=[dict(type='center_crop', height=16, width=16)]))
    with pytest.raises(ValueError, match=r'16 pixels, but \(12, 30\) is cut '
                       r'to \(12, 16\)'):
        Predictor(path).prepare(image((12, 30))[..., 0], 16)


def test_without_onnxruntime(folder, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name == 'onnxruntime':
            raise ModuleNotFoundError("No module named 'onnxruntime'")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(UserError, match="needs onnxruntime, .* Run pip "
                       r"install 'sct_mm\[runtime\]'"):
        Predictor(str(folder))


def test_a_folder_may_be_moved(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'moved')
    assert Predictor(str(tmp_path / 'moved')).sizes == (16, )
