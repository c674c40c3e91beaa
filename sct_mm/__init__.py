"""Scale Calibrated Training for OpenMMLab: train once, test at any scale."""
from .checkpoint import AtomicLocalBackend, allow_checkpoint_types
from .multi_scale import MultiScaleBatch
from .run_hooks import ChannelsLastHook, EpochSeedHook
from .scale import set_scale, use_scale
from .sct_hook import SCTLossHook
from .ssbn import SSBN, SyncSSBN, convert_to_ssbn, extract_scale

__version__ = '0.1.0'
__all__ = [
    'AtomicLocalBackend', 'ChannelsLastHook', 'EpochSeedHook',
    'MultiScaleBatch', 'SCTLossHook', 'SSBN', 'SyncSSBN', 'convert_to_ssbn',
    'extract_scale', 'set_scale', 'use_scale'
]

allow_checkpoint_types()
