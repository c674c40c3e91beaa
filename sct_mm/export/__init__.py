"""Files of one size of a network, each run and compared before it is
written."""
from ..datasets.real_images import RealImages
from .files import write_all
from .formats import FORMATS
from .network import PARTS
from .report import print_manifest
from .verified_file import Request, VerifiedFile, make_file

__all__ = [
    'FORMATS', 'PARTS', 'RealImages', 'Request', 'VerifiedFile', 'make_file',
    'print_manifest', 'write_all'
]
