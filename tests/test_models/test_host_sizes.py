"""Settings of a host's model that hold for one size of its input."""
import copy

import numpy as np
import pytest
from mmengine.config import ConfigDict
from torch import nn

from sct_mm.models.host_sizes import host_sizes, host_sizes_config
from sct_mm.utils.errors import UserError


class Codec:
    def __init__(self, **sizes):
        self.__dict__.update(sizes)


class Head(nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder


class Model(nn.Module):
    def __init__(self, head=None, **attributes):
        super().__init__()
        self.head = head
        self.__dict__.update(attributes)


def test_windows_of_sliding_inference():
    slide = dict(mode='slide', crop_size=(512, 768), stride=(341, 512))
    whole = dict(mode='whole')
    half = dict(mode='slide', crop_size=(256, 384), stride=(170, 256))
    for settings, want in ((slide, half), (ConfigDict(slide), half),
                           (whole, whole)):
        before = copy.deepcopy(settings)
        model = Model(test_cfg=settings)
        with host_sizes(model, 0.5):
            assert model.test_cfg == want
        assert model.test_cfg is settings and settings == before
        assert host_sizes_config(dict(test_cfg=settings),
                                 0.5) == dict(test_cfg=want)
    with pytest.raises(KeyError), host_sizes(model, 0.5):
        raise KeyError
    assert model.test_cfg is whole


def test_codecs_that_decode_keypoints():
    inner = Codec(heatmap_size=np.array([48, 64]))
    codec = Codec(input_size=(192, 256), heatmap_codec=inner, sigma=2)
    with host_sizes(Model(Head(codec)), 2 / 3):
        assert codec.input_size == (128, 171)
        assert inner.heatmap_size.tolist() == [32, 43] and codec.sigma == 2
    assert codec.input_size == (192, 256)
    assert inner.heatmap_size.tolist() == [48, 64]
    config = dict(head=dict(decoder=dict(type='UDPHeatmap', sigma=2,
                                         input_size=(192, 256),
                                         heatmap_size=(48, 64))))
    assert host_sizes_config(config, 0.5)['head']['decoder'] == dict(
        type='UDPHeatmap', sigma=2, input_size=(96, 128),
        heatmap_size=(24, 32))
    # A decoder that is a layer is no codec.
    with host_sizes(Model(Head(nn.Linear(2, 2))), 0.5):
        pass


def test_heatmaps_of_a_fixed_shape():
    layer = Model(out_shape=(64, 48))
    with host_sizes(Model(layer), 0.5):
        assert layer.out_shape == (32, 24)
    assert layer.out_shape == (64, 48)
    config = dict(head=dict(type='MSPNHead', out_shape=(64, 48)))
    assert host_sizes_config(config, 0.5)['head']['out_shape'] == (32, 24)


def test_galleries_are_made_anew_at_each_size():
    pipeline = [dict(type='Resize', scale=28), dict(type='PackInputs')]
    gallery = dict(batch_size=2, dataset=dict(type='A', pipeline=pipeline))
    model = Model(prototype=gallery, prototype_inited=True)
    with host_sizes(model, 0.5):
        assert not model.prototype_inited
        assert model.prototype['dataset']['pipeline'][0]['scale'] == 14
        model.prototype_inited = True
    assert model.prototype is gallery and not model.prototype_inited
    assert pipeline[0]['scale'] == 28
    for prototype in ('features.pth', np.zeros((2, 2))):
        model = Model(prototype=prototype, prototype_inited=True)
        with host_sizes(model, 1):
            assert model.prototype_inited
        with pytest.raises(UserError, match='gallery of a retriever must be'):
            with host_sizes(model, 0.5):
                pass
        assert model.prototype is prototype
    config = dict(type='ImageToImageRetriever', prototype=gallery)
    assert host_sizes_config(config, 0.5)['prototype']['dataset'][
        'pipeline'][0]['scale'] == 14
    model = Model(prototype=gallery, prototype_inited=False, prototype_vecs=1)
    with host_sizes(model, 0.5, galleries=False):  # of a timer
        assert model.prototype is gallery and model.prototype_inited
    assert not model.prototype_inited
