"""What a trained network is worth, what it costs, and sizes more for it."""
from .adapt import adapt_checkpoint
from .calibrate import calibrate_checkpoint
from .evaluate import test_models, test_scales

__all__ = ['adapt_checkpoint', 'calibrate_checkpoint', 'test_models',
           'test_scales']
