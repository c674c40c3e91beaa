"""Build the Runner of a config, for a training or for a test alone."""
import copy
import itertools
from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

# {kind of run: its parts}, which mmengine's Runner takes all or not at all.
PARTS = dict(
    training=('train_dataloader', 'train_cfg', 'optim_wrapper'),
    validation=('val_dataloader', 'val_cfg', 'val_evaluator'),
    test=('test_dataloader', 'test_cfg', 'test_evaluator'))

RUNS = itertools.count()  # of this process, which counts alike on each rank


def lacking(cfg: Config, kind: str) -> list[str]:
    """The parts that ``cfg`` lacks of a ``kind`` of run, of which it has
    others."""
    missing = [name for name in PARTS[kind] if cfg.get(name) is None]
    return missing if len(missing) < len(PARTS[kind]) else []


def built_runner(cfg: Config) -> Any:
    """The runner of ``cfg``: of its ``runner_type``, or mmengine's.

    mmengine refuses a config that has some of the parts of a training, a
    validation or a test, but not all, whatever is to be run. Here they are
    left out; ``runner.cfg`` and the file that the runner writes of it have
    them, since they tell the sizes of a network.

    mmengine knows what logs a run by its name, which is that of the second in
    which it begins, or in mmdet always the same. A later run of a process
    would write into the files of an earlier one: it gets a name of its own.
    """
    names = [name for kind, parts in PARTS.items() if lacking(cfg, kind)
             for name in parts]
    if 'optim_wrapper' in names or cfg.get('optim_wrapper') is None:
        names.append('param_scheduler')  # which needs it
    part = copy.deepcopy(cfg)
    part.update(dict.fromkeys(names))
    if run := next(RUNS):
        part.experiment_name = f'{cfg.get("experiment_name") or "run"}-{run}'
        if isinstance(part.get('visualizer'), dict) and (
                name := part.visualizer.get('name')):
            part.visualizer.name = f'{name}-{run}'
    runner = (RUNNERS.build(part) if 'runner_type' in cfg
              else Runner.from_cfg(part))
    if kept := {name: cfg[name] for name in names if name in cfg}:
        runner.cfg.update(kept)
        runner.dump_config()  # over the one without them
    return runner
