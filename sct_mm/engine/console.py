"""Where the tools print their tables, and what they say of the machine."""
import torch
from rich.console import Console
from rich.table import Table


def console_for(*tables: Table) -> Console:
    """A terminal as it is; a file or a pipe has room for all columns."""
    console = Console()
    if console.is_terminal:
        return console
    room = Console(width=1000)
    return Console(width=max(80, *(room.measure(table).maximum
                                   for table in tables)))


def device_name() -> str:
    """The GPU, or the CPU with its threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'CPU, {torch.get_num_threads()} threads'
