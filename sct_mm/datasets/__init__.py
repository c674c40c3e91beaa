"""Images at another size: batches in training, pipelines in testing."""
from .multi_scale_batch import MultiScaleBatch

__all__ = ['MultiScaleBatch']
