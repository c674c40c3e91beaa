"""What every part uses: configs, checkpoints, sizes, arguments, errors."""
from .checkpoint import AtomicLocalBackend, check_checkpoint
from .config import load_config
from .errors import UserError
from .safe_load import protected_loading
from .sizes import Sizes, expand_sizes

__all__ = [
    'AtomicLocalBackend', 'Sizes', 'UserError', 'check_checkpoint',
    'expand_sizes', 'load_config', 'protected_loading'
]
