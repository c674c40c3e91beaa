"""The tools as modules: ``python -m sct_mm.tools.train CONFIG``.

They lie in tools/ of the repository, or with an installed package in
``.mim``, where openmim wants them: nowhere twice.
"""
from ..utils.package import shipped

__path__ = [shipped('tools')]
