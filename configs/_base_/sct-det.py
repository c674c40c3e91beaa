# The same for a detector, whose batches are too small to divide: one scale a step,
# in half of the steps a size between two. Statistics are private, gamma and beta
# shared, since a row of one's own sees a third of the steps.
_base_ = './sct.py'
custom_hooks = [_base_.custom_hooks[0], dict(
    type='SCTLossHook', scales_per_step=1, between=0.5, backward='joint'),
    dict(type='SharedAffineHook')]
