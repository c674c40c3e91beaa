"""The arms of an experiment: what is trained, and how often."""
from typing import Dict, NamedTuple, Optional, Tuple, Union


class Arm(NamedTuple):
    config: str
    # How often a scale sees each picture; of what is adapted, in the training
    # of `start` too.
    seen: Dict[int, float]
    epochs: Optional[int] = None  # None: those of the config
    options: Tuple[str, ...] = ()
    start: Optional['Arm'] = None  # the backbone starts from its checkpoint
    adapt: Tuple[str, ...] = ()  # how tools/adapt.py makes it from `start`
    # Statistics of `start`, estimated anew at these sizes, are its rows.
    calibrate: Tuple[int, ...] = ()


class Each(NamedTuple):
    """A network of its own for each of some sizes, tested there alone."""
    arms: Dict[int, Arm]


class Experiment(NamedTuple):
    arms: Dict[str, Union[Arm, Each]]
    sizes: Tuple[int, ...]
    metrics: Dict[str, str]  # as tools/test.py calls them -> as we do
    unit: float = 1  # what 1 % is
    gpus: int = 1
    hours: Dict[int, float] = {}  # of a GPU, for an epoch at each size
    # Arms are named 'SCHEDULE, N epochs': the figure is over their compute, a
    # panel for each of these sizes.
    panels: Tuple[int, ...] = ()


def lasting(arm: Arm, own: int, epochs: int) -> Arm:
    """``arm``, whose config trains for ``own`` epochs, for others."""
    return arm if epochs == own else arm._replace(
        epochs=epochs, seen={size: times * epochs / own
                             for size, times in arm.seen.items()})


def calibrated(arm: Arm, config: str, sizes: Tuple[int, ...]) -> Arm:
    """``arm``, its statistics re-estimated at each of ``sizes``."""
    return Arm(config, arm.seen, start=arm, calibrate=sizes)
