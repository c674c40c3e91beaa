"""save_pretrained() and from_pretrained(): the network is whole, and no code
of a folder runs."""
import json
import os
import os.path as osp
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from exports import built, fashion
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from sct_mm import use_scale
from sct_mm.apis import from_pretrained, hub, save_pretrained
from sct_mm.apis.hub import packed, unpacked
from sct_mm.engine.load_model import loaded_model
from sct_mm.models.size_selection import scales_of
from sct_mm.utils.checkpoint import check_checkpoint
from sct_mm.utils.config import load_config
from sct_mm.utils.errors import UserError
from sct_mm.utils.safe_load import registered_only

DETECTOR = 'configs/sct_retinanet_r18_fpn_1xb8_fashion-det.py'


@pytest.fixture
def saved(tmp_path):
    """A folder, and the config and checkpoint that it was made from."""
    config, checkpoint, _ = fashion(tmp_path)
    folder = tmp_path / 'folder'
    save_pretrained(Path(config), Path(checkpoint), folder)
    return folder, config, checkpoint


def test_a_folder_is_the_network_without_its_config(
        saved, tmp_path, monkeypatch):
    folder, config, checkpoint = saved
    want_cfg = load_config(config)
    want = loaded_model(want_cfg, check_checkpoint(checkpoint), checkpoint)
    document = json.loads((folder / 'config.json').read_text())
    assert document['scales'] == [28, 21, 14]
    assert document['library_name'] == 'sct_mm'
    assert ROOT not in str(document)
    monkeypatch.setattr(Config, 'fromfile', None)  # there is no other config
    monkeypatch.chdir(tmp_path)
    got = from_pretrained(Path('folder'))
    assert not got.training and scales_of(got) == (28, 21, 14)
    assert got.cfg.to_dict() == want_cfg.to_dict()
    assert list(got.dataset_meta['classes']) == list('abcdefghij')
    for size in (28, 21, 14):
        images = torch.randn(2, 1, size, size)
        with torch.no_grad(), use_scale(want, size):
            logits = want(images)
        with torch.no_grad(), use_scale(got, size):
            assert torch.equal(got(images), logits)


def test_the_inferencer_of_mmpretrain_takes_it(saved):
    from mmpretrain import ImageClassificationInferencer
    infer = ImageClassificationInferencer(from_pretrained(str(saved[0])))
    image = np.zeros((28, 28), np.uint8)
    found, = infer(image)
    assert found['pred_class'] in 'abcdefghij'


def test_a_detector(tmp_path, monkeypatch):
    config = osp.join(ROOT, DETECTOR)
    model = built(Config.fromfile(config).model, 'mmdet')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'd.pth')
    save_pretrained(config, str(tmp_path / 'd.pth'), str(tmp_path / 'd'))
    got = from_pretrained(str(tmp_path / 'd'))
    images = torch.randn(1, 1, 96, 96)
    with torch.no_grad(), use_scale(got, 96), use_scale(model, 96):
        for mine, theirs in zip(got(images), model(images), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_the_tool(tmp_path, run_tool):
    config, checkpoint, _ = fashion(tmp_path)
    code, output = run_tool('hub.py', config, checkpoint, '--out',
                          tmp_path / 'f')
    assert code == 0, output
    assert '(28, 21, 14) is in' in output
    assert sorted(os.listdir(tmp_path / 'f')) == [
        'config.json', 'model.safetensors']


def test_tuples_and_numbers_stay():
    value = dict(a=(1, [2.5, (None, True)], 'x'), b={}, c=(),
                 d=float('inf'))
    assert unpacked(json.loads(json.dumps(packed(value)))) == value
    with pytest.raises(UserError, match=r'the config\.a\[1\] is <function'):
        packed(dict(a=[0, pytest.fixture]))
    with pytest.raises(UserError, match='the config.a is {0: 1}'):
        packed(dict(a={0: 1}))


def test_files_that_exist_stay_unless_forced(saved):
    folder, config, checkpoint = saved
    before = (folder / 'config.json').read_bytes()
    with pytest.raises(UserError, match='exists already'):
        save_pretrained(config, checkpoint, str(folder))
    save_pretrained(config, checkpoint, str(folder), force=True)
    assert (folder / 'config.json').read_bytes() == before


def test_a_folder_that_is_damaged_is_refused(saved):
    folder = saved[0]
    data = bytearray((folder / 'model.safetensors').read_bytes())
    data[-1] ^= 1
    (folder / 'model.safetensors').write_bytes(data)
    with pytest.raises(UserError, match='its SHA-256 differs'):
        from_pretrained(str(folder))
    (folder / 'model.safetensors').unlink()
    with pytest.raises(UserError, match='there is no such file'):
        from_pretrained(str(folder))


@pytest.mark.parametrize('text, message', [
    (None, 'cannot be read'), ('{', 'cannot be read'),
    ('[]', 'another kind or version'), ('{"version": 9}', 'another kind'),
    ('{"version": 1, "library_name": "sct_mm", "config": {}, "sha256": "",'
     '"default_scope": null, "dataset_meta": {}}', 'another kind'),
    *((f'{{"version": 1, "library_name": "sct_mm", "config": {{"model": '
       f'{model}}}, "sha256": "", "default_scope": null, "dataset_meta": '
       f'{meta}}}', 'is damaged') for model, meta in (
           ('{"type": 1, "scales": {"__tuple__": 5}}', '{}'), ('{}', '{}'),
           ('{"type": "A"}', '"x"'), ('{"__tuple__": []}', '{}')))])
def test_another_config_json_is_refused(saved, text, message):
    path = saved[0] / 'config.json'
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message):
        from_pretrained(str(saved[0]))


@pytest.mark.parametrize('kind', [
    'subprocess.call', 'os.system', 'mmengine.utils.call_command', 'this'])
def test_a_config_runs_no_code(saved, tmp_path, kind):
    path = saved[0] / 'config.json'
    document = json.loads(path.read_text())
    document['config']['model']['neck'] = dict(
        type=kind, args=f'touch {tmp_path}/ran', shell=True)
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=f"registered, but got '{kind}'"):
        from_pretrained(str(saved[0]))
    assert not (tmp_path / 'ran').exists()


def test_paths_of_what_is_registered_build():
    """Configs with `read_base` name their classes by such paths."""
    with registered_only(), DefaultScope.overwrite_default_scope('mmengine'):
        same = MODELS.build(dict(type='torch.nn.modules.linear.Identity'))
        norm = MODELS.build(dict(type='sct_mm.models.ssbn.SSBN',
                                 num_features=2))
    assert isinstance(same, nn.Identity) and norm.num_features == 2


def test_a_hub_is_asked_for_the_two_files(saved, monkeypatch):
    huggingface_hub = pytest.importorskip('huggingface_hub')
    asked = []

    def download(source, revision, allow_patterns):
        asked.append((source, revision, allow_patterns))
        if source == 'no/where':
            raise OSError('no such thing')
        return str(saved[0])

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    assert scales_of(from_pretrained('some/one', revision='v1'))
    assert asked == [('some/one', 'v1', ['config.json', 'model.safetensors'])]
    with pytest.raises(UserError, match=r"'no/where' \(no such thing\)"):
        from_pretrained('no/where')
    monkeypatch.setattr(hub, 'find_spec',
                        lambda name: name != 'huggingface_hub')
    with pytest.raises(UserError, match='pip install huggingface_hub'):
        from_pretrained('some/one')
