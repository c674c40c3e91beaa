"""Errors that are meant for the user of a tool."""

EMPTY = ('A data set must hold images, but the config makes an empty one. '
         'Look at its `ann_file`, `data_prefix`, `indices` and '
         '`filter_cfg`, and at the classes of its `metainfo`.')


class UserError(ValueError):
    """An input that the user must fix; tools show it without a traceback."""
