"""The forms of a file that are timed compute the same."""
import numpy as np
import pytest
import torch
from conftest import SCALES
from exports import tiny_files, tiny_network
from file_latency import FORMS, by_turns, compare, forms

from sct_mm.datasets.base_size import BaseSize
from sct_mm.export.any_size_file import make_any_size
from sct_mm.export.verified_file import Request
from sct_mm.runtime import NetworkFile, files_in
from sct_mm.utils.errors import UserError


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """The path for any size, and the folder of one each, of one network."""
    folder = tmp_path_factory.mktemp('files')
    network = tiny_network()
    tiny_files(network, folder)
    made = make_any_size(
        network, BaseSize(16, 16, SCALES),
        lambda size: [torch.randn(n, 3, size, size) for n in (3, 1)],
        Request('onnx'), 0, dict(channels='RGB', steps=[]))
    (folder / 'any.onnx').write_bytes(made.data)
    return str(folder / 'any.onnx'), str(folder)


def test_the_forms_answer_alike(files):
    for path in files_in(files[1]):
        one = NetworkFile(path, 1)
        calls = forms(one, NetworkFile(files[0], 1), one.sizes[0])
        first, second, (third, ) = (call() for call in calls.values())
        np.testing.assert_allclose(second, first, atol=1e-5)
        np.testing.assert_allclose(third, first, atol=1e-5)


def test_they_run_by_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in 'ab'}
    assert set(by_turns(calls, 2)) == {'a', 'b'}
    assert ''.join(order) == 'ababab'


def test_each_size_of_the_folder(files):
    found = compare(*files, rounds=1)
    assert list(found) == list(SCALES)
    assert all(tuple(spent) == FORMS for spent in found.values())


def test_a_file_of_one_size_is_refused(files):
    with pytest.raises(UserError, match='for any size, but .* 16 pixels'):
        compare(files_in(files[1])[0], files[1])
