"""Scale Calibrated Training for OpenMMLab: train once, test at any scale."""
import itertools
import sys
from importlib.util import find_spec

__version__ = '0.1.0'
__all__ = [
    'AtomicLocalBackend', 'Cascade', 'ChannelsLastHook', 'EpochSeedHook',
    'MultiScaleBatch', 'SCTLossHook', 'SSBN', 'SSBN1d', 'SSBN3d',
    'ScalesTestLoop', 'ScalesValLoop', 'SharedAffineHook', 'SyncSSBN',
    'WithSSBN', 'add_scale', 'calibrate', 'convert_to_ssbn', 'extract_scale',
    'register_resizer', 'set_scale', 'unchanged', 'use_scale'
]

# Where a machine only runs exported files, by sct_mm.runtime, none of these is
# installed, and nothing else can be imported.
_RUNS_ONLY = find_spec('onnxruntime') is not None and not any(
    find_spec(name) for name in ('torch', 'mmengine', 'mmcv'))


def _refusal(cause: object) -> ImportError:
    return ImportError(
        f'sct_mm cannot be imported here ({cause}). Run `python -m '
        'sct_mm.doctor`: it names the command that fixes it. To run exported '
        "files alone, run pip install 'sct_mm[runtime]'.")


# Before `python -m sct_mm.doctor`, Python runs this file; the doctor must work
# where these imports fail.
if not _RUNS_ONLY and ('-m', 'sct_mm.doctor') not in itertools.pairwise(
        sys.orig_argv):
    try:
        from .utils.package import check_torch, introduce
        check_torch()
        from .datasets.multi_scale_batch import MultiScaleBatch
        from .datasets.sample_fields import register_resizer, unchanged
        from .engine.hooks.channels_last_hook import ChannelsLastHook
        from .engine.hooks.epoch_seed_hook import EpochSeedHook
        from .engine.hooks.sct_loss_hook import SCTLossHook
        from .engine.hooks.shared_affine_hook import SharedAffineHook
        from .engine.loops import ScalesTestLoop, ScalesValLoop
        from .models import (
            SSBN,
            Cascade,
            SSBN1d,
            SSBN3d,
            SyncSSBN,
            WithSSBN,
            add_scale,
            calibrate,
            convert_to_ssbn,
            extract_scale,
            set_scale,
            use_scale,
        )
        from .utils.checkpoint import AtomicLocalBackend
        from .utils.safe_load import allow_checkpoint_types
    except ImportError as error:
        raise _refusal(error) from error
    allow_checkpoint_types()
    introduce()


def __getattr__(name: str) -> object:
    """A name that was not imported."""
    if _RUNS_ONLY and name in __all__:
        raise _refusal("No module named 'torch'")
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
