"""One scale as an ordinary file, and which scale to take."""
from .export import export
from .pick import pick

__all__ = ['export', 'pick']
