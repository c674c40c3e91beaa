"""Models in a wrapper: served rightly, or refused by its name."""
import copy

import pytest
import torch
from conftest import SCALES, TinyModel
from helpers import batch, grads, ssbn_model
from mmengine.model import (
    ExponentialMovingAverage,
    MMDistributedDataParallel,
    StochasticWeightAverage,
)
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

from sct_mm import (
    SCTLossHook,
    add_scale,
    calibrate,
    convert_to_ssbn,
    extract_scale,
    set_scale,
    use_scale,
)

pytestmark = [
    pytest.mark.filterwarnings('ignore::FutureWarning'),
    pytest.mark.filterwarnings('ignore:FSDP is switching to use `NO_SHARD`')]


@pytest.fixture(autouse=True)
def one_process():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0,
                            world_size=1)
    yield
    dist.destroy_process_group()


def sharded(model):
    fully_shard(model, mesh=init_device_mesh('cpu', (1, )))
    return model


def sharded_flat(model):
    return FullyShardedDataParallel(model, use_orig_params=True,
                                    device_id=torch.device('cpu'))


PARALLEL = dict(
    DistributedDataParallel=DistributedDataParallel,
    MMDistributedDataParallel=MMDistributedDataParallel,
    FullyShardedDataParallel=sharded_flat, FSDP=sharded)
AVERAGES = dict(
    AveragedModel=AveragedModel,
    ExponentialMovingAverage=ExponentialMovingAverage,
    StochasticWeightAverage=StochasticWeightAverage)
CALLERS = dict(DataParallel=DataParallel,
               OptimizedModule=lambda m: torch.compile(m, backend='eager'))
WRAPPERS = {**PARALLEL, **AVERAGES, **CALLERS}


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4),
                         nn.ReLU(), nn.Conv2d(4, 2, 1))


def small():
    return convert_to_ssbn(plain(), (16, 8))


def image(size):
    return torch.randn(4, 3, size, size)


@pytest.mark.parametrize('name', {**PARALLEL, **AVERAGES})
@pytest.mark.parametrize('change, make, function', [
    (lambda model: convert_to_ssbn(model, (16, 8)), plain, 'convert_to_ssbn'),
    (lambda model: add_scale(model, 12), small, 'add_scale')])
def test_tensors_that_a_wrapper_holds_are_not_replaced(
        change, make, function, name):
    model = WRAPPERS[name](make())
    before = [id(tensor) for tensor in model.parameters()]
    with pytest.raises(TypeError, match=f'{function}.* but got {name}'):
        change(model)
    assert before == [id(tensor) for tensor in model.parameters()]


@pytest.mark.parametrize('name', WRAPPERS)
def test_a_wrapper_is_not_extracted(name):
    with pytest.raises(TypeError, match=f'itself, but got {name}.*Pass '):
        extract_scale(WRAPPERS[name](small()), 8)


@pytest.mark.parametrize('buffers', [False, True])
def test_a_part_that_is_wrapped_is_found_and_an_average_goes_on(buffers):
    outer = nn.Sequential(DistributedDataParallel(plain()))
    with pytest.raises(TypeError, match='but got DistributedDataParallel'):
        convert_to_ssbn(outer, (16, 8))
    online = plain()
    both = nn.ModuleList([online, ExponentialMovingAverage(
        online, update_buffers=buffers)])
    for changed in (convert_to_ssbn(both, (16, 8)), add_scale(both, 12),
                    extract_scale(both, 12)):
        online, average = changed
        with torch.no_grad():
            for parameter in online.parameters():
                parameter.add_(1)
        average.update_parameters(online)
        average.steps.zero_()  # the next one copies, too
        for ours, theirs in zip(average.module.parameters(),
                                online.parameters(), strict=True):
            assert_close(ours, theirs, check_stride=False)


@pytest.mark.parametrize('name', CALLERS)
def test_what_only_calls_a_model_runs_what_is_converted(name):
    torch.compiler.reset()
    torch.manual_seed(1)
    net = plain()
    model, reference = WRAPPERS[name](net), copy.deepcopy(net)
    model(image(8))
    reference.load_state_dict(net.state_dict())
    assert convert_to_ssbn(model, (16, 8)) is model
    convert_to_ssbn(reference, (16, 8))
    add_scale(model, 12), add_scale(reference, 12)
    for size in (16, 12, 8):
        x = image(size)
        with use_scale(model, size), use_scale(reference, size):
            assert_close(model(x), reference(x), rtol=0, atol=0)


@pytest.mark.parametrize('name', WRAPPERS)
def test_pins_and_calibration_are_right_in_each(name):
    torch.compiler.reset()
    reference = small()
    model = WRAPPERS[name](copy.deepcopy(reference))
    images = [image(8) for _ in range(3)]
    assert calibrate(model, images, 8) == calibrate(reference, images, 8)
    model.eval(), reference.eval()
    for size in (8, 16):
        set_scale(model, size), set_scale(reference, size)
        x = image(16)
        assert_close(model(x), reference(x))


@pytest.mark.parametrize('name', ['FullyShardedDataParallel', 'FSDP'])
def test_sharded_gradients_are_those_of_one_model(name):
    model = ssbn_model()
    reference = copy.deepcopy(model)
    names = dict(model.named_parameters())
    wrapped = WRAPPERS[name](model)
    for hook, each in ((SCTLossHook(backward='joint'), model),
                       (SCTLossHook(), reference)):
        hook.attach(each)
    for each in (wrapped, reference):
        each(**batch(), mode='loss')['loss'].backward()
    want = grads(reference)
    found = {key.replace('_fsdp_wrapped_module.', ''): value.grad
             for key, value in wrapped.named_parameters()}
    assert list(found) == list(names)
    for key, value in found.items():
        value = value.to_local() if hasattr(value, 'to_local') else value
        assert_close(value.reshape(want[key].shape), want[key])


@pytest.mark.parametrize('name', ['FullyShardedDataParallel', 'FSDP'])
def test_shards_take_no_gradients_once_a_scale(name):
    model = WRAPPERS[name](TinyModel(lambda c: nn.BatchNorm2d(c)))
    with pytest.raises(ValueError, match="FSDP or .* Set backward='joint'"):
        SCTLossHook(scales=SCALES).attach(model)
