"""Scale Calibrated Training for OpenMMLab: train once, test at any scale."""
from .engine.checkpoint import AtomicLocalBackend
from .datasets.multi_scale import MultiScaleBatch
from .engine.protection import allow_checkpoint_types
from .engine.run_hooks import ChannelsLastHook, EpochSeedHook
from .models.convert import WithSSBN, convert_to_ssbn, extract_scale
from .models.scale import set_scale, use_scale
from .models.ssbn import SSBN, SSBN1d, SSBN3d, SyncSSBN
from .engine.sct_hook import SCTLossHook

__version__ = '0.1.0'
__all__ = [
    'AtomicLocalBackend', 'ChannelsLastHook', 'EpochSeedHook',
    'MultiScaleBatch', 'SCTLossHook', 'SSBN', 'SSBN1d', 'SSBN3d', 'SyncSSBN',
    'WithSSBN', 'convert_to_ssbn', 'extract_scale', 'set_scale', 'use_scale'
]

allow_checkpoint_types()
