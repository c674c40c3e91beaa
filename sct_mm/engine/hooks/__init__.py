"""Hooks of mmengine's Runner."""
from .channels_last_hook import ChannelsLastHook
from .epoch_seed_hook import EpochSeedHook
from .sct_loss_hook import SCTLossHook
from .shared_affine_hook import SharedAffineHook

__all__ = ['ChannelsLastHook', 'EpochSeedHook', 'SCTLossHook',
           'SharedAffineHook']
