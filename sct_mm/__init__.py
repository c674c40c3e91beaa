"""Scale Calibrated Training for OpenMMLab: train once, test at any scale."""
from .engine.checkpoint import AtomicLocalBackend, allow_checkpoint_types
from .datasets.multi_scale import MultiScaleBatch
from .engine.loops import ScalesTestLoop, ScalesValLoop
from .engine.run_hooks import ChannelsLastHook, EpochSeedHook
from .models.scale import set_scale, use_scale
from .engine.sct_hook import SCTLossHook
from .models.ssbn import SSBN, SyncSSBN, convert_to_ssbn, extract_scale

__version__ = '0.1.0'
__all__ = [
    'AtomicLocalBackend', 'ChannelsLastHook', 'EpochSeedHook',
    'MultiScaleBatch', 'SCTLossHook', 'SSBN', 'ScalesTestLoop',
    'ScalesValLoop', 'SyncSSBN', 'convert_to_ssbn', 'extract_scale',
    'set_scale', 'use_scale'
]

allow_checkpoint_types()
