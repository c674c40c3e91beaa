"""One public function for each tool."""
from .adapt import adapt
from .calibrate import calibrate
from .export import export
from .fidelity import fidelity
from .hub import from_pretrained, save_pretrained
from .pick import pick, pick_file
from .test import test
from .test_cascade import test_cascade
from .train import train

__all__ = [
    'adapt', 'calibrate', 'export', 'fidelity', 'from_pretrained', 'pick',
    'pick_file', 'save_pretrained', 'test', 'test_cascade', 'train'
]
