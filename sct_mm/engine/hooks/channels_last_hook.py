"""Convolutions in the memory format channels_last."""
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keep the weights, and so the maps, of convolutions in the memory format
    ``torch.channels_last``.

    Whether it is faster depends on the device and the channels: measure it
    (``tools/benchmarks/cost/benchmark.py --channels-last``).
    """

    def before_run(self, runner) -> None:
        runner.model.to(memory_format=torch.channels_last)
