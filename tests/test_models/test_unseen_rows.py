"""Rows that no batch has reached, while others have seen some."""
from types import SimpleNamespace

import pytest
import torch
from conftest import SCALES, TinyModel
from test_size_selection import trained
from torch._subclasses import FakeTensorMode

from sct_mm import SSBN, calibrate, extract_scale, use_scale
from sct_mm.apis.test import listed, warn_untrained
from sct_mm.datasets.base_size import BaseSize
from sct_mm.models.size_selection import ssbn_layers, warn_of_unseen

UNSEEN = '{} pixels are served by .*scale 8, which have seen no batch'


def reset(model, scale=8):
    """The statistics of a scale as they are built."""
    with use_scale(model, scale):
        for layer in ssbn_layers(model):
            layer.reset_running_stats()
    return model.eval()


def image(size):
    return torch.randn(4, 3, size, size)


@torch.no_grad()
@pytest.mark.parametrize('size', [8, 10])
def test_an_image_that_such_a_row_serves_is_warned_of_once(size):
    model = reset(trained())
    model(image(16)), model(image(12))
    with pytest.warns(UserWarning, match=UNSEEN.format(size)) as seen:
        model(image(size))
    assert len(seen) == 1
    model(image(size)), model.train().eval()(image(size))
    with use_scale(model, 8):  # its caller knows the scale
        reset(trained())(image(16))


@torch.no_grad()
def test_a_checkpoint_is_looked_through_as_it_loads():
    model = trained().eval()
    model.load_state_dict(reset(trained()).state_dict())
    with pytest.warns(UserWarning, match=UNSEEN.format(8)):
        model(image(8))


@torch.no_grad()
def test_statistics_from_images_are_some():
    model = reset(trained())
    calibrate(model, [image(8)] * 2, 8)
    model(image(8)), extract_scale(model, 8)
    warn_of_unseen(model, SCALES)


def test_nothing_is_said_where_no_row_or_every_row_has_seen_a_batch():
    for model in (trained(), TinyModel(lambda c: SSBN(c, SCALES))):
        warn_of_unseen(model.eval(), (16, 10, 8, 4))
    for options in (dict(track_running_stats=False), dict(device='meta')):
        warn_of_unseen(SSBN(3, SCALES, **options).eval(), SCALES)


@pytest.mark.parametrize('sizes, size', [((16, 8), 8), ((14, 10), 10),
                                         ((4, ), 4)])
def test_it_is_reported_for_the_sizes_of_a_test(sizes, size):
    model = reset(trained())
    with pytest.warns(UserWarning, match=UNSEEN.format(size)) as seen:
        warn_of_unseen(model, sizes)
    assert len(seen) == 1
    warn_of_unseen(model, (16, 12))


def test_the_test_tool_reports_it():
    loop = SimpleNamespace(sizes=[8], base=BaseSize(16, 16))
    warn_untrained(trained(), loop)
    with pytest.warns(UserWarning, match=UNSEEN.format(8)):
        warn_untrained(reset(trained()), loop)


def test_a_warning_of_many_sizes_is_short():
    assert listed((30, 28, 26, 24)) == '30, 28, 26, 24'
    assert listed(range(30, 10, -2)) == '30, 28, ... 12 (10 sizes)'


def test_a_network_of_fake_tensors_is_silent():
    with FakeTensorMode():
        SSBN(3, SCALES).eval()


@pytest.mark.filterwarnings('ignore:4 pixels lie outside')
@pytest.mark.parametrize('size', [8, 10, 4])
def test_it_is_reported_where_it_is_extracted(size):
    with pytest.warns(UserWarning, match='scale 8, which have seen no batch'):
        extract_scale(reset(trained()), size)


@torch.no_grad()
def test_a_compiled_network_runs_on():
    torch.compiler.reset()
    model = reset(trained())
    x = image(8)
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    with use_scale(model, 8):
        want = model(x)
    assert torch.equal(compiled(x), want)
