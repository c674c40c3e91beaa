"""Find the operator and the layer that an exporter could not export."""
import re
from collections.abc import Iterator
from types import TracebackType

from torch import nn

# How the messages of torch's exporters name an operator.
_OPERATORS = (r"op='([^']+)'", r'torch\.ops\.([\w.:]+)',
              r"Python function call '(\w+)'", r'\b(\w+::\w+(?:\.\w+)?)')


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and the errors that caused it, the first cause last."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _layer(trace: TracebackType | None, net: nn.Module) -> str:
    """The innermost module of ``net`` whose forward was running."""
    names = {id(module): name.removeprefix('model.')
             for name, module in net.named_modules()}
    found = ''
    while trace is not None:
        module = trace.tb_frame.f_locals.get('self')
        if isinstance(module, nn.Module) and names.get(id(module)):
            found = f'{names[id(module)]} ({type(module).__name__})'
        trace = trace.tb_next
    return found


def first_line(error: BaseException) -> str:
    """The kind of ``error`` and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0]}' if lines else (
        type(error).__name__)


def blame(error: BaseException, net: nn.Module) -> str:
    """A clause that says why ``net`` could not be exported: it names the
    operator, if the exporter did, and the layer, if one was running."""
    chain = list(_chain(error))
    operator = next((match[1] for each in reversed(chain)
                     for pattern in _OPERATORS
                     for match in [re.search(pattern, str(each))] if match),
                    None)
    layer = next((found for each in reversed(chain)
                  for found in [_layer(each.__traceback__, net)] if found),
                 '')
    if operator:
        where = f' in {layer}' if layer else ''
        return f'the operator {operator}{where} stands in the way'
    cause = first_line(chain[-1]).rstrip('.')
    return f'{layer} cannot be traced ({cause})' if layer else cause
