"""What cannot be written is refused before an image is read."""
import os

import pytest
from exports import fashion

from sct_mm.apis import (
    adapt,
    calibrate,
    export,
    fidelity,
    pick,
    save_pretrained,
    test,
    test_cascade,
)
from sct_mm.apis.train import train
from sct_mm.utils.config import load_config
from sct_mm.utils.errors import UserError

pytest.importorskip('mmpretrain')
for function in (test, test_cascade):
    function.__test__ = False
STOCK = 'resnet18_1xb128_fashion-mnist-28px.py'
CONFIG = os.path.join('tools', 'benchmarks', 'experiments', 'configs', STOCK)
LONG = 'a' * 256


def trained(config, checkpoint, options, out):
    cfg = load_config(config, {'default_hooks.checkpoint.out_dir': out})
    cfg.work_dir = os.path.dirname(checkpoint)
    train(cfg)


TOOLS = {
    'adapt': lambda config, path, options, out: adapt(
        CONFIG, path, (28, 14), out=out),
    'calibrate': lambda config, path, options, out: calibrate(
        config, path, [14], out),
    'export': lambda config, path, options, out: export(
        config, path, 14, out, cfg_options=options),
    'export all': lambda config, path, options, out: export(
        config, path, 'all', out, cfg_options=options),
    'fidelity': lambda config, path, options, out: fidelity(
        config, path, out=out, cfg_options=options),
    'hub': lambda config, path, options, out: save_pretrained(
        config, path, out),
    'pick': lambda config, path, options, out: pick(
        path, max_gflops=1, out=out + '.png'),
    'test': lambda config, path, options, out: test(
        config, path, out=out, cfg_options=options),
    'cascade': lambda config, path, options, out: test_cascade(
        config, path, (14, 28), 0.5, out=out, cfg_options=options),
    'train': trained}


@pytest.mark.parametrize('tool', TOOLS)
def test_a_name_that_is_too_long(tool, small_root, tmp_path, monkeypatch):
    monkeypatch.chdir(small_root)
    config, checkpoint, options = fashion(tmp_path)
    before = set(os.listdir(tmp_path))
    with pytest.raises(UserError, match='must have a name of at most .*, but '
                       f"'{LONG}.* has .*. Name a shorter one"):
        TOOLS[tool](config, checkpoint, options, str(tmp_path / LONG))
    assert set(os.listdir(tmp_path)) == before
