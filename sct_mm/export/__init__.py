"""One scale as an ordinary file, which to take, and all as a folder."""
from ..apis.export import export
from ..apis.hub import from_pretrained, save_pretrained
from ..apis.pick import pick

__all__ = ['export', 'from_pretrained', 'pick', 'save_pretrained']
