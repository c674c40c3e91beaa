"""What every part uses: arguments, sizes, errors, configs, checkpoints.

Exported is what needs Python alone: sct_mm.runtime works without torch.
"""
from .arguments import check_choice, check_flag, check_int, check_number
from .errors import UserError
from .sizes import Sizes, expand_sizes

__all__ = [
    'Sizes', 'UserError', 'check_choice', 'check_flag', 'check_int',
    'check_number', 'expand_sizes'
]
