# For tests at any size from 224 to 128: the whole batch at one scale a step, in half
# of the steps at a size between two. 146 epochs cost what 100 at 224 do. Not run.
_base_ = './sct_resnet50_8xb32_in1k.py'
custom_hooks = [_base_.custom_hooks[0], dict(
    type='SCTLossHook', scales_per_step=1, between=0.5, size_divisor=16)]
train_cfg = dict(max_epochs=146)
param_scheduler = dict(milestones=[44, 88, 131])
