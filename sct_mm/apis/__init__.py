"""What a trained network is worth, what it costs, and sizes more for it."""
from .adapt import adapt_checkpoint
from .calibrate import calibrate_checkpoint
from .test import test_models, test_scales
from .test_cascade import test_cascade

__all__ = ['adapt_checkpoint', 'calibrate_checkpoint', 'test_cascade',
           'test_models', 'test_scales']
