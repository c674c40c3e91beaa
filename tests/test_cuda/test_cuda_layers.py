"""SSBN, SyncSSBN and MultiScaleBatch on a GPU."""
import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import SCALES
from gpu import (  # noqa: F401
    DEVICE,
    GPU,
    exact,
    images,
    needs_gpu,
    no_synchronisation,
    pytestmark,
    trained,
)
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn
from torch.testing import assert_close

from sct_mm import SSBN, MultiScaleBatch, SyncSSBN, use_scale


@pytest.mark.parametrize('layout', ['contiguous_format', 'channels_last'])
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
@pytest.mark.parametrize('channels', [5, 8])
def test_ssbn_is_separate_batch_norms(dtype, layout, channels):
    dtype, layout = getattr(torch, dtype), getattr(torch, layout)
    conv = nn.Conv2d(3, channels, 3).to(DEVICE, memory_format=layout)
    layer = SSBN(channels, SCALES).to(DEVICE)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    norms = {s: nn.BatchNorm2d(channels).to(DEVICE) for s in SCALES}
    for scale, norm in norms.items():
        norm.load_state_dict(layer.row(scale))
    # To the bit where each adds up in the same order.
    exactly = dtype == torch.float32 and layout == torch.contiguous_format
    close = dict(rtol=0, atol=0) if exactly else {}
    for training in (True, True, False):
        for scale, norm in norms.items():
            layer.zero_grad(), norm.zero_grad()
            x = images(4, scale).to(memory_format=layout)
            results = []
            for module in (layer, norm):
                own = x.clone().requires_grad_()
                with torch.autocast(DEVICE, dtype, dtype != torch.float32), \
                        use_scale(layer, scale):
                    out = module.train(training)(conv(own))
                (out.float() * torch.arange(
                    out.numel(), device=DEVICE).view_as(out)).mean().backward()
                results.append((out, own.grad))
            assert_close(*results, **close)
            for name, value in layer.row(scale).items():
                assert_close(value, getattr(norm, name), **close)
            row = layer.scales.index(scale)
            assert_close(layer.weight.grad.view(3, -1)[row],
                         norm.weight.grad, **close)
            assert_close(layer.bias.grad.view(3, -1)[row], norm.bias.grad,
                         **close)


@needs_gpu
def test_a_synchronisation_is_seen():
    with pytest.raises(RuntimeError, match='synchroniz'):
        with no_synchronisation():
            torch.ones(1, device=DEVICE).item()
    assert torch.cuda.get_sync_debug_mode() == 0


@needs_gpu
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('pinned', [True, False])
def test_forward_does_not_synchronise(training, pinned):
    net = trained().train(training)
    for scale in SCALES:
        x = images(size=scale)
        with use_scale(net, scale if pinned else None):
            net(x)  # what a GPU does once
            with no_synchronisation():
                net(x)


@needs_gpu
def test_boxes_are_resized_without_synchronisation():
    sample = BaseDataElement(metainfo=dict(
        batch_input_shape=(16, 16), img_shape=(16, 12)))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[2., 4, 10, 12]], device=DEVICE))
    data = dict(inputs=images(1), data_samples=[sample])
    transform = MultiScaleBatch(8, 16)
    transform.transform(data)
    with no_synchronisation():
        resized = transform.transform(data)
    boxes = resized['data_samples'][0].gt_instances.bboxes
    assert boxes.tolist() == [[1, 2, 5, 6]]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('scale', [12, 8, 20])
def test_a_batch_is_resized_as_on_a_cpu(scale, dtype):
    x = torch.randn(4, 3, 16, 21).to(getattr(torch, dtype))
    transform = MultiScaleBatch(scale, 16, size_divisor=4)
    here = transform.transform(dict(inputs=x))['inputs']
    there = transform.transform(dict(inputs=x.to(DEVICE)))['inputs']
    assert there.device.type == DEVICE and there.dtype == x.dtype
    assert_close(there.cpu(), here)


def run_sync(layer, x, target):
    with use_scale(layer, 8):
        out = layer(x)
    (out * target).sum().backward()
    return {'out': out, 'x': x.grad, 'weight.grad': layer.weight.grad,
            'bias.grad': layer.bias.grad, **layer.state_dict()}


def halves():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 6, 4, 8, 8, generator=generator).unbind()


def test_sync_ssbn_in_one_process_is_ssbn():
    x, target = (t.to(DEVICE) for t in halves())
    results = [run_sync(kind(4, SCALES).to(DEVICE),
                        x.clone().requires_grad_(), target)
               for kind in (SSBN, SyncSSBN)]
    assert_close(*results, rtol=0, atol=0)


def work(rank, folder):
    torch.cuda.set_device(rank)
    dist.init_process_group('nccl', f'file://{folder}/store', rank=rank,
                            world_size=2)
    x, target = (t[rank * 3:rank * 3 + 3].cuda() for t in halves())
    result = run_sync(SyncSSBN(4, SCALES).cuda(), x.requires_grad_(), target)
    torch.save({k: v.detach().cpu() for k, v in result.items()},
               f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2,
                    reason='torch sees less than two GPUs')
def test_sync_ssbn_of_two_processes_is_ssbn_of_the_whole_batch(tmp_path):
    mp.spawn(work, (str(tmp_path), ), nprocs=2)
    one, two = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    x, target = halves()
    whole = run_sync(SSBN(4, SCALES), x.requires_grad_(), target)
    for name, value in whole.items():
        if name in ('out', 'x'):
            assert_close(torch.cat([one[name], two[name]]), value.detach())
        elif name.endswith('.grad'):  # DDP adds them up
            assert_close(one[name] + two[name], value)
        else:
            assert_close(one[name], two[name])
            assert_close(one[name], value)


@pytest.mark.filterwarnings('ignore')  # inductor's own
def test_compiled_is_eager():
    eager = trained()
    net = copy.deepcopy(eager)
    compiled = torch.compile(net, dynamic=False,
                             backend='inductor' if GPU else 'aot_eager')
    for scale in SCALES:
        x = images(size=scale)
        results = []
        for module, own in ((eager, eager), (compiled, net)):
            own.train().zero_grad()
            with use_scale(own, scale):
                out = module(x)
            out.pow(2).mean().backward()
            results.append((out, [p.grad for p in own.parameters()]))
        assert_close(*results, rtol=1e-4, atol=1e-4)
    assert_close(net.state_dict(), eager.state_dict(), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for scale in SCALES:
            x = images(size=scale)
            assert_close(compiled.eval()(x), eager.eval()(x), rtol=1e-4,
                         atol=1e-4)
    torch._dynamo.reset()
