"""What the fuzz tests share: odd values, and the judge of what they do.

Odd arguments and odd batches work as the plain thing does, or are refused by
a sentence of ours before anything has changed.

`python -m pytest tests/test_fuzz --hypothesis-profile=fuzz` runs thousands of
random cases; without the profile they are a few hundred, the same each time.
The counts are printed at the end of each file.
"""
import copy
import re
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from sct_mm.models.size_selection import Pin, ScaleSpecific
from sct_mm.utils.cli import is_refusal

LONG = settings.default.max_examples > 1000  # the profile `fuzz`
COUNTS = Counter()
NAN, INF = float('nan'), float('inf')

ODD = st.sampled_from([
    None, True, False, 0, 1, -1, 2, 3, 16, 2**40, 2**62, 2**70, 10**400, -0.0,
    0.5, 1.0, 16.0, -0.5, NAN, INF, -INF, 1e308, 1e39, 1e-320, 1 + 2j,
    Fraction(1, 3), Decimal('0.5'), '', '16', 'bilinear', 'joint', b'16',
    np.uint8(200), np.int64(16), np.float32(0.5), np.float64(NAN),
    np.bool_(True), np.array(16), np.array([16, 8]), torch.tensor(16),
    torch.tensor([16, 8]), torch.tensor(0.5), (), [], {}, (16, ), [16, 8],
    (16, 12, 8), (8, 16), (16, 16), (16, (12, 8)), (16, 0), (16.0, 8),
    (16, '8'), (16, None), (16, True), (2**70, 8), (np.int64(16), 8),
    {16, 8}, {16: 1, 8: 2}, range(8, 17, 4), dict(type='MultiScaleBatch'),
    dict(type=3), dict(antialias=False), int, torch.float16, object(),
    (0.5, 0.3, 0.2), (1, 0, 0), (0, 0, 0), (1, 1, NAN), (1, 1, -1),
    (1e308, 1, 1), (1e308, ) * 3, (10**400, 1, 1), (1, 1, 1e-320),
    (1, 1, Fraction(1, 3)), (np.float32(1), np.int8(1), 1), ('1', '1', '1'),
    [[1], [1], [1]], 'generator'
]).map(lambda v: iter((16, 8)) if v is not None and type(v) is str
       and v == 'generator' else v)


def cases(short, long):
    return settings(
        max_examples=long if LONG else short, derandomize=not LONG,
        deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False)


def options(**good):
    """Keyword arguments: each left out, or good, and at most two odd."""
    plain = st.fixed_dictionaries({}, optional={
        name: st.sampled_from(values) for name, values in good.items()})
    odd = st.dictionaries(st.sampled_from(sorted(good)), ODD, max_size=2)
    return st.builds(lambda a, b: {**a, **b}, plain, odd | st.just({}))


@pytest.fixture(scope='module', autouse=True)
def counts(request):
    COUNTS.clear()
    yield
    terminal = request.config.pluginmanager.get_plugin('terminalreporter')
    if terminal:  # no process of several (pytest -n) has one
        terminal.write_line(
            f'\n{request.module.__name__}: {sum(COUNTS.values())} calls: '
            + ', '.join(f'{n} {what}' for what, n in COUNTS.most_common()))


def state_of(model):
    tensors = copy.deepcopy(model.state_dict())
    return {**tensors, **{f'{name} grad': None if p.grad is None
                          else p.grad.clone()
                          for name, p in model.named_parameters()}}


def assert_same_state(model, before):
    after = state_of(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert (after[name] is None if value is None
                else torch.equal(after[name], value)), name
    assert_unpinned(model)


def assert_unpinned(model):
    for layer in model.modules():
        if isinstance(layer, ScaleSpecific):
            assert layer.pin == Pin()


def assert_refusal(error):
    if not (is_refusal(error) and str(error).endswith('.') and isinstance(
            error, (TypeError, ValueError, RuntimeError))):
        raise AssertionError(f'no sentence of ours: {error!r}') from error


def attempt(call, model=None, host=None):
    """The result of ``call``; None where it is refused by a sentence of ours,
    which leaves ``model`` as it was, or where ``host``, the same without this
    package, fails alike."""
    before = None if model is None else state_of(model)
    try:
        result = call()
    except Exception as error:
        if host is not None and fails_alike(host, error):
            COUNTS['failed as without us'] += 1
            if model is not None:
                assert_unpinned(model)
            return None
        assert_refusal(error)
        if model is not None:
            assert_same_state(model, before)
        COUNTS['refused'] += 1
        return None
    COUNTS['worked'] += 1
    return result


def fails_alike(host, error):
    try:
        host()
    except Exception as other:
        ours, theirs = (re.sub(r'[\d.]+', '#', str(e).partition(
            ' (in the pass of SCTLossHook')[0])[:40] for e in (error, other))
        return type(other) is type(error) and ours == theirs
    return False


def tensor(shape, dtype, layout):
    values = torch.randn(*shape) * 3
    if layout == 'strided':
        values = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    elif layout == 'channels_last' and len(shape) == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    return values.to(dtype)


LAYOUTS = st.sampled_from(['plain', 'strided', 'channels_last'])
