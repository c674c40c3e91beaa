"""The tools as modules, as in ``python -m sct_mm.tools.train CONFIG``: those
of the repository's tools/, or of an installed package's ``.mim/tools``."""
from ..utils.package import shipped

__path__ = [shipped('tools')]
