"""Checkpoints of the hosts load; what else they hold is never executed."""
import io
import os
import pickle
import threading

import mmengine.runner.checkpoint as host
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OneCycleLR
from mmengine.runner import load_checkpoint
from torch import nn

import sct_mm  # noqa: F401
from sct_mm.utils.checkpoint import check_checkpoint
from sct_mm.utils.errors import UserError
from sct_mm.utils.safe_load import protected_loading


def load(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def test_what_mmengine_saves_loads():
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    loaded = load(dict(history=history, scalar=np.float64(2), flag=np.bool_(1),
                       whole=np.int64(3), array=np.ones(2, np.float32)))
    assert loaded['history'].statistics('mean') == 2
    assert loaded['scalar'] == 2 and loaded['whole'] == 3
    assert (loaded['array'] == 1).all()


@pytest.mark.parametrize('kind', [
    'uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'uint64', 'int64',
    'float16', 'float32', 'float64', 'bool'])
def test_arrays_and_scalars_of_plain_numbers_load(kind):
    array = np.arange(3).astype(kind)
    loaded = load((array, array[1]))
    assert loaded[0].dtype == kind and (loaded[0] == array).all()
    assert loaded[1] == array[1] and loaded[1].dtype == kind


def test_the_message_hub_of_2022_loads():
    """mmengine 0.1 saved the hub itself."""
    hub = MessageHub('of-2022')
    hub.update_scalar('loss', 0.5)
    hub.update_info('best_ckpt', 'a.pth')
    loaded = load(dict(message_hub=hub))['message_hub']
    assert loaded.get_info('best_ckpt') == 'a.pth'
    assert loaded.get_scalar('loss').current() == 0.5


def test_the_meta_of_mmcv_1_loads_and_its_config_is_not_run(tmp_path):
    """mmengine's Runner.resume runs meta['config'] as Python."""
    meta = dict(env_info='sys', config='import os', CLASSES=('cat', 'dog'),
                hook_msgs=dict(best_score=np.float64(0.5)), seed=None)
    path = str(tmp_path / 'a.pth')
    torch.save(dict(meta=meta, state_dict={}), path)
    for loaded in (check_checkpoint(path), load_checkpoint(
            nn.Identity(), path)):
        assert loaded['meta'].pop('hook_msgs') == meta['hook_msgs']
        assert loaded['meta'] == {k: v for k, v in meta.items() if k not in (
            'config', 'hook_msgs')}


@pytest.mark.parametrize('strategy', ['cos', 'linear'])
def test_one_cycle_resumes(strategy):
    def schedule():
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
        return optimizer, OneCycleLR(optimizer, eta_max=1., total_steps=9,
                                     anneal_strategy=strategy)

    def step(optimizer, scheduler):
        optimizer.step()
        scheduler.step()
        return optimizer.param_groups[0]['lr']

    whole = schedule()
    want = [step(*whole) for _ in range(6)]
    first, second = schedule(), schedule()
    assert [step(*first) for _ in range(3)] == want[:3]
    state = load((first[0].state_dict(), first[1].state_dict()))
    second[0].load_state_dict(state[0])
    second[1].load_state_dict(state[1])
    assert [step(*second) for _ in range(3)] == want[3:]


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('owner, name', [
    (HistoryBuffer, '__init__'), (HistoryBuffer, 'update'),
    (np.ndarray, 'tofile'), (OneCycleLR, '__init__'), (getattr, '__self__'),
    (np.array([0.]).__reduce__()[0], '__self__')])
def test_getattr_is_not_let_in(owner, name):
    with pytest.raises(pickle.UnpicklingError):
        load(Call(getattr, owner, name))


def evil(mark):
    return Call(os.system, f'touch {mark}')


@pytest.mark.parametrize('value', [
    Call(os.system, 'true'), Call(eval, '1'), Call(exec, '1'),
    Call(__import__, 'os'), Call(pickle.loads, b'')])
def test_other_types_stay_refused(value):
    with pytest.raises(pickle.UnpicklingError):
        load(value)


def test_one_cycle_is_named_and_not_built():
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
    with pytest.raises(TypeError, match='not callable'):
        load(Call(OneCycleParamScheduler))


FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
FORCE_NOT = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


@pytest.mark.parametrize('weights_only', [None, False])
def test_protection_overrules_who_asks_for_none(weights_only, tmp_path,
                                                monkeypatch):
    monkeypatch.setenv(FORCE_NOT, '1')
    path, mark = tmp_path / 'evil.pth', tmp_path / 'executed'
    torch.save(evil(mark), path)
    with protected_loading(), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=weights_only)
    assert not mark.exists()
    assert os.environ[FORCE_NOT] == '1' and FORCE not in os.environ


def test_protection_nests_and_holds_over_threads(monkeypatch):
    monkeypatch.delenv(FORCE, raising=False)
    inside, leave = threading.Event(), threading.Event()

    def other():
        try:
            with protected_loading():
                inside.set()
                leave.wait()
        finally:
            inside.set()

    thread = threading.Thread(target=other)
    with protected_loading():
        with protected_loading():
            thread.start()
            inside.wait()
        assert os.environ[FORCE] == '1'
    assert os.environ[FORCE] == '1'  # the thread is still inside
    leave.set()
    thread.join()
    assert FORCE not in os.environ
    with pytest.raises(KeyError), protected_loading():
        raise KeyError
    assert FORCE not in os.environ


def refusals(path, mark, logged):
    """What mmengine and we say of the checkpoint at ``path``; ``logged``
    reads what was printed."""
    for read in (check_checkpoint,
                 lambda path: load_checkpoint(nn.Identity(), path),
                 lambda path: host._load_checkpoint_with_prefix('a', path)):
        with pytest.raises(UserError, match='cannot be read') as caught:
            read(str(path))
        assert not mark.exists()
        assert caught.value.__context__ is None  # nor does a traceback show
        text = str(caught.value)
        assert str(path) in text and '\n' not in text
        said = ''.join((text, *logged()))
        assert 'weights_only' not in said and 'trust' not in said
        yield text


def test_a_refusal_names_the_file_and_gives_no_bad_advice(tmp_path, capfd):
    mark, path = tmp_path / 'executed', tmp_path / 'a.pth'
    torch.save(dict(state_dict={}, evil=evil(mark)), path)
    for text in refusals(path, mark, capfd.readouterr):
        assert 'posix.system' in text
    torch.save(dict(a=evil(mark)), path, _use_new_zipfile_serialization=False)
    for text in refusals(path, mark, capfd.readouterr):
        assert 'posix.system' in text
    path.write_bytes(pickle.dumps(evil(mark), protocol=2))  # a bare pickle
    list(refusals(path, mark, capfd.readouterr))


def test_mmengine_lets_no_getattr_in_either(tmp_path, capfd):
    """OneDL's allows it while it loads; from a function's globals it is one
    step to what they call."""
    path = tmp_path / 'a.pth'
    torch.save(Call(getattr, HistoryBuffer, '__init__'), path)
    for text in refusals(path, tmp_path / 'executed',
                         capfd.readouterr):
        assert 'HistoryBuffer' in text


def test_mmengine_leaves_our_types_on_the_list(tmp_path):
    """OneDL's takes its own off after each load."""
    path = str(tmp_path / 'a.pth')
    torch.save(dict(state_dict={}, hub=HistoryBuffer([1.], [1])), path)
    for _ in range(2):
        load_checkpoint(nn.Identity(), path)
        assert torch.load(path, weights_only=True)['hub'].current() == 1


def test_archives_of_torchscript_are_refused(tmp_path, capfd):
    path = tmp_path / 'a.pth'
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.script(nn.Identity()), path)
    with pytest.warns(UserWarning, match='TorchScript'):
        list(refusals(path, tmp_path / 'executed', capfd.readouterr))


def test_what_a_url_names_is_protected(tmp_path, monkeypatch, capfd):
    """torch.hub loads unprotected unless it is asked."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    mark = tmp_path / 'executed'
    (tmp_path / 'served').mkdir()
    torch.save(evil(mark), tmp_path / 'served' / 'evil.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '*')
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(
            Quiet, directory=tmp_path / 'served')) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/evil.pth'
        assert len(list(refusals(url, mark, capfd.readouterr))) == 3
        server.shutdown()
