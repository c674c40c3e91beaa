"""Scale Calibrated Training for OpenMMLab: train once, test at any scale."""
import sys

__version__ = '0.1.0'
__all__ = [
    'AtomicLocalBackend', 'Cascade', 'ChannelsLastHook', 'EpochSeedHook',
    'MultiScaleBatch', 'SCTLossHook', 'SSBN', 'SSBN1d', 'SSBN3d',
    'ScalesTestLoop', 'ScalesValLoop', 'SharedAffineHook', 'SyncSSBN',
    'WithSSBN', 'add_scale', 'calibrate', 'convert_to_ssbn', 'extract_scale',
    'set_scale', 'use_scale'
]

# The doctor, of which Python runs this file first, works where these do not.
if ('-m', 'sct_mm.doctor') not in zip(sys.orig_argv, sys.orig_argv[1:]):
    try:
        from .datasets.multi_scale import MultiScaleBatch
        from .engine.cascade import Cascade
        from .engine.checkpoint import AtomicLocalBackend
        from .engine.loops import ScalesTestLoop, ScalesValLoop
        from .engine.package import introduce
        from .engine.protection import allow_checkpoint_types
        from .engine.run_hooks import (ChannelsLastHook, EpochSeedHook,
                                       SharedAffineHook)
        from .engine.sct_hook import SCTLossHook
        from .models.calibrate import add_scale, calibrate
        from .models.convert import WithSSBN, convert_to_ssbn, extract_scale
        from .models.pin import set_scale, use_scale
        from .models.ssbn import SSBN, SSBN1d, SSBN3d, SyncSSBN
    except ImportError as error:
        raise ImportError(
            f'sct_mm cannot be imported here ({error}). Run `python -m '
            'sct_mm.doctor`: it names the command that mends it.') from error
    allow_checkpoint_types()
    introduce()
