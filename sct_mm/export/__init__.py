"""One scale as an ordinary file, which to take, and all as a folder."""
from .export import export
from .hub import from_pretrained, save_pretrained
from .pick import pick

__all__ = ['export', 'from_pretrained', 'pick', 'save_pretrained']
