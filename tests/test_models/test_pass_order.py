"""Heads that run later than their features, and layers called alone."""
import copy

import pytest
import torch
from conftest import SCALES, TinyModel
from test_size_selection import pinned, trained
from torch import nn

from sct_mm import SSBN, SSBN1d, use_scale

MIXED_UP = '8 pixels, but one of 16 pixels came before'


def image(size):
    return torch.randn(2, 3, size, size)


@torch.no_grad()
def test_a_head_that_runs_later_than_other_features_is_warned_of():
    model = trained()
    body, head = model.net[:7], model.net[7:]
    model(image(16))  # the head has run at that size before
    features = [body(image(16)), body(image(8))]
    with pytest.warns(UserWarning, match=MIXED_UP):
        head(features[0])
    head(features[1])  # it was said
    body(image(12)), body(image(8)), head(features[0])


@torch.no_grad()
def test_it_is_warned_of_also_where_several_images_came_between():
    model = trained()
    features = model.net[:7](image(16))
    for _ in range(3):
        model.net[:7](image(8))
    with pytest.warns(UserWarning, match=MIXED_UP):
        model.net[7:](features)


@torch.no_grad()
def test_images_in_turn_and_two_networks_in_turn_are_served_in_silence():
    models = [trained(), trained(1)]
    models.append(copy.deepcopy(models[0]))
    for sizes in ((16, 8, 12), (8, 8, 16), (12, 16, 8)):
        for model, size in zip(models, sizes, strict=True):
            x = image(size)
            assert torch.equal(model(x), pinned(model, x))
    for size in (16, 8, 8):  # each head follows its own features
        model.net[7:](model.net[:7](image(size)))


@torch.no_grad()
def test_blocks_in_turn_that_know_their_extents_are_right():
    model = trained()
    stem, block = model.net[:3], model.net[3:6]
    x, y = image(16), image(8)
    after = stem(x), stem(y)
    got = [block(z) for z in after]
    for z, image_, out in zip(after, (x, y), got, strict=True):
        with use_scale(model, image_.shape[-1]):
            assert torch.equal(out, block(z))


@torch.no_grad()
def test_a_head_behind_a_pinned_body_is_warned_of():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Sequential(SSBN1d(3, SCALES)))
    for scale in SCALES:
        with use_scale(net, scale):
            net(image(scale))
    with use_scale(net.eval(), 8):
        features = net[:2](image(8))
    with pytest.warns(UserWarning, match='serves an input by the rows of its '
                      'base scale 16: .*Pin a size'):
        net[2](features)


def test_a_network_of_vectors_without_a_record_is_silent():
    nn.Sequential(nn.Linear(3, 4), SSBN(4, SCALES)).eval()[1](
        torch.zeros(2, 4, 1, 1))
    TinyModel(lambda c: SSBN(c, SCALES)).eval()(image(16))
