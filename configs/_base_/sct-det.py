# The recommended recipe for detectors at six scales: one scale per step, since batches are
# too small to divide, and small ones more often in the first 65 % of the steps. Statistics
# are private, gamma and beta shared, since those of one scale would train in few steps.
_base_ = './sct.py'
custom_hooks = [_base_.custom_hooks[0], dict(
    type='SCTLossHook', scales_per_step=1, progressive=0.65,
    loss_weights=(0.35, 0.13, 0.13, 0.13, 0.13, 0.13), backward='joint'),
    dict(type='SharedAffineHook')]
