"""Images at another size: batches in training, pipelines in testing."""
from .multi_scale_batch import MultiScaleBatch
from .sample_fields import register_resizer, unchanged

__all__ = ['MultiScaleBatch', 'register_resizer', 'unchanged']
