"""What a trained network is worth, what it costs, and sizes more for it."""
from .adapt import adapt_checkpoint
from .calibrate import calibrate_checkpoint
from .cascade import test_cascade
from .demo import show_sizes
from .evaluate import test_models, test_scales

__all__ = ['adapt_checkpoint', 'calibrate_checkpoint', 'show_sizes',
           'test_cascade', 'test_models', 'test_scales']
