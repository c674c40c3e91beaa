"""What a trained network is worth, and what it costs."""
from .evaluate import test_models, test_scales

__all__ = ['test_models', 'test_scales']
