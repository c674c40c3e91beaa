"""One network in several threads, as of a server."""
import asyncio
import threading

import pytest
from conftest import SCALES, TinyModel

from sct_mm import SSBN, set_scale, use_scale
from sct_mm.models.size_selection import Pin, ssbn_layers


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


def test_two_tasks_cannot_pin_one_network():
    """The sizes that each of them sees, as it waits within its block."""
    model = TinyModel(lambda c: SSBN(c, SCALES))
    seen = {}

    async def work(size):
        with use_scale(model, size):
            await asyncio.sleep(0)
            seen[size] = {m.pinned_size for m in ssbn_layers(model)}

    async def both():
        return await asyncio.gather(*map(work, SCALES[:2]),
                                    return_exceptions=True)

    first, second = asyncio.run(both())
    assert first is None and seen == {SCALES[0]: {SCALES[0]}}
    assert isinstance(second, RuntimeError)
    assert f'asyncio task has pinned this network to {SCALES[0]}' in str(
        second)
    assert {m.pin for m in ssbn_layers(model)} == {Pin()}
    with use_scale(model, SCALES[1]):  # what waits for a task may pin, too
        asyncio.run(work(SCALES[2]))
    assert seen[SCALES[2]] == {SCALES[2]}
