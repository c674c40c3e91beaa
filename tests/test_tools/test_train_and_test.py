"""The tools as a user runs them, on images made here."""
import json
import os
import os.path as osp
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT, meeting_place, one_of_two, two_processes

SCT = 'configs/sct_resnet18_1xb128_fashion-mnist.py'
PLAIN = ('tools/benchmarks/experiments/configs/'
         'resnet18_1xb128_fashion-mnist-21px.py')


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(
        array.shape, '>i4').tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture(scope='module')
def options(tmp_path_factory):
    """--cfg-options for a data set of 24 images in Fashion-MNIST's form."""
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    for split in ('train', 't10k'):
        labels = rng.integers(0, 10, 24)
        images = rng.integers(0, 99, (24, 28, 28)) + labels[:, None, None]
        write_idx(root / f'{split}-images-idx3-ubyte', images)
        write_idx(root / f'{split}-labels-idx1-ubyte', labels)
    loaders = [f'{name}_dataloader' for name in ('train', 'val', 'test')]
    return ['--cfg-options', 'train_cfg.max_epochs=2',
            'train_dataloader.batch_size=8', 'model.backbone.depth=18',
            *(f'{name}.dataset.data_root={root}' for name in loaders)]


@pytest.fixture(scope='module')
def trained(tmp_path_factory, options, start_tool, run_tool):
    """Work directories of a short SCT run and a plain run."""
    folders = {}
    for config, run in ((SCT, start_tool), (PLAIN, run_tool)):
        folders[config] = tmp_path_factory.mktemp('run')
        code, output = run('train.py', config, '--work-dir', folders[config],
                           '--no-validate', *options)
        assert code == 0, output
    return folders


def test_test_prints_one_table_and_writes_json_and_a_plot(
        trained, options, start_tool, tmp_path):
    checkpoint = trained[SCT] / 'epoch_2.pth'
    code, output = start_tool(
        'test.py', SCT, checkpoint, '--scales', '28:14:14', 18, '--compare',
        PLAIN, trained[PLAIN] / 'epoch_2.pth', '--out', tmp_path, *options)
    assert code == 0, output
    result = json.loads((tmp_path / 'scales.json').read_text())
    ours, plain = result['models']
    assert [r['scale'] for r in ours['rows']] == [28, 18, 14]
    assert [r['served_by'] for r in ours['rows']] == [[28], [21, 14], [14]]
    assert [r['served_by'] for r in plain['rows']] == [None] * 3
    for row in ours['rows'] + plain['rows']:
        assert set(row['metrics']) == {'accuracy/top1', 'accuracy/top5'}
        assert row['latency_ms'] > 0 and row['images_per_s'] > 0
    gflops = [r['gflops'] for r in ours['rows']]
    assert gflops[0] > 3 * gflops[2] > 0
    assert (ours['trained'], plain['trained']) == ([28, 21, 14], [21])
    for text in ('18 pixels lie between the scales 21 and 14, whose rows are '
                 'mixed.', '18 pixels are no multiple of the stride 8 of'):
        assert output.count(text) == 1
    assert re.search(r'│ +18 │ +21\+14 │.* [0-9.]+ \([0-9.]+-[0-9.]+\)',
                     output)
    with open(tmp_path / 'scales.png', 'rb') as f:
        assert f.read(4) == b'\x89PNG'


def test_scales_default_to_the_trained_ones(
        trained, options, run_tool, tmp_path):
    code, output = run_tool('test.py', SCT, trained[SCT], '--out', tmp_path,
                            *options)
    assert code == 0, output
    assert re.search(r'Using .*epoch_2\.pth', output)
    rows = json.loads((tmp_path / 'scales.json').read_text())
    assert [r['scale'] for r in rows['models'][0]['rows']] == [28, 21, 14]


def test_training_validates_at_each_scale(options, run_tool, tmp_path):
    code, output = run_tool(
        'train.py', SCT, '--work-dir', tmp_path, *options,
        'train_cfg.val_interval=1',
        'default_hooks.checkpoint.save_best=mean/accuracy/top1')
    assert code == 0, output
    for size in (28, 21, 14, 'mean'):
        assert output.count(f'{size}/accuracy/top1: ') >= 2
    assert list(tmp_path.glob('best_mean_accuracy_top1_epoch_?.pth'))


def test_train_resumes_and_ends_at_once_when_done(
        trained, options, run_tool, tmp_path):
    shutil.copytree(trained[SCT], tmp_path, dirs_exist_ok=True)
    (tmp_path / 'epoch_2.pth').unlink()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    code, output = run_tool('train.py', SCT, '--work-dir', tmp_path,
                            '--resume', '--no-validate', *options)
    assert code == 0, output
    import torch

    import sct_mm  # noqa: F401
    whole, parts = (torch.load(folder / 'epoch_2.pth')['state_dict']
                    for folder in (trained[SCT], tmp_path))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@two_processes
def test_two_processes_of_torchrun_train_and_test(options, run_tool,
                                                  tmp_path):
    """As a user starts them; the tables of both are one table."""
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc-per-node', '2', 'tools/train.py', SCT, '--work-dir',
         tmp_path, '--no-validate', '--launcher', 'pytorch', *options],
        cwd=ROOT, env={**os.environ, 'PYTHONPATH': ROOT,
                       'OMP_NUM_THREADS': '1'},
        capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    store = meeting_place()

    def test(rank):
        return run_tool('test.py', SCT, tmp_path / 'epoch_2.pth', '--scales',
                        28, '--out', tmp_path, '--launcher', 'pytorch',
                        *options, **one_of_two(rank, store.port))

    with ThreadPoolExecutor(2) as pool:
        codes, outputs = zip(*pool.map(test, range(2)), strict=True)
    assert codes == (0, 0), outputs
    assert [output.count('served') for output in outputs] == [1, 0]


def test_inferencer_chooses_the_scale(trained, options, tmp_path):
    """mmpretrain's own inferencer, with no code of ours but the import."""
    import torch
    from mmengine.config import Config
    from mmpretrain import ImageClassificationInferencer

    from sct_mm import use_scale
    from sct_mm.datasets.rescale_pipeline import rescale_pipeline
    cfg = Config.fromfile(osp.join(ROOT, SCT))
    image = np.random.default_rng(1).integers(0, 255, (28, 28), np.uint8)
    for scale in (14, 28):
        loader = cfg.test_dataloader.dataset
        loader.pipeline = rescale_pipeline(loader.pipeline, scale)
        inferencer = ImageClassificationInferencer(
            cfg, str(trained[SCT] / 'epoch_2.pth'), device='cpu')
        scores = inferencer(image)[0]['pred_scores']
        with use_scale(inferencer.model, scale):
            want = inferencer(image)[0]['pred_scores']
        with use_scale(inferencer.model, 21):
            other = inferencer(image)[0]['pred_scores']
        torch.testing.assert_close(torch.tensor(scores), torch.tensor(want))
        assert not np.allclose(scores, other)


@pytest.mark.parametrize('tool, arguments, match', [
    ('train.py', ['no.py'], "must be a file, but got 'no.py'"),
    ('test.py', [SCT, 'no.pth'], "must be a file, but got 'no.pth'"),
    ('test.py', [SCT, 'README.md'], "'README.md' cannot be read"),
    ('train.py', ['configs/sct_resnet18_8xb32_in1k.py', '--cfg-options',
                  'train_dataloader.dataset.data_root=nowhere'],
     f"must be at '{ROOT}/nowhere', but there is no such folder"),
    ('train.py', ['configs/sct_resnet18_8xb32_in1k.py', '--cfg-options',
                  'train_dataloader.dataset.data_root=tests',
                  'train_dataloader.dataset.ann_file=a.txt'],
     f"annotations of the data set must be at '{ROOT}/tests/a.txt'"),
    ('test.py', [SCT, 'README.md', '--scales', '0'], 'must be positive'),
    ('test.py', [SCT, 'README.md', '--scales', '28', '14:21:0'],
     "must have ranges with a step of at least 1, but got '14:21:0'"),
])
def test_bad_input_is_one_sentence(tool, arguments, match, run_tool):
    code, output = run_tool(tool, *arguments)
    assert code == 2 and match in output
    assert 'Traceback' not in output


@pytest.mark.parametrize('tool, arguments', [
    ('adapt.py', ['no.py', 'no.pth', '--scales', 28, 14]),
    ('calibrate.py', ['no.py', 'no.pth', '--sizes', 14, '--out', 'no.out']),
    ('export.py', ['no.py', 'no.pth', '--size', 14, '--format', 'pth',
                   '--out', 'no.out']),
    ('hub.py', ['no.py', 'no.pth', '--out', 'no.out']),
    ('pick.py', ['no.py', '--max-latency', '5ms']),
])
def test_each_tool_imports_what_it_needs(tool, arguments, start_tool):
    code, output = start_tool(tool, *arguments)
    assert code == 2 and "'no.py'" in output
    assert 'Traceback' not in output


def with_test_pipeline(folder, transforms):
    path = folder / 'config.py'
    path.write_text(f'_base_ = {osp.join(ROOT, SCT)!r}\n'
                    'test_dataloader = dict(dataset=dict(pipeline='
                    f'{[*transforms, dict(type="PackInputs")]}))\n')
    return path


def test_pipeline_without_a_resize(trained, options, run_tool, tmp_path):
    code, output = run_tool(
        'test.py', with_test_pipeline(tmp_path, []),
        trained[SCT] / 'epoch_2.pth', '--scales', 14, *options)
    assert code == 2 and 'must have one of' in output
    assert 'Traceback' not in output


def test_a_data_set_without_a_pipeline(trained, run_tool, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(f'_base_ = {osp.join(ROOT, SCT)!r}\n'
                    'test_dataloader = dict(dataset=dict(_delete_=True, '
                    "type='ConcatDataset', datasets=[]))\n")
    code, output = run_tool('test.py', path, trained[SCT] / 'epoch_2.pth')
    assert code == 2 and 'but got ConcatDataset' in output
    assert 'Traceback' not in output


@pytest.mark.parametrize('names, match', [
    (lambda name: name,
     r'size mismatch for backbone.bn1.weight: .*\[48\].*\[16\]'),
    (lambda name: f'encoder.{name}', 'conv1.weight of shape .* is missing')])
def test_checkpoint_of_another_model(names, match, trained, options, run_tool,
                                     tmp_path):
    import torch
    state = torch.load(trained[SCT] / 'epoch_2.pth')['state_dict']
    torch.save({names(name): value for name, value in state.items()},
               tmp_path / 'a.pth')
    code, output = run_tool('test.py', PLAIN, tmp_path / 'a.pth', *options)
    assert code == 2 and 'does not fit the config' in output
    assert re.search(match, output)
    assert 'Traceback' not in output


def test_a_transform_that_sets_another_size(
        trained, options, run_tool, tmp_path):
    config = with_test_pipeline(tmp_path, [
        dict(type='Resize', scale=28),
        dict(type='RandomCrop', crop_size=28, pad_if_needed=True)])
    code, output = run_tool(
        'test.py', config, trained[SCT] / 'epoch_2.pth', '--scales', 14,
        '--out', tmp_path, *options)
    assert code == 2 and 'edge of 14, but the pipeline makes 28' in output


def test_empty_checkpoint_file(run_tool, tmp_path):
    (tmp_path / 'a.pth').touch()
    code, output = run_tool('test.py', SCT, tmp_path / 'a.pth')
    assert code == 2 and 'cannot be read' in output
    assert 'Traceback' not in output


def test_scales_larger_than_the_images(options, run_tool, tmp_path):
    code, output = run_tool(
        'train.py', SCT, '--work-dir', tmp_path, *options,
        'model.backbone.norm_cfg.scales=(32, 14)',
        'custom_hooks.2.loss_weights=None')
    assert code == 2 and 'scale 32 and images of 28 pixels' in output
    assert 'Traceback' not in output


@pytest.mark.parametrize('scales, match', [
    ('(28, 28)', 'distinct positive ints, but got (28, 28)'),
    ('(28, 21.5)', 'must be a tuple of ints'),
    ('(28, 14)', 'one finite number >= 0 per scale of (28, 14)')])
def test_what_the_parts_refuse_is_one_sentence(scales, match, options,
                                               run_tool, tmp_path):
    code, output = run_tool('train.py', SCT, '--work-dir', tmp_path, *options,
                            f'model.backbone.norm_cfg.scales={scales}')
    assert code == 2 and match in output
    assert 'Traceback' not in output and not list(tmp_path.rglob('*.pth'))


def merged(*arguments):
    """The config that tools/train.py trains with these arguments."""
    from importlib.util import module_from_spec, spec_from_file_location

    from sct_mm.utils.config import load_config
    spec = spec_from_file_location('train', osp.join(ROOT, 'tools/train.py'))
    train = module_from_spec(spec)
    spec.loader.exec_module(train)
    args = train.parse_args([osp.join(ROOT, arguments[0]), *arguments[1:]])
    return train.merge_args(load_config(args.config, args.cfg_options), args)


def test_checkpoints_may_be_off_or_elsewhere():
    assert merged(SCT, '--cfg-options', 'default_hooks.checkpoint=None'
                  ).default_hooks.checkpoint is None
    hook = 'default_hooks.checkpoint'
    cfg = merged(SCT, '--cfg-options', f'{hook}.out_dir=s3://bucket')
    assert 'backend_args' not in cfg.default_hooks.checkpoint
    cfg = merged(SCT)
    assert cfg.default_hooks.checkpoint.backend_args.backend == 'atomic_local'


def test_an_error_of_a_host_keeps_its_traceback(options, run_tool, tmp_path):
    code, output = run_tool('train.py', SCT, '--work-dir', tmp_path, *options,
                            'model.head.in_channels=7')
    assert code == 1 and 'Traceback' in output and 'shapes' in output


def test_what_a_host_refuses_to_build_is_one_sentence(options, run_tool,
                                                      tmp_path):
    code, output = run_tool('train.py', SCT, '--work-dir', tmp_path, *options,
                            'optim_wrapper.optimizer.lr=-1')
    assert code == 2 and 'Traceback' not in output
    assert 'cannot be built (Invalid learning rate: -1). Fix it' in output
