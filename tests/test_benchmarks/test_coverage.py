"""Networks pass every check of coverage, and each check finds its fault."""
import json
import xml.etree.ElementTree as ET
from functools import partial

import checks as coverage_checks
import pytest
import report
import run as tool
import siblings as siblings_tool
import torch
from checks import CHECKS, Trial, difference, outcome
from networks import (
    Network,
    Subject,
    config_of_backbone,
    host_versions,
    small_first,
    subjects,
)
from report import markdown, right
from torch import nn

from sct_mm import SSBN, SCTLossHook, convert_to_ssbn
from sct_mm.models.size_selection import ScaleSpecific

# Of each host one family; the others stand in docs/coverage.md.
SAMPLE = ('mmpretrain/ShuffleNetV2', 'timm/mobilenetv3',
          'torchvision/mnasnet', 'mmdet/retinanet')


class Small:
    """Builds a network of two norms, as a host's builder does."""
    host, config, name = 'torchvision', None, 'small'

    def __init__(self, ssbn=convert_to_ssbn, size=None):
        self.ssbn, self.size = ssbn, size

    def __call__(self, scales=None, by='', initialised=True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                            nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        if self.size:
            net.append(nn.Linear(self.size - 4, 2))
        return self.ssbn(Network(net), scales) if scales else Network(net)

    def images(self, base):
        generator = torch.Generator().manual_seed(0)
        return dict(inputs=torch.randn(2, 3, base, base, generator=generator),
                    data_samples=None)


def found(builder=None, scales=(24, 16)):
    return outcome(Trial(builder or Small(), scales, 'convert_to_ssbn'))


@pytest.mark.filterwarnings('ignore')  # of the hosts
@pytest.mark.parametrize('key', SAMPLE)
def test_a_family_of_each_host(key):
    host, family = key.split('/')
    pytest.importorskip(host)
    subject, = (s for s in subjects([host]) if s.family == family)
    row = tool.try_family(subject)
    assert [row[check] for check in CHECKS] == ['yes'] * 6, row['note']
    assert row['norms'] and len(row['scales']) == 2 and row['deployed_by']


def test_a_small_network_passes():
    row = found()
    assert not row.pop('note')
    assert row == dict.fromkeys(CHECKS, 'yes')


def test_one_scale_has_nothing_to_choose():
    assert found(scales=(24, ))['chooses'] == '-'


def test_a_norm_that_is_no_ssbn_is_found():
    def only_the_first(model, scales):
        model.net[1] = SSBN(4, scales)
        return model
    row = found(Small(only_the_first))
    assert row['builds'] == 'no' and '1 of 2 norms' in row['note']


def test_another_start_is_found():
    def wrong(model, scales):
        model = convert_to_ssbn(model, scales)
        model.net[1].row(scales[1])['bias'].data += 1
        return model
    row = found(Small(wrong))
    assert row['builds'] == 'no' and 'net.1.bias' in row['note']


def test_a_step_with_other_weights_is_found(monkeypatch):
    monkeypatch.setattr(coverage_checks, 'SCTLossHook',
                        lambda: SCTLossHook(loss_weights=(0.6, 0.4)))
    row = found()
    assert row['sct_step'] == 'no' and 'gradients differ' in row['note']


def test_a_record_that_is_lost_is_found(monkeypatch):
    monkeypatch.setattr(ScaleSpecific, 'set_extra_state',
                        lambda self, state: None)
    with pytest.warns(UserWarning, match='serves images'):
        row = found()
    assert row['saved'] == 'no' and 'torch.save' in row['note']
    assert row['chooses'] == 'yes'


def test_a_choice_that_is_wrong_is_found(monkeypatch):
    choose = ScaleSpecific.choose_size

    def base(self, x):
        chosen = choose(self, x)
        return chosen if self.pinned_size else self.scales[0]
    monkeypatch.setattr(ScaleSpecific, 'choose_size', base)
    row = found()
    assert row['chooses'] == 'no' and '16 pixels' in row['note']


@pytest.mark.filterwarnings('ignore:Network serves images')
def test_a_network_whose_norms_stand_behind_a_pooling():
    class Pooled(Small):
        def __call__(self, *args, **options):
            network = super().__call__(*args, **options)
            network.net.insert(1, nn.AdaptiveAvgPool2d(4))
            return network
    row = found(Pooled())
    assert row['chooses'] == 'no' and row['note'] == (
        'chooses: unpinned it cannot tell sizes apart, and warns so: its '
        'first norm stands behind a pooling')


def test_another_row_that_is_extracted_is_found(monkeypatch):
    extract = coverage_checks.extract_scale
    monkeypatch.setattr(coverage_checks, 'extract_scale',
                        lambda model, scale: extract(model, 24))
    row = found()
    assert row['extracts'] == 'no' and '16 pixels' in row['note']


def test_a_layer_that_stays_is_found(monkeypatch):
    trial = Trial(Small(), (24, 16), '')
    trial.builds()
    monkeypatch.setattr(coverage_checks, 'extract_scale',
                        lambda model, scale: model)
    with pytest.raises(coverage_checks.Failed,
                       match='net.1: SSBN, no BatchNorm2d'):
        trial.extracts()


def test_a_fuse_that_works_in_the_host_only_is_found(monkeypatch):
    def cannot(model):
        raise RuntimeError('cannot fuse')
    trial = Trial(Small(), (24, 16), '')
    trial.builds()
    monkeypatch.setattr(coverage_checks, 'deployments',
                        lambda host: [('fuse', cannot)])
    with pytest.raises(coverage_checks.NotApplicable):
        trial.deploys()  # the host cannot fuse its own network either
    calls = []

    def fuse_first(model):
        calls.append(model)
        if len(calls) == 2:
            raise RuntimeError('cannot fuse')
        return model
    monkeypatch.setattr(coverage_checks, 'deployments',
                        lambda host: [('fuse', fuse_first)])
    with pytest.raises(RuntimeError, match='cannot fuse'):
        trial.deploys()


def test_a_host_of_one_size_is_named():
    subject = Subject('torchvision', 'small', ('small', ))
    builder, scales, why = tool._fitted(subject, Small(size=96))
    assert scales == (96, ) and 'at 64 it raises' in why
    assert tool._fitted(subject, Small())[1:] == ((96, 64), '')


def test_difference():
    one = torch.tensor([3., 4.])
    assert difference([one], [one]) == 0
    assert difference([one + torch.tensor([0., 0.5])], [one]) == 0.1
    assert difference([one], [one[:1]]) == float('inf')
    nan = torch.tensor([float('nan'), 1.])
    assert difference([nan], [nan.clone()]) == 0
    assert not difference([nan], [one]) <= 1


def test_the_smallest_network_comes_first():
    assert small_first(['a_large', 'a_tiny', 'a_b0'])[0] == 'a_tiny'
    assert small_first(['x_swin-t', 'x_r50', 'x_r101'])[0] == 'x_r50'


def test_norms_are_as_a_backbone_defaults_to_them():
    assert config_of_backbone('EfficientNet')['norm_cfg'] == dict(
        type='BN', eps=1e-3)
    assert config_of_backbone('RegNet')['arch'] == 'regnetx_400mf'


def row(**changes):
    return {**dict(host='timm', family='vgg', network='vgg11_bn', by='x',
                   scales=[96, 64], norms=8, **dict.fromkeys(CHECKS, 'yes'),
                   deployed_by=[], note='', seconds=1.0), **changes}


def test_what_is_there_is_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'subjects', lambda hosts: [
        Subject('timm', 'vgg', ()), Subject('timm', 'dla', ())])
    asked = []

    def ask(self, subject):
        asked.append(subject.family)
        return row(family=subject.family)
    monkeypatch.setattr(tool.Worker, 'ask', ask)
    out, work_dir = tmp_path / 'page.md', tmp_path / 'work_dir'
    run = partial(tool.coverage, out=str(out), work_dir=str(work_dir))
    run(['timm'], 'vgg')
    assert asked == ['vgg'] and not out.exists()
    assert 'Not run yet (1): timm/dla.' in (
        work_dir / 'coverage.md').read_text()
    assert len(run(['timm'])) == 2
    assert asked == ['vgg', 'dla']
    assert out.read_text().count('| vgg11_bn |') == 2
    run(['timm'], 'dla', again=True)
    assert asked == ['vgg', 'dla', 'dla']
    path = work_dir / 'coverage.json'
    stored = json.loads(path.read_text())
    assert [r['family'] for r in stored['rows']] == ['dla', 'vgg']
    path.write_text(json.dumps(dict(stored, versions={})))
    assert tool.known_rows(path, host_versions()) == {}


def test_a_family_that_takes_too_long_is_named():
    worker = tool.Worker('/dev/null', limit=0.01)
    answer = worker.ask(Subject('timm', 'vgg', ()))
    assert answer['builds'] == 'no' and 'not done after' in answer['note']
    assert worker.process is None
    assert not right(answer)


def test_the_page():
    text = markdown(dict(torch='2'), [
        row(), row(family='fixed', scales=[224], chooses='-', note='at 160'),
        row(family='bad', extracts='no', note='extracts: why'),
        row(family='none', norms=0, builds='-')], ['timm/dla'])
    assert 'Not run yet (1): timm/dla.' in text
    assert '| timm | 3 | 2 | 1 | 1 |' in text
    assert '- bad: extracts: why.' in text
    assert 'Without batch normalization: none.' in text


def test_another_host_is_refused():
    with pytest.raises(ValueError, match="got 'keras'"):
        subjects(['keras'])


REPORT = """<testsuites><testsuite>
<testcase name="test_a_step_is_one_of_plain_networks[fcn]"><properties>
<property name="host" value="mmseg"/><property name="worst" value="2e-07"/>
</properties></testcase>
<testcase name="test_adapt[fcn]"><failure/></testcase>
<testcase name="test_adapt[tsn]"><properties>
<property name="host" value="mmaction"/></properties></testcase>
<testcase name="test_train_validate_test_and_export[tsn]"><skipped/></testcase>
<testcase name="test_config[sct_fcn.py]"/>
</testsuite></testsuites>"""


def test_the_siblings_stand_at_the_end_of_the_page():
    rows = siblings_tool.rows_in(ET.fromstring(REPORT))
    section = report.siblings(rows, siblings_tool.COLUMNS,
                              ['mmsegmentation 1'])
    table = [line for line in section.split('\n') if line[:1] == '|']
    assert table[2:] == ['| mmaction | tsn | - | - | yes |',
                         '| mmseg | fcn | 2e-07 | - | no |']
    assert section.endswith('Versions: mmsegmentation 1.')
    page = report.with_siblings(markdown({}, [row()]), section)
    assert report.siblings_in(page) == section
    assert report.with_siblings(page, section) == page
    assert not report.siblings_in(markdown({}, [row()]))


def test_the_section_of_siblings_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'subjects', lambda hosts: [
        Subject('timm', 'vgg', ())])
    monkeypatch.setattr(tool.Worker, 'ask', lambda self, subject: row())
    out = tmp_path / 'page.md'
    out.write_text('# Coverage\n\n## Sibling hosts\n\nThey work.\n')
    tool.coverage(['timm'], out=str(out), work_dir=str(tmp_path / 'work_dir'))
    text = out.read_text()
    assert '| vgg11_bn |' in text
    assert text.endswith('## Sibling hosts\n\nThey work.\n')
