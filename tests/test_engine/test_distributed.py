"""Two gloo processes on the CPU against one process."""
import copy

import pytest
import torch
import torch.distributed as dist
from conftest import SCALES
from forks import in_two_processes
from helpers import Classifier, batch, with_trained_base
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch.testing import assert_close

from sct_mm import SCTLossHook, SyncSSBN, use_scale

STEPS = 4
SCHEDULES = dict(full={}, drawn=dict(scales_per_step=2),
                 one=dict(scales_per_step=1),
                 partition=dict(partition=True),
                 between=dict(between=0.6, scales_per_step=2),
                 adapt=dict(adapt=True, between=0.6),
                 distill=dict(distill='ensemble', scales_per_step=2))


def steps(model, hook, halves, accumulate=1):
    """SGD on a DDP model; the names that each step logged."""
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1),
                         accumulative_counts=accumulate)
    optim.initialize_count_status(model, 0, STEPS)
    logged = []
    for hook.step in range(STEPS):
        logged.append(sorted(model.train_step(halves[hook.step], optim)))
    return logged


def ssbn_model():
    return Classifier().double()


def half(step, rank):
    data = batch(n=6, seed=10 * step + rank)
    return {**data, 'inputs': data['inputs'].double()}


def work(rank, folder):
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank,
                            world_size=2)
    start = torch.load(f'{folder}/start.pth')
    results = {}
    for name, options in SCHEDULES.items():
        for backward in ('joint', 'per_scale'):
            for accumulate in (1, 2):
                model = ssbn_model()
                model.load_state_dict(start)
                hook = SCTLossHook(backward=backward, **options)
                hook.attach(model)
                wrapped = MMDistributedDataParallel(
                    model, broadcast_buffers=False)
                logged = steps(wrapped, hook, [
                    half(i, rank) for i in range(STEPS)], accumulate)
                results[name, backward, accumulate] = (
                    model.state_dict(), logged, hook.sct.ensemble())
                hook.detach()
    layer = SyncSSBN(4, SCALES)
    try:
        with use_scale(layer, 8):
            layer(torch.rand(2, 4, 4, 4))
    except RuntimeError as error:
        results['sync'] = str(error)
    torch.save(results, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    torch.manual_seed(0)
    start = with_trained_base(ssbn_model()).state_dict()
    torch.save(start, folder / 'start.pth')
    in_two_processes(work, str(folder))
    return start, [torch.load(folder / f'{rank}.pth') for rank in range(2)]


def by_one_process(start, options, accumulate):
    """Each half of the batch through its own copy, which keeps its own
    statistics as a process does; one optimizer on the mean gradient."""
    models = [ssbn_model() for _ in range(2)]
    hooks = [SCTLossHook(**{'backward': 'joint', **options}) for _ in models]
    for model, hook in zip(models, hooks, strict=True):
        model.load_state_dict(start)
        hook.attach(model)
    for step in range(STEPS):
        for rank, (model, hook) in enumerate(zip(models, hooks, strict=True)):
            hook.step = step
            loss = model(**half(step, rank), mode='loss')['loss']
            (loss / 2 / accumulate).backward()
        learned = [hook.sct.teacher.ensemble for hook in hooks]
        for scale, point in learned[0].items():
            mean = (point + learned[1][scale]) / 2
            for ensemble in learned:
                ensemble[scale] = mean
        if (step + 1) % accumulate == 0:
            for a, b in zip(*(m.parameters() for m in models), strict=True):
                if not a.requires_grad:
                    continue
                update = 0.1 * (a.grad + b.grad)
                for parameter in (a, b):
                    parameter.data -= update
                    parameter.grad = None
    points = hooks[0].sct.ensemble()
    for hook in hooks:
        hook.detach()
    return [copy.deepcopy(m.state_dict()) for m in models], points


@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize('backward', ['joint', 'per_scale'])
@pytest.mark.parametrize('schedule', SCHEDULES)
def test_two_processes_train_as_one(ranks, schedule, backward, accumulate):
    start, results = ranks
    options = dict(SCHEDULES[schedule])
    if schedule == 'distill':  # of which each does what it can
        options.update(backward=backward)
    want, points = by_one_process(start, options, accumulate)
    for rank in range(2):
        state, logged, ours = results[rank][schedule, backward, accumulate]
        assert_close(state, want[rank])
        assert_close(ours, points)
        assert len(points) == 3 * (schedule == 'distill')
        assert logged == results[0][schedule, backward, accumulate][1]
    for name in dict(ssbn_model().named_parameters()):
        stays = schedule == 'adapt' and not name.startswith((
            'net.1.', 'net.4.', 'net.7.'))
        assert stays == torch.equal(want[0][name], start[name]), name


def test_sync_ssbn_says_that_it_needs_a_gpu(ranks):
    assert 'on a GPU only' in ranks[1][0]['sync']
