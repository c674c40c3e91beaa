"""What a test takes for a checkpoint, and says of it."""
import re

import exports
import pytest
import torch

from sct_mm import ScalesTestLoop, apis
from sct_mm.evaluation.report import report_sizes
from sct_mm.utils.errors import UserError


def test_bare_weights_two_of_one_config_and_a_metric_of_arrays(
        tmp_path, capsys):
    """Hooks that average weights ask for the name of a state dict."""
    config, checkpoint, options = exports.fashion(tmp_path)
    torch.save({f'module.{name}': value for name, value in
                {**torch.load(checkpoint)['state_dict'],
                 'head.more': torch.zeros(1)}.items()}, tmp_path / 'b.pth')
    with pytest.warns(UserWarning, match='b.pth. has 1 weights .* head.more'):
        results = apis.test(
            config, checkpoint, (14, ), str(tmp_path),
            {**options, 'custom_hooks': [dict(type='EMAHook')],
             'test_evaluator': [
                 dict(type='Accuracy', topk=(1, )),
                 dict(type='SingleLabelMetric', average=None,
                      items=('recall', ))]},
            compare=[(config, str(tmp_path / 'b.pth'))])
    assert len({result['label'] for result in results}) == 2
    one, other = (result['rows'][0] for result in results)
    assert one['metrics'] == other['metrics'] != {}
    assert len(one['arrays']['single-label/recall_classwise']) == 10
    report_sizes(results, str(tmp_path))
    assert ('single-label/recall_classwise: no single number'
            in capsys.readouterr().out)


@pytest.mark.parametrize('run', [apis.test, apis.fidelity])
def test_a_network_to_compare_with_is_missed_before_any_test(
        run, tmp_path, monkeypatch):
    config, checkpoint, options = exports.fashion(tmp_path)
    monkeypatch.setattr(ScalesTestLoop, 'run', None)  # no test may start
    arguments = config, checkpoint, [28, 14]
    gone = config, str(tmp_path / 'b.pth')
    for wrong in (dict(compare=[gone]), dict(against=gone))[:1 + (
            run is apis.fidelity)]:
        with pytest.raises(UserError, match='b.pth.* is missing'):
            run(*arguments, out=tmp_path, cfg_options=options, **wrong)
    for wrong in (dict(compare=gone), dict(compare=None),
                  dict(against=config))[:2 + (run is apis.fidelity)]:
        got = 'None' if wrong == dict(compare=None) else repr(config)
        with pytest.raises(TypeError, match='must be a pair .*, but got '
                           f'{re.escape(got)}'):
            run(*arguments, out=tmp_path, cfg_options=options, **wrong)
    with pytest.raises(TypeError, match="`cfg_options` must be a dict, but "
                       r"got \['a=1'\]"):
        run(*arguments, out=tmp_path, cfg_options=['a=1'])


def test_a_cascade_tests_the_averaged_weights_as_the_host_does(tmp_path):
    """mmpretrain's hook swaps them in before a test, and out after it."""
    config, checkpoint, options = exports.fashion(tmp_path)
    state = torch.load(checkpoint)['state_dict']
    torch.save(dict(state_dict=state, ema_state_dict=dict(
        {f'module.{name}': value * (not name.endswith('weight'))
         for name, value in state.items()},
        steps=torch.tensor(1))), tmp_path / 'averaged.pth')
    want, got = (
        apis.test_cascade(config, path, [14, 28], 0.5, None, None,
                                str(tmp_path), {**options, **more})['rows']
        for path, more in ((checkpoint, {}), (
            str(tmp_path / 'averaged.pth'),
            dict(custom_hooks=[dict(type='EMAHook')]))))
    for name in ('metrics', 'auroc', 'share_decided'):
        assert [row[name] for row in got] == [row[name] for row in want]
    assert len({row['auroc'] for row in got} - {0.5}) == 2
