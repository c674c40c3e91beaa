"""The benchmark measures the same work in each arm."""
import json
import os
import os.path as osp
import subprocess
import sys
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch
from arms import ListModel
from benchmark import _unwarned, benchmark, main
from calls import Case, calls, cases, print_calls, whole_step
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.testing import assert_close

from sct_mm import SCTLossHook
from sct_mm.utils.errors import UserError

TOOL = 'benchmarks/cost/benchmark.py'
CONFIG = 'configs/sct_resnet18_1xb128_fashion-mnist.py'


def network():
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    cfg = Config.fromfile(osp.join(ROOT, CONFIG))
    return MODELS.build(cfg.model).double()


def test_lists_of_bn_compute_the_loss_and_gradients_of_the_hook():
    from mmpretrain.structures import DataSample
    ours, lists = network(), ListModel(network())
    SCTLossHook().attach(ours)
    batch = dict(inputs=torch.randn(4, 1, 28, 28).double(),
                 data_samples=[DataSample().set_gt_label(i) for i in range(4)])
    losses = [m.train()(**batch, mode='loss')['loss'] for m in (ours, lists)]
    assert_close(*losses)
    for loss in losses:
        loss.backward()
    parts = [m.backbone.get_submodule for m in (ours, lists)]
    assert_close(*(part('layer3.0.conv1').weight.grad for part in parts))
    norm, rows = (part('layer3.0.bn1') for part in parts)
    for name in ('weight', 'bias'):
        assert_close(getattr(norm, name).grad, torch.cat(
            [getattr(bn, name).grad for bn in rows]))
    assert_close(norm.running_var,
                 torch.stack([bn.running_var for bn in rows]))


class Untraceable(torch.nn.Module):

    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_backbone_that_cannot_be_traced():
    model = network()
    model.backbone = Untraceable()
    with pytest.raises(UserError, match='that torch.fx can trace'):
        ListModel(model)


def test_the_tool_prints_time_flops_and_memory(tmp_path, monkeypatch, capsys):
    """A detector's processes are started, see test_detection; these are
    forks."""
    monkeypatch.setattr('benchmark.mp', SimpleNamespace(
        get_context=lambda method: get_context('forkserver')))
    monkeypatch.setattr(sys, 'argv', [
        TOOL, osp.join(ROOT, CONFIG), '--rounds', '3', '--batch-size', '6',
        '--arms', 'ssbn', 'per_scale', 'partition',
        '--out', str(tmp_path / 'out.json')])
    main()
    result = json.loads((tmp_path / 'out.json').read_text())
    flops = {row['arm']: row['flops'] for row in result['training']}
    assert list(flops) == ['plain BN at 28', 'plain BN at 21',
                           'plain BN at 14', 'ssbn', 'per_scale', 'partition']
    total = sum(list(flops.values())[:3])
    assert flops['per_scale'] == pytest.approx(total)
    assert flops['partition'] == pytest.approx(total / 3)
    for row in result['training']:
        assert row['peak_mb'] > 0 and len(row['of_sum']) == 3
    assert len(result['beside_plain']) == 3 and min(
        result['beside_plain']) > 0
    assert set(result['inference']) == {'28', '21', '14'}
    assert result['shares']['resize'] > 0
    assert 'peak MB' in capsys.readouterr().out


def test_partition_needs_two_images_a_scale(run_tool):
    code, output = run_tool(TOOL, CONFIG, '--batch-size', 5)
    assert code == 2 and 'Set batch_size to 6 or more' in output


def test_a_config_without_ssbn(start_tool):
    code, output = start_tool(TOOL, 'tools/benchmarks/experiments/configs/'
                              'resnet18_1xb128_fashion-mnist-28px.py')
    assert code == 2 and 'must have SSBN' in output


def test_too_few_rounds():
    with pytest.raises(ValueError, match='`rounds` must be an int from 3'):
        benchmark(osp.join(ROOT, CONFIG), rounds=2)


@pytest.mark.parametrize('own', [None, 'default'])
def test_processes_do_not_repeat_the_hosts_warnings(own, monkeypatch):
    monkeypatch.delenv('PYTHONWARNINGS', raising=False)
    if own:
        monkeypatch.setenv('PYTHONWARNINGS', own)
    with pytest.raises(KeyboardInterrupt), _unwarned():
        told = subprocess.run(
            [sys.executable, '-c', 'import warnings; warnings.warn("told")'],
            capture_output=True, text=True).stderr
        raise KeyboardInterrupt
    assert ('told' in told) == bool(own)
    assert os.environ.get('PYTHONWARNINGS') == own


@pytest.mark.parametrize('case', range(6))
def test_calls_of_a_layer_do_the_same_work(case):
    torch.manual_seed(0)
    for index, each in enumerate(cases()):
        if index == case:
            with each.within():
                assert torch.equal(each.ours(), each.theirs())


def test_calls_are_measured_by_turns(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('calls.whole_step', lambda: Case('step', list, list))
    rows = calls(3, out=str(tmp_path / 'out.json'))
    assert json.loads((tmp_path / 'out.json').read_text()) == rows
    assert len(rows) == 7 and rows[-1]['name'] == 'step'
    for row in rows:
        assert len(row['ours']) == len(row['theirs']) == 3
    print_calls(rows)
    assert 'evaluation, unpinned' in capsys.readouterr().out


def test_the_whole_step_is_that_of_the_plain_networks():
    case = whole_step()
    ours, plain = case.ours.__self__, case.theirs.args[0]
    assert [worker.batch['inputs'].shape[-1] for worker in plain] == list(
        ours.scales) == [32, 28, 24, 20]
    seen = []
    ours.model.backbone.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape[-1]))
    case.ours()
    assert seen == [32, 28, 24, 20]
