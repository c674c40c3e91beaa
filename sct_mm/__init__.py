"""Scale Calibrated Training for OpenMMLab: train once, test at any scale."""
import itertools
import sys

__version__ = '0.1.0'
__all__ = [
    'AtomicLocalBackend', 'Cascade', 'ChannelsLastHook', 'EpochSeedHook',
    'MultiScaleBatch', 'SCTLossHook', 'SSBN', 'SSBN1d', 'SSBN3d',
    'ScalesTestLoop', 'ScalesValLoop', 'SharedAffineHook', 'SyncSSBN',
    'WithSSBN', 'add_scale', 'calibrate', 'convert_to_ssbn', 'extract_scale',
    'register_resizer', 'set_scale', 'unchanged', 'use_scale'
]

# Before `python -m sct_mm.doctor`, Python runs this file; the doctor must work
# where these imports fail.
if ('-m', 'sct_mm.doctor') not in itertools.pairwise(sys.orig_argv):
    try:
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
        from .utils.package import introduce
        from .utils.safe_load import allow_checkpoint_types
    except ImportError as error:
        raise ImportError(
            f'sct_mm cannot be imported here ({error}). Run `python -m '
            'sct_mm.doctor`: it names the command that fixes it.') from error
    allow_checkpoint_types()
    introduce()
