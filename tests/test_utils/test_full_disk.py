"""A disk that is full while a run saves loses nothing."""
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import collate, samples, ssbn_model
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import LOOPS
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from torch.testing import assert_close

from sct_mm import EpochSeedHook, SCTLossHook
from sct_mm.engine.resume import newest_whole
from sct_mm.utils.checkpoint import WriteError


@LOOPS.register_module()
class BetterEachEpoch(BaseLoop):
    """A validation whose metric grows, so that each epoch is the best."""

    def __init__(self, runner, dataloader, evaluator):
        super().__init__(runner, dataloader)

    def run(self):
        self.runner.call_hook('before_val_epoch')
        self.runner.call_hook('after_val_epoch',
                              metrics=dict(accuracy=self.runner.epoch))


class Fills(Hook):
    """Calls ``fill`` in the second epoch, before it saves the checkpoint, or
    before it saves the best one."""
    priority = 'HIGHEST'

    def __init__(self, when, fill):
        self.when, self.fill = when, fill

    def after_train_epoch(self, runner):
        if runner.epoch == 1 and self.when == 'checkpoint':
            self.fill()

    def before_val_epoch(self, runner):
        if runner.epoch == 2 and self.when == 'best':
            self.fill()


def train(work_dir, *hooks, start=None):
    torch.manual_seed(0)
    runner = Runner(
        model=ssbn_model(), work_dir=str(work_dir),
        experiment_name=f'{work_dir}{len(hooks)}{start}',
        train_dataloader=dict(
            batch_size=4, dataset=samples(), collate_fn=collate,
            sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=dict(by_epoch=True, max_epochs=3),
        val_dataloader=dict(
            batch_size=4, dataset=samples(), collate_fn=collate,
            sampler=dict(type='DefaultSampler', shuffle=False)),
        val_cfg=dict(type='BetterEachEpoch'), val_evaluator=[],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        default_hooks=dict(logger=None, checkpoint=dict(
            type='CheckpointHook', interval=1, max_keep_ckpts=1,
            save_best='accuracy', rule='greater',
            backend_args=dict(backend='atomic_local'))),
        custom_hooks=[SCTLossHook(), EpochSeedHook(), EMAHook(), *hooks],
        randomness=dict(seed=7), resume=start is not None, load_from=start,
        log_level='ERROR')
    runner.train()


@pytest.fixture(params=['disk', 'limit'])
def full(request, tmp_path):
    """A folder, how to fill its disk, and how to make room: a small disk of
    its own where we may mount one, else the limit of a file's size."""
    folder = tmp_path / 'small'
    folder.mkdir()
    if request.param == 'disk':
        mounted = shutil.which('mount') and not subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', folder],
            capture_output=True).returncode
        if not mounted:
            pytest.skip('mounting a tmpfs needs root; the limit of a '
                        "file's size is tried instead")
        filler = folder / 'filler'

        def fill():
            with open(filler, 'wb', buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass

        yield folder, fill, lambda: filler.unlink(missing_ok=True)
        subprocess.run(['umount', '-l', folder], check=True)  # of an open log
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def free():
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield folder, lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (4096, before[1])), free
    free()


@pytest.mark.parametrize('when', ['checkpoint', 'best'])
def test_a_full_disk_loses_nothing(when, full, tmp_path):
    folder, fill, free = full
    work_dir = folder / 'run'
    with pytest.raises(WriteError, match='epoch_2.pth.*cannot be written'):
        try:
            train(work_dir, Fills(when, fill))
        finally:
            free()
    left = {p.name for p in work_dir.iterdir() if 'epoch' in p.name}
    assert left == {'best_accuracy_epoch_1.pth',
                    f'epoch_{1 if when == "checkpoint" else 2}.pth'}
    for name in left:
        assert torch.load(work_dir / name)['state_dict']
    start = newest_whole(Config(dict(work_dir=str(work_dir))))
    train(work_dir, start=start)
    train(tmp_path / 'whole')
    ours, theirs = (torch.load(Path(d) / 'epoch_3.pth')
                    for d in (work_dir, tmp_path / 'whole'))
    for key in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert_close(ours[key], theirs[key], rtol=0, atol=0)
    names = {p for p in os.listdir(work_dir) if 'epoch' in p}
    assert names == {'best_accuracy_epoch_3.pth', 'epoch_3.pth'}
