"""Gamma and beta of SSBN trained as if all scales shared them."""
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from ...models.size_selection import ssbn_layers
from ..sct.shared_affine import share_affine


@HOOKS.register_module()
class SharedAffineHook(Hook):
    """Train gamma and beta of SSBN as if all scales shared them, so that the
    statistics alone are private: for trainings in which a scale has too few
    steps of its own.

    Parameters that start equal stay equal, but for rounding: each scale gets
    the sum of the gradients of all, and an optimizer treats the entries of a
    parameter alike. So the weights become those of a network whose scales
    share BN (but for clipping by a norm, which counts each scale), while SSBN
    gathers the statistics of each scale.
    These are gradient hooks: set ``backward='joint'`` in SCTLossHook, which
    with ``scales_per_step=1`` costs no more. SCTLossHook(shared_affine=True)
    does the same without this hook, and sets it.

    Source: RS-Nets (arXiv 2007.09558) and SCT keep both private; this is our
    choice, measured in docs/results.md.

    Raises:
        ValueError: for a model without SSBN, for scales whose gamma or beta
            differ, and beside SCTLossHook(adapt=True), which keeps the base.
        RuntimeError: if gamma and beta of the model are shared already.
    """

    def __init__(self) -> None:
        self._handles: list = []

    def before_train(self, runner) -> None:
        self.after_train(runner)  # of a run that an error ended
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        if not ssbn_layers(model):
            raise ValueError('`SharedAffineHook` needs a model with SSBN, but '
                             f'{type(model).__name__} has none. Set norm_cfg='
                             "dict(type='SSBN'), or leave the hook out.")
        if any(getattr(hook, 'adapt', False) for hook in
               getattr(runner, 'hooks', ())):
            raise ValueError('`SharedAffineHook` moves the rows of all scales '
                             'together, but got adapt, which keeps those of '
                             'the base. Leave one of them out.')
        self._handles = share_affine(model)

    def after_train(self, runner) -> None:
        while self._handles:
            self._handles.pop().remove()
