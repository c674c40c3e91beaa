"""A network to adapt, and the check that it answers as before at the base."""
import torch
from conftest import SCALES, TinyModel
from helpers import batch, with_trained_base
from mmengine.structures import BaseDataElement
from torch import nn

from sct_mm import SSBN
from sct_mm.models.weight_change import add_changes, layers_to_change


class Dropping(TinyModel):
    """A network with other layers, too, that change in training."""

    def __init__(self, norm=lambda c: SSBN(c, SCALES), **options):
        super().__init__(norm, **options)
        self.net.insert(9, nn.Dropout(0.5))
        self.net.insert(9, nn.BatchNorm1d(6))
        self.net[9].running_mean.normal_()


def network(rank=0):
    torch.manual_seed(3)
    model = with_trained_base(Dropping())
    if rank:
        add_changes(layers_to_change(model, SCALES, rank), SCALES, rank)
    return model


def unlabelled(**options):
    data = batch(**options)
    return dict(data, data_samples=[BaseDataElement()
                                    for _ in data['data_samples']])


def kept(state, names=('net.1.', 'net.4.', 'net.7.')):
    """A state dict without the parameters of the smaller scales, without the
    changes of weights, and without the extents that the layers recorded."""
    return {name: value if not name.startswith(names) else
            value.view(len(SCALES), -1)[0] for name, value in state.items()
            if not name.endswith('_extra_state') and '.change_' not in name}


def assert_kept(state, before):
    state, before = kept(state), kept(before)
    assert state.keys() == before.keys() and len(state) > 20
    for name, value in before.items():
        assert torch.equal(state[name].to(value.device), value), name
