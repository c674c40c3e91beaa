"""One network in several threads, as of a server."""
import threading

import pytest
import torch
from conftest import SCALES, TinyModel
from helpers import apart
from torch.testing import assert_close

from sct_mm import SSBN, set_scale, use_scale
from sct_mm.models.size_selection import Pin, ssbn_layers


class Raced(SSBN):
    """Another thread puts its row there as soon as this one has."""

    @property
    def _served(self):
        return self.__dict__.get('theirs')

    @_served.setter
    def _served(self, value):
        self.__dict__['theirs'] = value and (None, self.row(SCALES[0]))


def test_the_row_of_another_thread_is_not_taken():
    layer = apart(Raced(3, SCALES)).eval()
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad(), use_scale(layer, 10):
        got = layer(x)
    assert_close(got, layer.plain(10)(x))


@pytest.mark.parametrize('pin', [
    set_scale, lambda model, size: use_scale(model, size).__enter__()])
def test_two_threads_cannot_pin_one_network(pin):
    model = TinyModel(lambda c: SSBN(c, SCALES))
    pinned, done = threading.Event(), threading.Event()

    def work():
        try:
            with use_scale(model, SCALES[1]):
                pinned.set()
                done.wait()
        finally:
            pinned.set()

    thread = threading.Thread(target=work)
    thread.start()
    pinned.wait()
    try:
        with pytest.raises(RuntimeError, match=f'to {SCALES[1]} pixels'):
            pin(model, SCALES[0])
        assert {m.pinned_size for m in ssbn_layers(model)} == {SCALES[1]}
    finally:
        done.set()
        thread.join()
    with use_scale(model, SCALES[0]), use_scale(model, SCALES[1]):
        pass
    assert {m.pin for m in ssbn_layers(model)} == {Pin()}
