# For tests at any size from 224 to 128, as the network for any size of Fashion-MNIST
# is trained: the whole batch at one scale a step, in 35 % of the steps at a size
# between two; small ones more often in the first 65 % of the steps. 171 epochs cost
# what 100 at 224 do. Not run.
_base_ = './sct_resnet50_8xb32_in1k.py'
custom_hooks = [
    _base_.custom_hooks[0],
    dict(type='SCTLossHook', scales_per_step=1, between=0.35, size_divisor=16,
         progressive=0.65, loss_weights=(0.45, 0.2, 0.15, 0.2), backward='joint'),
    dict(type='SharedAffineHook')]
train_cfg = dict(max_epochs=171)
param_scheduler = dict(milestones=[51, 103, 154])
