"""What docs/export.md says can be typed."""
import os.path as osp
import re
import shlex
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch

from sct_mm.export import export, latency

from conftest import ROOT
from exports import fashion

with open(osp.join(ROOT, 'docs/export.md'), encoding='utf-8') as page:
    TEXT = page.read()
COMMANDS = re.findall(r'^    python tools/(\w+)\.py (.*)$', TEXT, re.M)


@pytest.mark.parametrize('tool, arguments', [
    pair for pair in COMMANDS if pair[0] in ('export', 'hub', 'pick')])
def test_the_tools_have_the_options(tool, arguments):
    spec = spec_from_file_location(tool, osp.join(ROOT, f'tools/{tool}.py'))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.parse_args(shlex.split(arguments))


def test_the_snippet_runs_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, 'BUDGET', 0.0)
    snippet, = re.findall(r'```python\n(.*?)```', TEXT, re.S)
    config, checkpoint, options = fashion(tmp_path)
    for kind in ('onnx', 'torchscript'):
        export(config, checkpoint, 14, str(tmp_path / f'net.{kind}'), kind,
               cfg_options=options)
    pictures = torch.randint(0, 255, (3, 1, 14, 14)).float()
    monkeypatch.chdir(tmp_path)
    names = dict(pictures=pictures.numpy())
    exec(snippet, names)
    run = torch.jit.load('net.torchscript')
    want, = run((pictures - 72.94) / 90.02)
    torch.testing.assert_close(torch.from_numpy(names['logits']), want)
