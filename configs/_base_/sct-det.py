# The recommended recipe for detectors (docs/detect.md): one scale per step, since batches
# are too small to divide, and small ones more often in the first 65 % of the steps.
# Statistics are private, gamma and beta shared, since those of one scale would train in few
# steps. The weights follow from the number of scales.
_base_ = './sct.py'
custom_hooks = [_base_.custom_hooks[0], dict(type='SCTLossHook', recipe='any-size')]
