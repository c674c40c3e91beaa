"""Images at another size: batches in training, pipelines in testing."""
from .image_folder import ImageFolder, folder_dataset
from .multi_scale_batch import MultiScaleBatch
from .sample_fields import register_resizer, unchanged

__all__ = ['ImageFolder', 'MultiScaleBatch', 'folder_dataset',
           'register_resizer', 'unchanged']
