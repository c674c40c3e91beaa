"""SSBN, and what converts, pins, extracts and re-estimates its networks."""
from .cascade import Cascade, Decided
from .convert import WithSSBN, convert_to_ssbn
from .extract import extract_scale
from .pinning import set_scale, use_scale
from .precise_bn import add_scale, calibrate
from .size_selection import scales_of, ssbn_layers
from .ssbn import SSBN, SSBN1d, SSBN3d, SyncSSBN

__all__ = [
    'Cascade', 'Decided', 'SSBN', 'SSBN1d', 'SSBN3d', 'SyncSSBN', 'WithSSBN',
    'add_scale', 'calibrate', 'convert_to_ssbn', 'extract_scale', 'scales_of',
    'set_scale', 'ssbn_layers', 'use_scale'
]
