"""Kill a training again and again, and compare its end with an unbroken run.

    python tests/survive_kills.py --kills 30

trains a small SCT config on the CPU by tools/train.py, with data workers, an
average of the weights, momentum, validation, the best checkpoint, and a
checkpoint per epoch, of which the last two are kept. Its process group is
killed (SIGKILL) at random moments, most of them while it trains or writes a
checkpoint, and resumed by --resume, until it has been killed 30 times and has
ended. After each kill every named checkpoint must be whole, and the newest no
older than before. The weights, their average, the state of the optimizer and
of the schedules must equal those of an unbroken run, to the bit. The exit code
is 1 if anything differs.
"""
import argparse
import contextlib
import os
import os.path as osp
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

import sct_mm  # noqa: F401  (allows the types of checkpoints)

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
LIMIT = 3600  # seconds for a run
CONFIG = '''
_base_ = {base!r}
model = dict(backbone=dict(
    stem_channels=8, base_channels=8,
    norm_cfg=dict(type='SSBN', scales=(28, 21, 14))),
    head=dict(in_channels=64))
train_dataloader = dict(batch_size=16, num_workers=1,
                        dataset=dict(data_root={data!r}))
val_dataloader = dict(batch_size=32, dataset=dict(data_root={data!r}))
test_dataloader = dict(dataset=dict(data_root={data!r}))
optim_wrapper = dict(optimizer=dict(
    _delete_=True, type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4))
param_scheduler = [dict(type='OneCycleLR', eta_max=0.05, by_epoch=True,
                        total_steps={epochs}, convert_to_iter_based=True)]
train_cfg = dict(max_epochs={epochs}, val_interval=2)
custom_hooks = [dict(type='EpochSeedHook'),
                dict(type='SCTLossHook', scales_per_step=2),
                dict(type='EMAHook', momentum=0.1)]
default_hooks = dict(checkpoint=dict(
    type='CheckpointHook', interval=1, max_keep_ckpts=2, save_best='auto'))
'''


def write_data(folder: Path, images: int = 64) -> None:
    """A data set in Fashion-MNIST's form, made here."""
    rng = np.random.default_rng(0)
    for split in ('train', 't10k'):
        labels = rng.integers(0, 10, images)
        pixels = rng.integers(0, 99, (images, 28, 28))
        pixels += labels[:, None, None]
        for name, array in (('images-idx3', pixels), ('labels-idx1', labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(
                array.shape, '>i4').tobytes()
            (folder / f'{split}-{name}-ubyte').write_bytes(
                header + array.astype(np.uint8).tobytes())


def start(config: Path, folder: Path) -> subprocess.Popen:
    """tools/train.py, in a process group of its own."""
    folder.mkdir(exist_ok=True)
    with open(folder / 'output.txt', 'a') as output:
        return subprocess.Popen(
            [sys.executable, osp.join(ROOT, 'tools', 'train.py'), str(config),
             '--work-dir', str(folder), '--resume'], cwd=ROOT, stdout=output,
            stderr=output, start_new_session=True,
            env={**os.environ, 'PYTHONPATH': ROOT, 'OMP_NUM_THREADS': '1',
                 'CUDA_VISIBLE_DEVICES': ''})


def whole(path: Path) -> bool:
    """Whether a checkpoint is whole, judged without the package's code."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        return damaged is None and 'optimizer' in torch.load(
            path, weights_only=True)
    except Exception:
        return False


def number(path: Path) -> int:
    return int(path.stem.rpartition('_')[2])


def newest_in(folder: Path) -> int:
    """The epoch of the newest checkpoint, by its name."""
    return max(map(number, folder.glob('epoch_*.pth')), default=0)


def partial_files(folder: Path) -> set:
    """Those on the disk, with their times; an older kill may have left one."""
    found = set()
    for path in folder.glob('*.partial'):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


class Moment:
    """When to kill one life of the run, drawn from ``rng``."""

    def __init__(self, rng: random.Random) -> None:
        self.kind = rng.choices(('saving', 'training', 'starting'),
                                (6, 3, 1))[0]
        self.saves = rng.choice((1, 1, 2, 3))  # at which partial file
        self.delay = rng.uniform(0, {'saving': 0.003, 'training': 1.5,
                                     'starting': 4}[self.kind])
        self.names: set = set()

    def wait(self, process: subprocess.Popen, folder: Path) -> bool:
        """Wait for the moment, or for three more checkpoints, which come first
        on a fast machine; False if the run has ended before."""
        seen, skip = 0, (folder / 'output.txt').stat().st_size
        before = newest_in(folder)
        while self.kind != 'starting' and process.poll() is None:
            if self.kind == 'saving':
                names = {p.name for p in folder.glob('*.partial')}
                fresh = bool(names) and not self.names
                self.names = names
                seen += fresh
                if seen >= self.saves:
                    break
                time.sleep(0.0003)
            else:
                with open(folder / 'output.txt', 'rb') as file:
                    file.seek(skip)
                    if b'Checkpoints will be saved' in file.read():
                        break
                time.sleep(0.02)
        end = time.monotonic() + self.delay
        while time.monotonic() < end and newest_in(folder) < before + 3:
            time.sleep(0.0003)
        return process.poll() is None


def disturb(config: Path, folder: Path, kills: int,
            rng: random.Random) -> dict:
    """Kill and resume the run until it has ended; return the counts."""
    counts = dict(kills=0, while_saving=0, resumes=0, damaged=0, lost=0)
    newest = 0
    while True:
        process = start(config, folder)
        counts['resumes'] += newest > 0
        if counts['kills'] >= kills:
            if process.wait(LIMIT):
                raise SystemExit((folder / 'output.txt').read_text()[-3000:])
            return counts
        moment = Moment(rng)
        before = partial_files(folder)
        if not moment.wait(process, folder):
            code = process.wait()
            raise SystemExit(
                f'The run has ended with code {code} after {counts["kills"]} '
                f'kills. {(folder / "output.txt").read_text()[-3000:]}')
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        counts['kills'] += 1
        counts['while_saving'] += bool(partial_files(folder) - before)
        named = [p for p in folder.glob('epoch_*.pth')]
        good = [number(p) for p in named if whole(p)]
        counts['damaged'] += len(named) - len(good)
        counts['lost'] += max(good, default=0) < newest
        newest = max(good, default=0)
        print(f'kill {counts["kills"]:3d} while {moment.kind:8s}: the newest '
              f'whole checkpoint is of epoch {newest}', flush=True)


def differences(ours, theirs, name: str = '') -> list:
    """The names of the values that are not equal to the bit."""
    if isinstance(ours, dict):
        keys = ours.keys() ^ theirs.keys()
        return [f'{name}.{key}' for key in keys] + [
            d for key in ours.keys() - keys
            for d in differences(ours[key], theirs[key], f'{name}.{key}')]
    if isinstance(ours, (list, tuple)) and len(ours) == len(theirs):
        return [d for i, pair in enumerate(zip(ours, theirs, strict=True))
                for d in differences(*pair, f'{name}.{i}')]
    same = (torch.equal(ours, theirs) if isinstance(ours, torch.Tensor)
            else ours == theirs)
    return [] if same else [name]


def survive(kills: int, seed: int, folder: Path) -> list:
    """Run both, and print the counts; return the names of what differs."""
    epochs = 4 * kills + 4  # no life between two kills lasts more than four
    (folder / 'data').mkdir()
    write_data(folder / 'data')
    config = folder / 'config.py'
    config.write_text(CONFIG.format(
        base=osp.join(ROOT, 'configs/_base_/fashion-mnist.py'),
        data=str(folder / 'data'), epochs=epochs))
    if start(config, folder / 'whole').wait(LIMIT):
        raise SystemExit((folder / 'whole/output.txt').read_text()[-3000:])
    print(f'The undisturbed run has ended: {epochs} epochs.', flush=True)
    counts = disturb(config, folder / 'killed', kills, random.Random(seed))
    ends = [torch.load(folder / name / f'epoch_{epochs}.pth',
                       weights_only=True) for name in ('whole', 'killed')]
    wrong = [d for key in ('state_dict', 'ema_state_dict', 'optimizer',
                           'param_schedulers')
             for d in differences(ends[0][key], ends[1][key], key)]
    print(f'{counts["kills"]} kills, {counts["while_saving"]} of them with a '
          f'partial file on the disk; {counts["resumes"]} resumes; '
          f'{counts["damaged"]} damaged checkpoints, {counts["lost"]} lost; '
          f'{len(wrong)} tensors or values differ.', flush=True)
    return wrong + ['checkpoints'] * (counts['damaged'] + counts['lost'])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=30)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(bool(survive(args.kills, args.seed, Path(folder))))


if __name__ == '__main__':
    main()
