"""What a trained network is worth, and what it costs."""
from .calibrate import calibrate_checkpoint
from .evaluate import test_models, test_scales

__all__ = ['calibrate_checkpoint', 'test_models', 'test_scales']
